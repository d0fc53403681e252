"""The write protocol alone: verifying and committing many files, and commits to tables of every age."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.commit import commit, write_file
from infra.lake import Lake
from infra.tables import Column, Table
from tests.benchmarks.harness import report

AGES = (10, 30, 100, 300, 1000)
ROUNDS = 20
"""Commits measured per age: two periods of log checkpoints, so that their cost is in the mean."""

_COLUMNS = tuple(Column(f"c{i}", pa.string(), "a column") for i in range(15))
DAYS = Table("days", "small partitions", (Column("day", pa.string(), "d"), *_COLUMNS), ("day",))


def main() -> None:
    """Figures: seconds_per_1000_files (verify and commit, median of five); age_slope, the larger one of
    age_slope_adding (each commit of the table's life adds a partition) and age_slope_replacing (each replaces
    the same one): log-log slope of the mean latency over the commits before, measured in turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        thousand = _thousand(Lake(Path(folder) / "many"))
        slopes = {kind: _slope(Path(folder) / kind, kind == "adding") for kind in ("adding", "replacing")}
    figures = {"seconds_per_1000_files": thousand, "age_slope": max(slopes.values())}
    report("commit", {**figures, **{f"age_slope_{kind}": slope for kind, slope in slopes.items()}})


def _thousand(lake: Lake) -> float:
    """One commit of 1,000 files in 50 partitions, over the 1,000 of the commit before."""
    days = [f"d{i}" for i in range(50)]
    rows = pa.table({c.name: [f"value {i}" for i in range(100)] for c in _COLUMNS})
    taken = []
    for _ in range(6):
        files = [write_file(lake.path(DAYS.name), DAYS, {"day": days[i % 50]}, [rows]) for i in range(1000)]
        started = time.perf_counter()
        commit(lake, DAYS, files, replace={"day": days}, metadata={})
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def _slope(folder: Path, adding: bool) -> float:
    """Ages one table, keeps a copy at each age, and then commits to the copies in turns."""
    growing, copies = Lake(folder / "growing"), []
    for age in range(1, max(AGES) + 1):
        _one(growing, f"d{age}" if adding else "d")
        if age in AGES:
            shutil.copytree(growing.root, folder / str(age))
            copies.append(Lake(folder / str(age)))
    taken = [[_one(lake, f"r{turn}" if adding else "d") for lake in copies] for turn in range(ROUNDS)]
    means = np.mean(taken, axis=0)
    print("ms per commit: " + ", ".join(f"age {a} {1000 * m:.1f}" for a, m in zip(AGES, means, strict=True)))
    return _log_log(AGES, means)


def _one(lake: Lake, day: str) -> float:
    file = write_file(lake.path(DAYS.name), DAYS, {"day": day}, [pa.table({c.name: ["v"] for c in _COLUMNS})])
    started = time.perf_counter()
    commit(lake, DAYS, [file], replace={"day": [day]}, metadata={})
    return time.perf_counter() - started


def _log_log(ages: Sequence[int], seconds: Sequence[float]) -> float:
    return float(np.polyfit(np.log(ages), np.log(seconds), 1)[0])


if __name__ == "__main__":
    main()
