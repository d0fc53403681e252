"""A Delta log as it lies on the disk: whether its entries are whole, which files each adds and removes.

deltalake takes an entry that lost its last lines, or all of them, for a whole one, and refuses a table whose
checkpoint is damaged although every entry is there; tests/infra/test_deltalake.py shows both.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from infra.disk import sync

COMMIT_ID = "logs2rec.commitId"
"""Metadata key that tells our own commit from another's after a lost answer."""

TRANSACTIONS = "logs2rec.transactions"
"""Metadata key: how many application transactions the entry carries. They are its last lines and its metadata
the first, so an entry with that many has lost nothing."""

CHECKPOINT_INTERVAL = 10
"""Commits between two checkpoints: opening a table replays the entries since the last one."""

_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")


def log_of(folder: str | Path) -> Path:
    """The log's folder in a table's folder."""
    return Path(folder) / "_delta_log"


def entry_of(folder: str | Path, version: int) -> Path:
    """The entry that made `version`."""
    return log_of(folder) / f"{version:020d}.json"


def is_table(folder: str | Path) -> bool:
    """Whether the folder has a Delta log with at least one entry or checkpoint."""
    try:
        with os.scandir(log_of(folder)) as names:
            return any(_ENTRY.fullmatch(n.name) or _CHECKPOINT.fullmatch(n.name) for n in names)
    except (FileNotFoundError, NotADirectoryError):
        return False


def entries(folder: str | Path) -> list[int]:
    """The versions whose entries are there, in order."""
    return sorted(int(m[1]) for name in os.listdir(log_of(folder)) if (m := _ENTRY.fullmatch(name)))


def checkpoints(folder: str | Path) -> list[int]:
    """The versions whose checkpoints are there, in order."""
    return sorted(int(m[1]) for name in os.listdir(log_of(folder)) if (m := _CHECKPOINT.fullmatch(name)))


def flaw(path: Path) -> str | None:
    """What is wrong with an entry, in a few words; None when it is whole, or not ours and readable."""
    data = path.read_bytes()
    lines = data.split(b"\n")
    try:
        first, last = json.loads(lines[0]), json.loads(lines[-1] or lines[-2])
    except (ValueError, IndexError):
        return "is empty" if not data.strip(b"\0\n ") else "is cut short"
    if not isinstance(first, dict) or not isinstance(last, dict):
        return "is damaged"
    expected = first.get("commitInfo", {}).get(TRANSACTIONS)
    if expected is not None and sum(line.startswith(b'{"txn":') for line in lines) != int(expected):
        return "is cut short"
    if int(path.stem) == 0 and b'{"metaData":' not in data:
        return "is cut short"
    return None


def damage(folder: str | Path) -> str | None:
    """Which file of a log is damaged and what to do about it; None when nothing was found."""
    versions = entries(folder) if is_table(folder) else []
    for version in reversed(versions):
        if words := flaw(entry_of(folder, version)):
            return advice(folder, version, words, newest=version == versions[-1])
    if missing := set(range(len(versions))) - set(versions):
        return f"its log entry {min(missing)} is gone; restore it from a copy"
    if unreadable_checkpoints(folder):
        return "a checkpoint of its log is unreadable, but all entries are there: `logs2rec compact` makes a new one"
    return None


def advice(folder: str | Path, version: int, words: str, newest: bool) -> str:
    """What to do about the entry of `version`, which `words` describes."""
    name = f"_delta_log/{version:020d}.json"
    if not newest:
        return f"its log entry {name} {words}; restore it from a copy"
    more = ""
    if version in checkpoints(folder):  # it would stand in for the entry, and the next commit would follow a gap
        more = f" with {version:020d}.checkpoint.parquet and _last_checkpoint beside it"
    return (
        f"its newest log entry {name} {words}, as after a power cut in the middle of a commit; if nothing published "
        f"is at version {version} (`logs2rec status`; for the table runs: in any case), move that file away{more} and "
        "run the command again; else restore it from a copy"
    )


def unreadable_checkpoints(folder: str | Path) -> list[Path]:
    """Checkpoints, and the pointer to the last one, that cannot be what was written."""
    log, bad = log_of(folder), []
    for version in checkpoints(folder):
        path = log / f"{version:020d}.checkpoint.parquet"
        try:
            pq.read_table(path, columns=["txn"])
        except (pa.ArrowException, OSError):
            bad.append(path)
    pointer = log / "_last_checkpoint"
    if pointer.exists():
        try:
            target = log / f"{json.loads(pointer.read_bytes())['version']:020d}.checkpoint.parquet"
        except (ValueError, KeyError, TypeError):
            return [*bad, pointer]
        if target in bad or not target.exists():
            bad.append(pointer)
    return bad


def find(folder: str | Path, commit_id: str, base: int) -> int | None:
    """The version after `base` that carries `commit_id`.

    From the log itself: `DeltaTable.history` counts down from its handle's version, but lists newer commits
    too, so beside other writers it reports wrong numbers.
    """
    version = base + 1
    while (entry := entry_of(folder, version)).exists():
        if f'"{commit_id}"' in entry.read_text(encoding="utf-8"):
            return version
        version += 1
    return None


def make_durable(folder: str | Path, version: int, root: Path) -> None:
    """Local commits are not fsynced by deltalake: a power cut could lose an acknowledged one.

    Back to the last checkpoint, because writers of the entries that this one follows may have died before
    their own fsync; syncing what is on the disk already costs next to nothing.
    """
    log = log_of(folder)
    for number in range(max(0, version - CHECKPOINT_INTERVAL), version + 1):
        for path in (entry_of(folder, number), log / f"{number:020d}.checkpoint.parquet"):
            if path.exists():
                sync(path)
    if (pointer := log / "_last_checkpoint").exists():
        sync(pointer)
    for parent in (log, log.parent, root):
        sync(parent)


@dataclass(frozen=True)
class Entry:
    """One version: when it was committed (ms since 1970) and the paths, relative to the table, that it changed."""

    version: int
    committed: int
    added: frozenset[str]
    removed: frozenset[str]


def history(folder: str | Path) -> Iterator[Entry]:
    """Every version from 0 on; ValueError says what is wrong with a log that is not complete."""
    versions = entries(folder)
    if not versions or versions != list(range(versions[-1] + 1)):
        raise ValueError("entries are missing")
    for version in versions:
        path = entry_of(folder, version)
        if words := flaw(path):
            raise ValueError(f"{path.name} {words}")
        actions: list[dict[str, Any]] = [json.loads(line) for line in path.read_bytes().splitlines() if line]
        paths = {kind: frozenset(unquote(a[kind]["path"]) for a in actions if kind in a) for kind in ("add", "remove")}
        stamp = next((a["commitInfo"].get("timestamp") for a in actions if "commitInfo" in a), None)
        committed = int(stamp) if stamp is not None else path.stat().st_mtime_ns // 1_000_000
        yield Entry(version, committed, paths["add"], paths["remove"])
