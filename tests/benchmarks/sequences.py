"""Events to sequences, tables in and out, beside DuckDB on as many threads: `python -m tests.benchmarks.sequences`.

Log-normal users, and Zipf users of whom one has a quarter of all events. The session is warm; the two take turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infra.spark import SparkSettings, session
from tests.benchmarks import duck
from tests.benchmarks.harness import report
from tests.benchmarks.logs import Users, build, events_asked, in_a_process, warm

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, USERS, ITEMS, REPETITIONS = 20_000_000, 200_000, 50_000, 3


def measure(spark: SparkSession, folder: Path, rows: int, distribution: Users) -> dict[str, float]:
    """Seconds of both, their ratio, and the rows in which they differ."""
    lake, versions, arrivals = in_a_process(
        folder / distribution, rows=rows, users=min(USERS, rows // 10), items=ITEMS, distribution=distribution
    )
    db, out = duck.connect(folder), folder / f"{distribution}-duckdb"
    out.mkdir()
    ours, theirs, made = [], [], 0
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        _, made = build(spark, lake, versions, arrivals, rebuild=True)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        duck.run(db, lake, versions, arrivals[-1], out)
        theirs.append(time.perf_counter() - started)
    return {
        f"seconds_{distribution}": statistics.median(ours),
        f"seconds_duckdb_{distribution}": statistics.median(theirs),
        f"ratio_{distribution}": statistics.median(ours) / statistics.median(theirs),
        f"rows_differing_{distribution}": duck.differing(db, lake, made, arrivals[-1], out),
    }


def main() -> None:
    """Print the figures."""
    rows = events_asked(ROWS)
    with tempfile.TemporaryDirectory() as scratch, session(SparkSettings(), "benchmark") as spark:
        folder = Path(scratch)
        warm(spark, folder / "warm")
        figures = measure(spark, folder, rows, "lognormal") | measure(spark, folder, rows, "zipf")
    worse = max(figures["ratio_lognormal"], figures["ratio_zipf"])
    differing = figures.pop("rows_differing_lognormal") + figures.pop("rows_differing_zipf")
    report("sequences", {"ratio_to_duckdb": worse, **figures, "rows_differing": differing})


if __name__ == "__main__":
    main()
