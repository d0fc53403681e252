"""User ids to pseudonyms: HMAC-SHA256 under a chain of secret keys.

With keys k_1 … k_n the pseudonym of an id is H(k_n, … H(k_1, id)), where H(k, x) is the first 32 hex digits
(128 bits) of HMAC-SHA256(k, x) over UTF-8. A new key at the end of the chain therefore turns stored pseudonyms
into new ones without anybody knowing the ids (`rekeyed`). Runs in Spark tasks: standard library only.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from functools import reduce

DIGITS = 32
"""128 bits: two of a billion users share a pseudonym with a chance below 1e-20."""

LEAST_BYTES = 16
"""A shorter key could be found by trying."""

_KEY_ID_OF = "logs2rec user key id"


@dataclass(frozen=True)
class UserKeys:
    """A chain of keys, oldest first; never shown. ValueError: no key, or one of fewer than 16 bytes."""

    chain: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.chain:
            raise ValueError("no key")
        if short := [n for n, key in enumerate(self.chain, 1) if len(key) < LEAST_BYTES]:
            raise ValueError(f"key {short[0]} of {len(self.chain)} has fewer than {LEAST_BYTES} bytes")

    @property
    def key_id(self) -> str:
        """A name of the whole chain, 16 hex digits, from which no key can be computed."""
        return hmac.digest(self.chain[-1], self.pseudonym(_KEY_ID_OF).encode(), "sha256").hex()[:16]

    def pseudonym(self, text: str) -> str:
        """The pseudonym of an id as logged.

        >>> UserKeys((b"sixteen bytes of", b"another key, 18 b.")).pseudonym("ann")
        '8c9175181768d8b6bc5897a65ee041bf'
        """
        return reduce(_keyed, self.chain, text)

    def rekeyed(self, stored: str, since: int) -> str:
        """The pseudonym under the whole chain of one that was made under its first `since` keys."""
        return reduce(_keyed, self.chain[since:], stored)

    def length_of(self, key_id: str) -> int | None:
        """How many of the first keys have that id together; None when it is not that of a part of this chain."""
        parts = range(1, len(self.chain) + 1)
        return next((n for n in parts if UserKeys(self.chain[:n]).key_id == key_id), None)


def _keyed(text: str, key: bytes) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()[:DIGITS]
