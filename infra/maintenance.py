"""What a table can do without: files that no version refers to, and files of versions that nobody keeps.

deltalake's own vacuum is not used: it writes two log entries (so a table gains versions that nobody published),
removes orphans only under `full=True`, leaves temporary files, and cannot say why a file goes. Here the log is
replayed from its first entry, which is kept for ever, and compared with the folder. Nothing else is touched:
no log entry, no checkpoint, no folder, no name that starts with '_' or '.'.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from infra import log
from infra.errors import DataRefused, EnvironmentProblem
from infra.lake import Lake
from infra.log import Entry

OLDER_THAN_HOURS = 24.0
"""Default age below which nothing goes: three times the eight hours that a stage may take at most. A writer needs
no lock to be safe from vacuum, as long as its files are committed within that time."""

_TEMPORARY = re.compile(r".+#\d+|_commit_.+\.json\.tmp")
"""What deltalake leaves when it is killed while it writes."""


class Reason(StrEnum):
    """Why a file may go."""

    ORPHAN = "orphan"
    """No version's log entry refers to it: its writer died, or its commit was refused."""
    OLD_VERSION = "old version"
    """Only versions that nobody keeps hold it."""
    TEMPORARY = "temporary"
    """Half of a log entry or checkpoint."""


@dataclass(frozen=True)
class Waste:
    """One file that may go; `path` is relative to the table's folder."""

    path: str
    bytes: int
    reason: Reason


@dataclass(frozen=True)
class Plan:
    """What a vacuum of one table removes."""

    table: str
    newest: int
    """The version that the plan was made at."""
    lost: tuple[int, ...]
    """The versions that can no longer be read whole then."""
    waste: tuple[Waste, ...]

    def total(self, reason: Reason) -> tuple[int, int]:
        """Files and bytes that go for a reason."""
        sizes = [w.bytes for w in self.waste if w.reason is reason]
        return len(sizes), sum(sizes)


@dataclass(frozen=True)
class Size:
    """What a table takes on the disk, all versions and orphans together, and its number of versions."""

    files: int
    bytes: int
    versions: int


def tables(lake: Lake) -> list[str]:
    """The names of all tables of a lake."""
    return sorted(p.name for p in lake.root.iterdir() if lake.exists(p.name)) if lake.root.is_dir() else []


def size(lake: Lake, table: str) -> Size:
    """The sizes of a table's data files, from the folder, and the number of its versions, from its log."""
    found = [stat.st_size for path, stat in _files(lake, table) if path.endswith(".parquet")]
    return Size(len(found), sum(found), len(log.entries(lake.path(table))))


def plan(lake: Lake, table: str, keep: Collection[int] | None, older_than_hours: float) -> Plan:
    """What may go of a table whose versions `keep` must stay readable; None keeps every version.

    The newest version stays too, and every version that was the newest one within the last `older_than_hours`
    (its commit may be about to be published); no file younger than that goes. Raises DataRefused when the log
    is not complete or when a version to keep was never written.
    """
    cutoff = time.time() - older_than_hours * 3600
    found = list(_files(lake, table))  # before the log: a file committed meanwhile is then known to it
    history = _history(lake, table)
    newest = history[-1].version
    if strangers := sorted(v for v in keep or () if not 0 <= v <= newest):
        raise DataRefused(
            f"table {table!r}: the ledger names version {strangers[0]}, the newest is {newest}; its folder is not the "
            "one that was published: restore it first"
        )
    kept = set(range(newest + 1)) if keep is None else {*keep, newest}
    kept |= {e.version - 1 for e in history[1:] if e.committed / 1000 > cutoff}
    needed, known = _replay(lake, table, history, kept)
    waste = []
    for path, stat in found:
        reason = _reason(path, needed, known)
        if reason is not None and stat.st_mtime < cutoff:
            waste.append(Waste(path, stat.st_size, reason))
    return Plan(table, newest, _holders(history, {w.path for w in waste}), tuple(waste))


def remove(lake: Lake, plan: Plan) -> tuple[int, int]:
    """Carry a plan out; returns the files and bytes removed.

    What a commit has referred to since the plan was made stays. Raises EnvironmentProblem when a file cannot be
    removed; what is left then goes with the next vacuum.
    """
    since = {path for entry in _history(lake, plan.table) if entry.version > plan.newest for path in entry.added}
    files = freed = 0
    for waste in plan.waste:
        if waste.path in since:
            continue
        path = Path(lake.path(plan.table)) / waste.path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"{path} cannot be removed ({error.strerror}); make its folder writable and run the command again"
            ) from None
        files, freed = files + 1, freed + waste.bytes
    return files, freed


def _files(lake: Lake, table: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every plain file below a table's folder by its path there, names that start with '_' or '.' left out;
    of the log's folder what deltalake has not finished writing."""
    root = Path(lake.path(table))
    for folder, below, names in os.walk(root):
        below[:] = [b for b in below if b[0] not in "_." or (folder == str(root) and b == "_delta_log")]
        in_log = Path(folder) == log.log_of(root)
        for name in names:
            path = Path(folder) / name
            if _TEMPORARY.fullmatch(name) if in_log else name[0] not in "_.":
                try:
                    if not path.is_symlink():
                        yield path.relative_to(root).as_posix(), path.stat()
                except FileNotFoundError:  # a temporary file that became a real one
                    continue


def _reason(path: str, needed: Collection[str], known: Collection[str]) -> Reason | None:
    if path in needed:
        return None
    if path in known:
        return Reason.OLD_VERSION
    if _TEMPORARY.fullmatch(path.rpartition("/")[2]):
        return Reason.TEMPORARY
    return Reason.ORPHAN if path.endswith(".parquet") else None


def _history(lake: Lake, table: str) -> list[Entry]:
    try:
        return list(log.history(lake.path(table)))
    except ValueError as error:
        raise DataRefused(
            f"table {table!r}: its log is not complete ({error}), so what is not needed cannot be told; nothing was "
            "removed"
        ) from None


def _replay(lake: Lake, table: str, history: Sequence[Entry], kept: Collection[int]) -> tuple[set[str], set[str]]:
    """(paths that the kept versions hold, all paths that any version ever held)."""
    live: set[str] = set()
    needed: set[str] = set()
    known: set[str] = set()
    for entry in history:
        live = (live - entry.removed) | entry.added
        known |= entry.added
        if entry.version in kept:
            needed |= live
    root = f"{lake.path(table)}/"
    if live != {path.removeprefix(root) for path in lake.files(table, history[-1].version)}:
        raise DataRefused(
            f"table {table!r}: deltalake and its log's entries disagree about version {history[-1].version}; nothing "
            "was removed. Another program may have written this table"
        )
    return needed, known


def _holders(history: Sequence[Entry], paths: set[str]) -> tuple[int, ...]:
    """The versions that hold one of `paths`."""
    held: set[str] = set()
    out = []
    for entry in history:
        held = (held - entry.removed) | (entry.added & paths)
        if held:
            out.append(entry.version)
    return tuple(out)
