"""featurize/pseudonyms.py: against HMAC as hashlib spells it out, and by its properties."""

from __future__ import annotations

import copy
import hashlib
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.pseudonyms import UserKeys

OLD, NEW = b"sixteen bytes of", b"another key, 18 b."


def hmac_by_hand(key: bytes, text: bytes) -> str:
    """RFC 2104 with SHA-256, whose block is 64 bytes."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + text).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).hexdigest()


@pytest.mark.parametrize("key", [OLD, b"k" * 64, b"k" * 65, b"k" * 500])
@pytest.mark.parametrize("text", ["ann", "\u00e9", "e\u0301", "a\x00b", "", "7" * 65536])
def test_one_key_is_hmac_sha256_cut_to_128_bits(key: bytes, text: str) -> None:
    assert UserKeys((key,)).pseudonym(text) == hmac_by_hand(key, text.encode())[:32]


def test_a_known_answer_of_the_standard() -> None:
    """RFC 4231, test case 6 (a key longer than a block)."""
    text = "Test Using Larger Than Block-Size Key - Hash Key First"
    assert UserKeys((b"\xaa" * 131,)).pseudonym(text) == "60e431591ee0b67f0d8a26aacbf5b77f"


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.binary(min_size=16, max_size=80), min_size=1, max_size=4),
)
def test_a_new_key_turns_stored_pseudonyms_into_new_ones(text: str, chain: list[bytes]) -> None:
    whole = UserKeys(tuple(chain))
    for since in range(1, len(chain) + 1):
        stored = UserKeys(tuple(chain[:since])).pseudonym(text)
        assert whole.rekeyed(stored, since) == whole.pseudonym(text)


def test_the_key_id_names_the_whole_chain() -> None:
    chains = [(OLD,), (NEW,), (OLD, NEW), (NEW, OLD), (OLD, NEW, OLD)]
    ids = [UserKeys(chain).key_id for chain in chains]
    assert len(set(ids)) == len(chains)
    assert all(len(i) == 16 and set(i) <= set("0123456789abcdef") for i in ids)
    assert UserKeys((OLD,)).key_id == ids[0]


def test_the_key_id_is_no_user_s_pseudonym() -> None:
    keys = UserKeys((OLD,))
    assert not keys.pseudonym("logs2rec user key id").startswith(keys.key_id)


@pytest.mark.parametrize("chain", [(), (b"",), (b"fifteen bytes..",), (OLD, b"short")])
def test_keys_that_could_be_guessed_are_refused_and_not_shown(chain: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"no key|fewer than 16 bytes") as caught:
        UserKeys(chain)
    shown = "".join(traceback.format_exception(caught.value))
    assert "fifteen" not in shown
    assert "'short'" not in shown


def test_a_key_is_not_shown_but_travels() -> None:
    keys = UserKeys((OLD, NEW))
    for shown in (repr(keys), str(keys), f"{keys}", repr([keys])):
        assert "sixteen" not in shown
        assert "another" not in shown
    assert copy.deepcopy(keys).pseudonym("ann") == keys.pseudonym("ann")
