"""Where the pseudonym keys come from, and that a lake's tables are always written under the same ones.

The key's text is in an environment variable, in a file, or made once for the workspace. Several lines are a
chain, oldest first; a key is the text of its line. What no message, log or repr ever shows is a key.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from featurize.pseudonyms import UserKeys
from infra.config import Settings
from infra.disk import sync
from infra.errors import ConfigError, UsageError
from infra.log import make_durable
from infra.schemas import create

if TYPE_CHECKING:
    from infra.lake import Lake
    from infra.tables import Table

KEY_ID = "logs2rec.userKeyId"
"""Property of the events table, and metadata of every commit, that names the keys; never a key itself."""

PLAIN = "none"
"""Its value where user ids stand as logged (`personal: false`)."""

CHANGE = ">"
"""Between two key ids in that property: the tables are on their way from the one to the other (`logs2rec rekey`)."""

_EVENTS = "events"


class PseudonymSettings(Settings):
    """Where the keys are that turn user ids into pseudonyms (contracts with `personal: true`)."""

    key_env: str = Field("LOGS2REC_USER_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the key: at least 16 bytes of text, several keys on a line each."""
    key_file: Path | None = None
    """Or a file that holds it, closed to others (chmod 600 or 640). With neither, the workspace makes its own key
    once: WORKSPACE/keys/user.key. Whoever loses it cannot add to the workspace's tables any more: back it up."""


@dataclass(frozen=True)
class FoundKeys:
    """The keys, and the file that was made for them just now, if one was."""

    keys: UserKeys
    made: Path | None = None


def find_keys(
    settings: PseudonymSettings, workspace: Path, lake: Lake, environment: Mapping[str, str] = os.environ
) -> FoundKeys:
    """The keys from the environment, from `key_file`, or those of the workspace, which are made if nothing is there.

    Raises ConfigError for keys that cannot be used (two sources, too short, a file open to others), and
    UsageError when the lake's events were written under other keys, or under a key that is gone.
    """
    own, made = _own(workspace), None
    keys = given_keys(settings, workspace, environment)
    if keys is None:
        if (stored := stored_key_id(lake)) not in (None, PLAIN):
            raise UsageError(
                f"the user key {stored} of table 'events' under {lake.root} is not at hand: set {settings.key_env} "
                f"or pseudonyms.key_file, or restore {own}; without it nothing can be added to these tables"
            )
        made = _make(own)
        keys = _read(own, "the workspace's key")
    check_key(lake, keys)
    return FoundKeys(keys, made)


def given_keys(
    settings: PseudonymSettings, workspace: Path, environment: Mapping[str, str] = os.environ
) -> UserKeys | None:
    """The keys from the environment, from `key_file`, or those of the workspace, whatever any table was written under.

    None when nothing is there; ConfigError for keys that cannot be used.
    """
    given = environment.get(settings.key_env, "")
    if given and settings.key_file is not None:
        raise ConfigError(
            f"pseudonyms: the environment variable {settings.key_env} and key_file are both set; leave one of them out"
        )
    if given:
        return _parse(given, f"the environment variable {settings.key_env}")
    if settings.key_file is not None:
        return _read(settings.key_file, "pseudonyms.key_file")
    own = _own(workspace)
    return _read(own, "the workspace's key") if own.exists() else None


def stored_key_id(lake: Lake) -> str | None:
    """The key id in the events table's properties; None without a table, or in one that nothing claimed yet."""
    if not lake.exists(_EVENTS):
        return None
    table = lake.open(_EVENTS)
    known = table.metadata().configuration.get(KEY_ID)
    if known is None and table.file_uris():
        return PLAIN  # written before there were pseudonyms
    return known


def check_key(lake: Lake, keys: UserKeys | None) -> None:
    """Raise UsageError when the events table was written under other keys than `keys` (None: ids as logged)."""
    stored, asked = stored_key_id(lake), key_id(keys)
    if stored is None or stored == asked:
        return
    if PLAIN in (stored, asked):
        raise UsageError(
            f"table 'events' under {lake.root} holds user ids {'as logged' if stored == PLAIN else 'as pseudonyms'}, "
            f"and the contract says `personal: {str(asked != PLAIN).lower()}`; change it back or use another workspace"
        )
    if CHANGE in stored:
        before, _, after = stored.partition(CHANGE)
        raise UsageError(
            f"the tables under {lake.root} are on their way from the user key {before} to {after}: a `logs2rec rekey` "
            "did not end; give its keys and run it again"
        )
    raise UsageError(
        f"table 'events' under {lake.root} was written under the user key {stored}, and the key given is {asked}; "
        "give the former one, or change the key of all tables with `logs2rec rekey`"
    )


def key_id(keys: UserKeys | None) -> str:
    """The name of the keys, `none` where user ids stand as logged."""
    return PLAIN if keys is None else keys.key_id


def stamp(lake: Lake, table: Table, keys: UserKeys | None) -> None:
    """Write the key id into the table's Delta properties, once, before its first rows."""
    delta = lake.open(table.name) if lake.exists(table.name) else create(lake, table)
    if keys is not None and KEY_ID not in delta.metadata().configuration:
        delta.alter.set_table_properties({KEY_ID: keys.key_id}, raise_if_not_exists=False)


def claim(lake: Lake, name: str) -> None:
    """Put `name` (a key id, or two with CHANGE between them) in the place of the stored one, durably."""
    delta = lake.open(_EVENTS)
    delta.alter.set_table_properties({KEY_ID: name}, raise_if_not_exists=False)
    make_durable(lake.path(_EVENTS), lake.open(_EVENTS).version(), lake.root)


def carried(metadata: Mapping[str, Any], keys: UserKeys | None) -> dict[str, Any]:
    """A commit's metadata with the key id."""
    return {**metadata, KEY_ID: key_id(keys)}


def _own(workspace: Path) -> Path:
    return workspace / "keys" / "user.key"


def _read(path: Path, what: str) -> UserKeys:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {path} is not UTF-8 text") from None
    if mode & 0o027:  # a group may read (secrets are mounted so), nobody else may do anything
        raise ConfigError(f"{what}: {path} is open to others (mode {mode & 0o777:03o}); chmod 600 it")
    return _parse(text, f"{what} {path}")


def _parse(text: str, where: str) -> UserKeys:
    try:
        return UserKeys(tuple(line.strip().encode() for line in text.split("\n") if line.strip()))
    except ValueError as error:  # says which key, never what it is
        raise ConfigError(f"{where}: {error}; make one with `openssl rand -hex 32`") from None


def _make(path: Path) -> Path | None:
    """A new key file, whole or not at all; None when somebody else made it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # fails where a rename would replace another's key
    except FileExistsError:
        return None
    finally:
        draft.unlink()
    sync(path.parent)
    return path
