"""What the fault tests share: how often and from which seed, a family of processes killed, and the state compared."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from infra.lake import Lake
from infra.ledger import Ledger
from tests.pipelines.commands import ROOT, small_recipe

REPETITIONS = int(os.environ.get("FAULT_REPETITIONS", "1"))
SEED = int(os.environ.get("FAULT_SEED", "20261121"))
STAGES = ("events", "vocabularies", "histories", "sequences", "samples")


def drawn(repetition: int, *what: object) -> random.Random:
    """The random numbers of one repetition of one test."""
    return random.Random(f"{SEED} {repetition} {what}")


def rows_of(workspace: Path) -> dict[str, list[str]]:
    """Every published row of every data table, as sorted text; of the ledger the units and dates."""
    lake = Lake(workspace / "lake")
    rows = Ledger(lake).rows()
    latest = {table: version for r in rows for table, version in r.outputs.items()}
    out = {"runs": sorted(f"{r.unit} {r.date}" for r in rows)}
    for table, version in latest.items():
        frame = pl.from_arrow(lake.read(table, version))
        assert isinstance(frame, pl.DataFrame)
        out[table] = sorted(map(repr, frame.rows()))
    return out


def fresh(folder: Path, raw: Path, **changes: Any) -> Path:
    """A recipe over the shared raw log with a workspace of its own."""
    folder.mkdir(parents=True)
    (folder / "raw").symlink_to(raw)
    return small_recipe(folder, **changes)


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """A logs2rec command under way, whose words nobody reads."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(command: Sequence[str], prepare: Callable[[Path], Path], folder: Path, seconds: float) -> Path:
    """The recipe over which a command was killed after so many seconds; if it had ended by then, again after less."""
    for attempt in range(8):
        recipe = prepare(folder / str(attempt))
        process = started(*command, "--config", recipe)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            if kill_family(process):
                return recipe
        seconds *= 0.8
    raise AssertionError(f"{command} always ended before it could be killed")


def killed_at(point: str, table: str, *command: str | Path) -> None:
    """Run a logs2rec command that SIGKILL ends at a named point of tests/faults/killed.py."""
    arguments = [sys.executable, "-m", "tests.faults.killed", point, table, *map(str, command)]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


def kill_family(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL to a command and all its children; whether that is what ended it."""
    with suppress(psutil.NoSuchProcess):
        for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    return process.wait() == -signal.SIGKILL
