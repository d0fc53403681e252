"""The pseudonym keys of one command, and what the ledger knows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurize.pseudonyms import UserKeys
from featurize.user_keys import find_keys, key_id

if TYPE_CHECKING:
    from pipelines.context import Context


def keys_of(ctx: Context) -> UserKeys | None:
    """The keys for the contract's user ids; None where they are not personal. Says so when it has made one."""
    if not ctx.contract.personal:
        return None
    found = find_keys(ctx.recipe.pseudonyms, ctx.workspace, ctx.lake)
    ctx.user_keys = found.keys
    if found.made is not None:
        ctx.progress.console.print(
            f"pseudonyms: made the user key {found.keys.key_id} in {found.made}; keep a copy that only you can read",
            markup=False,
        )
    return found.keys


def events_config(contract: Mapping[str, Any], keys: UserKeys | None) -> dict[str, Any]:
    """What the events stage is a function of beside its files: the contract, and which keys made the pseudonyms."""
    return {"contract": contract, "userKeyId": key_id(keys)}
