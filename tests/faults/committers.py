"""Small writers for the commit faults, a process each: `python -m tests.faults.committers FOLDER VERB ...`.

They use infra.commit as the driver of a Spark stage does. The last line of their output is JSON: what came of
it, or the typed error. A fault strikes at one chosen batch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import infra.commit
from infra import log, maintenance
from infra.commit import append_rows
from infra.compaction import repair
from infra.errors import Logs2RecError
from infra.lake import Lake
from tests.infra.test_commit import NOTES, put


def batch(number: int) -> dict[str, list[int]]:
    """The rows of one batch: a day of its own."""
    return {f"d{number}": [number, number + 1000]}


def kill(*_: Any) -> None:
    """What a power cut or the kernel's memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path, leave: int) -> None:
    """Fill the disk below `folder` up to about `leave` bytes."""
    with open(folder / "filler", "ab", buffering=0) as filler:
        with suppress(OSError):
            while True:
                filler.write(bytes(4096))
        filler.truncate(max(0, filler.tell() - leave))


def strike(fault: str, lake: Lake) -> None:
    """Wrap the writer so that its next commit meets the fault."""
    real = infra.commit._transact
    when, _, what = fault.partition(":")
    act: Callable[[], None] = kill if what == "kill" else lambda: fill(lake.root.parent, int(what))

    def transact(*arguments: Any) -> None:
        if when == "files":  # written, not committed
            act()
        real(*arguments)
        if when == "entry":  # committed, not answered
            act()

    if when == "start":  # nothing is written yet
        act()
    infra.commit._transact = transact  # type: ignore[assignment]


def wait(go: str) -> None:
    """Until a file is there: several processes start at once, however long each took to load."""
    Path(go).with_name(f"ready-{os.getpid()}").touch()
    while not Path(go).exists():
        time.sleep(0.001)


def write(lake: Lake, first: str, last: str, fault: str = "", at: str = "-1") -> list[int]:
    """Batches first to last, one commit each; returns their versions."""
    versions = []
    for number in range(int(first), int(last)):
        if number == int(at):
            strike(fault, lake)
        versions.append(put(lake, batch(number)))
    return versions


def write_together(lake: Lake, go: str, first: str, last: str) -> list[int]:
    """As `write`, when the others are ready too."""
    wait(go)
    return write(lake, first, last)


def replace(lake: Lake, go: str, day: str, value: str) -> int:
    """One commit of one day, when the others are ready too."""
    wait(go)
    return put(lake, {day: [int(value)]})


def append(lake: Lake, key: str, fault: str = "") -> bool:
    """One row of a record table, once per key."""
    if fault:
        strike(fault, lake)
    return append_rows(lake, NOTES, [{"k": key}], app_id=key)


def vacuum(lake: Lake, go: str, seconds: str) -> int:
    """Vacuum again and again until the file `go` is gone; nothing younger than `seconds` goes."""
    wait(go)
    removed = 0
    while Path(go).exists():
        plan = maintenance.plan(lake, "days", set(), float(seconds) / 3600)
        removed += maintenance.remove(lake, plan)[0]
    return removed


def mend(lake: Lake) -> list[str]:
    """What `logs2rec compact` does first."""
    return repair(lake, "days")


VERBS = {f.__name__: f for f in (write, write_together, replace, append, vacuum, mend)}


def backdate(lake: Lake, seconds: float) -> None:
    """Make the table that much older: its files, and what its log says of its commits."""
    root = Path(lake.path("days"))
    for path in root.rglob("*.parquet"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))
    for version in log.entries(root):
        entry = log.entry_of(root, version)
        lines = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
        lines[0]["commitInfo"]["timestamp"] -= int(1000 * seconds)
        entry.write_text("\n".join(json.dumps(line, separators=(",", ":")) for line in lines), encoding="utf-8")


if __name__ == "__main__":
    folder, verb, *rest = sys.argv[1:]
    try:
        print(json.dumps(VERBS[verb](Lake(Path(folder) / "lake"), *rest)))  # type: ignore[operator]
    except Logs2RecError as error:
        print(json.dumps({"kind": type(error).__name__, "error": str(error)}))
        sys.exit(error.exit_code)
