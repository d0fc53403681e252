"""The write protocol broken on purpose, each writer a process of its own, no Spark.

After each fault the state equals that of an undisturbed run, row by row, or there is a typed error that says
what to do. Places and moments are drawn from FAULT_SEED, once per repetition (FAULT_REPETITIONS, 1 in CI).
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infra import log
from infra.errors import DataRefused
from infra.lake import Lake
from tests.faults.committers import backdate, batch
from tests.infra.test_commit import content, put, written
from tests.pipelines.commands import ROOT

REPETITIONS = int(os.environ.get("FAULT_REPETITIONS", "1"))
SEED = int(os.environ.get("FAULT_SEED", "20261121"))
BATCHES = 25

pytestmark = [pytest.mark.fault, pytest.mark.parametrize("repetition", range(REPETITIONS))]


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.committers", str(folder), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, Any]:
    """(exit code, what the writer said)."""
    words, errors = process.communicate(timeout=240)
    assert words or process.returncode == -signal.SIGKILL, errors
    return process.returncode, json.loads(words.splitlines()[-1]) if words else None


def run(folder: Path, *arguments: object) -> tuple[int, Any]:
    return end(start(folder, *arguments))


def undisturbed(*, until: int) -> dict[str, list[int]]:
    return {day: rows for number in range(until) for day, rows in sorted(batch(number).items())}


def state(folder: Path) -> dict[str, list[int]]:
    """Every row, through deltalake's and another engine's eyes."""
    lake = Lake(folder / "lake")
    if not lake.exists("days"):
        return {}
    rows = content(lake)
    frame = pl.read_parquet(lake.files("days", lake.version("days") or 0), hive_partitioning=True) if rows else None
    assert (0 if frame is None else frame.height) == sum(map(len, rows.values()))
    return dict(sorted(rows.items(), key=lambda item: int(item[0][1:])))


def draw(repetition: int, salt: str) -> random.Random:
    return random.Random(f"{SEED} {repetition} {salt}")


@pytest.mark.parametrize(("fault", "landed"), [("files:kill", 0), ("entry:kill", 1)])
def test_killed_around_the_commit(tmp_path: Path, repetition: int, fault: str, landed: int) -> None:
    """Between files and commit; after the log entry is written but before the call returns: one copy, not two."""
    at = draw(repetition, fault).randrange(12)
    assert run(tmp_path, "write", 0, 12, fault, at) == (-signal.SIGKILL, None)
    assert state(tmp_path) == undisturbed(until=at + landed)
    code, versions = run(tmp_path, "write", 0, 12)
    assert (code, len(versions)) == (0, 12)
    assert state(tmp_path) == undisturbed(until=12)


@pytest.mark.parametrize(("fault", "answer"), [("files:kill", True), ("entry:kill", False)])
def test_a_record_is_there_once(tmp_path: Path, repetition: int, fault: str, answer: bool) -> None:
    assert run(tmp_path, "append", "first") == (0, True)
    assert run(tmp_path, "append", "second", fault) == (-signal.SIGKILL, None)
    assert run(tmp_path, "append", "second") == (0, answer)
    lake = Lake(tmp_path / "lake")
    assert sorted(lake.read("notes", lake.version("notes") or 0)["k"].to_pylist()) == ["first", "second"]


@pytest.mark.parametrize("moment", ["on sight", "drawn"])
def test_killed_during_the_checkpoint(tmp_path: Path, repetition: int, moment: str) -> None:
    """As soon as the first trace of a checkpoint is in the folder, or at a moment drawn around one."""
    drawn = draw(repetition, moment)
    wanted, delay = drawn.choice([9, 19]), drawn.uniform(0.0, 0.05) if moment == "drawn" else 0.0
    process = start(tmp_path, "write", 0, 2 * BATCHES)
    folder = tmp_path / "lake" / "days" / "_delta_log"
    before = f"{wanted - 1:020d}.json" if moment == "drawn" else f"{wanted:020d}.checkpoint"
    while process.poll() is None and not (folder.is_dir() and any(n.startswith(before) for n in os.listdir(folder))):
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    assert end(process)[0] == -signal.SIGKILL
    rows = state(tmp_path)
    assert rows == undisturbed(until=len(rows))
    assert len(rows) >= wanted - 1
    assert run(tmp_path, "write", 0, 2 * BATCHES)[0] == 0
    assert state(tmp_path) == undisturbed(until=2 * BATCHES)


@pytest.mark.parametrize("damaged", [f"{9:020d}.checkpoint.parquet", "_last_checkpoint"])
def test_a_half_written_checkpoint(tmp_path: Path, repetition: int, damaged: str) -> None:
    assert run(tmp_path, "write", 0, 12)[0] == 0
    path = tmp_path / "lake" / "days" / "_delta_log" / damaged
    data = path.read_bytes()
    path.write_bytes(data[: draw(repetition, damaged).randrange(len(data) - 1)])
    code, said = run(tmp_path, "write", 12, BATCHES)
    if damaged != "_last_checkpoint":  # deltalake does without the pointer
        assert (code, said["kind"]) == (3, "DataRefused")
        assert "`logs2rec compact`" in said["error"]
        assert run(tmp_path, "mend") == (0, [damaged, "_last_checkpoint"])
        assert state(tmp_path) == undisturbed(until=12)
        code, said = run(tmp_path, "write", 12, BATCHES)
    assert code == 0
    assert state(tmp_path) == undisturbed(until=BATCHES)


def test_a_truncated_newest_log_entry(tmp_path: Path, repetition: int) -> None:
    drawn = draw(repetition, "entry")
    batches = drawn.randrange(2, 15)
    run(tmp_path, "write", 0, batches)
    entry = log.entry_of(tmp_path / "lake" / "days", batches)
    whole = entry.read_bytes()
    boundaries = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]  # those deltalake does not notice
    for length in (0, drawn.choice(boundaries), drawn.randrange(1, len(whole))):
        entry.write_bytes(whole[:length])
        code, said = run(tmp_path, "write", 0, batches)
        assert (code, said["kind"]) == (3, "DataRefused")
        assert entry.name in said["error"]
        assert "move that file away" in said["error"]
    with pytest.raises(DataRefused):
        state(tmp_path)
    assert not log.entry_of(tmp_path / "lake" / "days", batches + 1).exists()  # nobody built on it
    for name in re.findall(r"\d{20}\.\w+(?:\.\w+)?|_last_checkpoint", said["error"]):  # as it says
        (entry.parent / name).rename(tmp_path / name)
    assert state(tmp_path) == undisturbed(until=batches - 1)
    assert run(tmp_path, "write", batches - 1, batches)[0] == 0
    assert state(tmp_path) == undisturbed(until=batches)


@pytest.mark.parametrize(
    ("fault", "at"),
    [
        ("start:0", 5),  # no room for the data file
        ("start:4096", 5),  # room for a part of what is needed
        ("files:0", 5),  # no room for the log entry
        ("files:4096", 8),  # room for the entry, none for the checkpoint that follows
        ("start:0", 0),  # no room for the table
    ],
)
def test_the_disk_is_full(small_disk: Path, repetition: int, fault: str, at: int) -> None:
    assert run(small_disk, "write", 0, at)[0] == 0
    code, said = run(small_disk, "write", at, 12, fault, at)
    assert (code, said["kind"]) == (1, "CommitError"), said
    rows = state(small_disk)
    assert rows == undisturbed(until=len(rows))  # nothing half published
    assert len(rows) >= at
    (small_disk / "filler").unlink()
    assert run(small_disk, "write", 0, 12)[0] == 0
    assert state(small_disk) == undisturbed(until=12)


def together(folder: Path, *writers: tuple[object, ...]) -> list[tuple[int, Any]]:
    """Let writers whose first argument is the starting signal begin at the same moment."""
    go = folder / "go"
    processes = [start(folder, verb, go, *rest) for verb, *rest in writers]
    while len(list(folder.glob("ready-*"))) < len(writers):
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes if p.poll() is not None]
        time.sleep(0.01)
    go.touch()
    return [end(process) for process in processes]


@pytest.mark.parametrize(
    ("day", "values"),
    [("d7", (1, 1)), ("d0", (1, 2)), ("d7", (1, 2))],
    ids=["the same batch", "the same partition", "the same new partition"],
)
def test_two_committers_of_one_partition(tmp_path: Path, repetition: int, day: str, values: tuple[int, int]) -> None:
    """At least one lands; one that does not is told; the partition is one writer's, whole."""
    put(Lake(tmp_path / "lake"), {"d0": [9], "d1": [8]})
    answers = together(tmp_path, *(("replace", day, value) for value in values))
    landed = [value for value, (code, _) in zip(values, answers, strict=True) if code == 0]
    assert landed
    assert all(code == 0 or said["kind"] == "CommitConflict" for code, said in answers), answers
    rows = state(tmp_path)
    assert rows.pop(day) in [[value] for value in landed]
    assert rows == {d: r for d, r in {"d0": [9], "d1": [8]}.items() if d != day}
    assert Lake(tmp_path / "lake").version("days") == 1 + len(landed)


