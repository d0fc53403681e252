"""The last day of a month beside a rebuild of all of it: `python -m tests.benchmarks.incremental`.

Histories and sequences, warm, from the same tables in turns; afterwards their rows are compared. The last day is
measured as an ordinary one and as one that makes a new base too, which one day in `base_every` does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from featurize.histories import AsOf, files_of
from infra.lake import Lake
from infra.spark import SparkSettings, session
from tests.benchmarks.harness import report
from tests.benchmarks.logs import SETTINGS, build, events_asked, in_a_process, warm

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, USERS, ITEMS, REPETITIONS = 20_000_000, 200_000, 50_000, 3


def differing(lake: Lake, day: str, ours: tuple[AsOf, int], theirs: tuple[AsOf, int]) -> int:
    """Histories (merged per user) and sequences that one of the two has and the other has not."""
    db = duckdb.connect()

    def selects(as_of: AsOf, version: int) -> list[str]:
        paths = [path for bucket in files_of(lake, as_of, SETTINGS.buckets).buckets for _, path in bucket]
        cut = lake.files("sequences", version, {"as_of": day})
        return [
            f"""select "user", flatten(list(items order by ds))[-{SETTINGS.history_cap}:] items,
            flatten(list(ts order by ds))[-{SETTINGS.history_cap}:] ts
            from read_parquet({paths!r}, hive_partitioning=true) group by "user" """,
            f"""select split, "user", items, is_target, target, target_ts, target_known
            from read_parquet({cut!r}, hive_partitioning=true)""",
        ]

    count = 0
    for a, b in zip(selects(*ours), selects(*theirs), strict=True):
        for left, right in ((a, b), (b, a)):
            (row,) = db.sql(f"select count(*) from (({left}) except all ({right}))").fetchall()
            count += row[0]
    return count


@dataclass(frozen=True)
class LastDay:
    """What the last day's build took and left."""

    seconds: float
    as_of: AsOf
    version: int
    new_base: bool


def last_day(
    spark: SparkSession, lake: Lake, versions: dict[str, int], arrivals: Sequence[str], *, since: int
) -> LastDay:
    """A full build `since` days before the last, then day by day; only the last day is measured."""
    before, _ = build(spark, lake, versions, arrivals[:-since], rebuild=True)
    for number in range(len(arrivals) - since + 1, len(arrivals)):
        before, _ = build(spark, lake, versions, arrivals[:number], before.state)
    started = time.perf_counter()
    built, version = build(spark, lake, versions, arrivals, before.state)
    took = time.perf_counter() - started
    assert not built.report["full"]
    return LastDay(took, built.as_of, version, built.as_of.base != before.as_of.base)


def main() -> None:
    """Print the figures."""
    rows = events_asked(ROWS)
    with tempfile.TemporaryDirectory() as scratch, session(SparkSettings(), "benchmark") as spark:
        folder = Path(scratch)
        warm(spark, folder / "warm")
        lake, versions, arrivals = in_a_process(
            folder / "log", rows=rows, users=min(USERS, rows // 10), items=ITEMS, distribution="lognormal"
        )
        daily, merging, full, rows_differing = [], [], [], 0
        for _ in range(REPETITIONS):
            plain = last_day(spark, lake, versions, arrivals, since=1)
            daily.append(plain.seconds)
            merged = last_day(spark, lake, versions, arrivals, since=SETTINGS.base_every)
            merging.append(merged.seconds)
            started = time.perf_counter()
            theirs, remade = build(spark, lake, versions, arrivals, rebuild=True)
            full.append(time.perf_counter() - started)
            assert (plain.new_base, merged.new_base) == (False, True)
            for ours in (plain, merged):
                rows_differing += differing(lake, arrivals[-1], (ours.as_of, ours.version), (theirs.as_of, remade))
    rebuild = statistics.median(full)
    figures = {
        "ratio_to_rebuild": statistics.median(daily) / rebuild,
        "ratio_on_merge_day": statistics.median(merging) / rebuild,
        "rows_differing": rows_differing,
    }
    seconds = {"seconds_day": statistics.median(daily), "seconds_merge_day": statistics.median(merging)}
    report("incremental", {**figures, **seconds, "seconds_rebuild": rebuild})


if __name__ == "__main__":
    main()
