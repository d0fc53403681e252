"""The last day of a month beside a rebuild of all of it: `python -m tests.benchmarks.incremental`.

Histories and sequences, warm, from the same tables in turns; afterwards their rows are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import duckdb

from featurize.histories import AsOf, files_of
from infra.lake import Lake
from infra.spark import SparkSettings, session
from tests.benchmarks.harness import report
from tests.benchmarks.logs import SETTINGS, build, events_asked, in_a_process, warm

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
            f"""select split, "user", items, target, target_ts, target_known
            from read_parquet({cut!r}, hive_partitioning=true)""",
        ]

    count = 0
    for a, b in zip(selects(*ours), selects(*theirs), strict=True):
        for left, right in ((a, b), (b, a)):
            (row,) = db.sql(f"select count(*) from (({left}) except all ({right}))").fetchall()
            count += row[0]
    return count


def main() -> None:
    """Print the figures."""
    rows = events_asked(ROWS)
    with tempfile.TemporaryDirectory() as scratch, session(SparkSettings(), "benchmark") as spark:
        folder = Path(scratch)
        warm(spark, folder / "warm")
        lake, versions, arrivals = in_a_process(
            folder / "log", rows=rows, users=min(USERS, rows // 10), items=ITEMS, distribution="lognormal"
        )
        daily, full = [], []
        for _ in range(REPETITIONS):
            before, _ = build(spark, lake, versions, arrivals[:-1], rebuild=True)
            started = time.perf_counter()
            ours, made = build(spark, lake, versions, arrivals, before.state)
            daily.append(time.perf_counter() - started)
            assert not ours.report["full"]
            started = time.perf_counter()
            theirs, remade = build(spark, lake, versions, arrivals, rebuild=True)
            full.append(time.perf_counter() - started)
        rows_differing = differing(lake, arrivals[-1], (ours.as_of, made), (theirs.as_of, remade))
    figures = {"ratio_to_rebuild": statistics.median(daily) / statistics.median(full), "rows_differing": rows_differing}
    seconds = {"seconds_day": statistics.median(daily), "seconds_rebuild": statistics.median(full)}
    report("incremental", {**figures, **seconds})


if __name__ == "__main__":
    main()