def test_two_committers_of_different_partitions(tmp_path: Path, repetition: int) -> None:
    put(Lake(tmp_path / "lake"), {"d0": [9], "d1": [8]})
    answers = together(tmp_path, ("replace", "d0", 1), ("replace", "d1", 2), ("replace", "d2", 3))
    assert sorted(said for _, said in answers) == [2, 3, 4]
    assert state(tmp_path) == {"d0": [1], "d1": [2], "d2": [3]}


def test_committers_against_vacuum(tmp_path: Path, repetition: int) -> None:
    lake = Lake(tmp_path / "lake")
    for value in (1, 2, 3):
        put(lake, {"d99": [value]})
    orphans = [written(lake, "d99", 7) for _ in range(5)]
    backdate(lake, 3600)
    go = tmp_path / "go"
    vacuum = start(tmp_path, "vacuum", go, 600)
    answers = together(tmp_path, ("write_together", 0, 8), ("write_together", 8, 16))
    go.unlink()
    code, removed = end(vacuum)
    assert (code, [c for c, _ in answers]) == (0, [0, 0]), answers
    assert removed == 5 + 2  # the orphans, and two files of superseded versions
    assert not any((Path(lake.path("days")) / f.path).exists() for f in orphans)
    assert state(tmp_path) == {**undisturbed(until=16), "d99": [3]}


def test_eight_committers_of_25_batches(tmp_path: Path, repetition: int) -> None:
    """200 commits: none lost, none twice."""
    numbers = [(i * BATCHES, (i + 1) * BATCHES) for i in range(8)]
    answers = together(tmp_path, *(("write_together", first, last) for first, last in numbers))
    assert [code for code, _ in answers] == [0] * 8, answers
    assert sorted(version for _, versions in answers for version in versions) == list(range(1, 201))
    assert state(tmp_path) == undisturbed(until=200)
    lake = Lake(tmp_path / "lake")
    assert (lake.version("days"), len(lake.files("days", 200))) == (200, 200)
