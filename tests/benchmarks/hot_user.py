"""One user with a tenth of all events beside evenly spread ones: `python -m tests.benchmarks.hot_user`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from infra.spark import SparkSettings, session
from tests.benchmarks.harness import report, seconds
from tests.benchmarks.logs import PeakMemory, Users, build, events_asked, in_a_process, warm

ROWS, USERS, ITEMS = 10_000_000, 100_000, 50_000


def measure(folder: Path, rows: int, distribution: Users) -> tuple[float, int]:
    """Seconds (median of three) and peak memory of a full build, in a session of its own."""
    lake, versions, arrivals = in_a_process(
        folder / distribution, rows=rows, users=min(USERS, rows // 10), items=ITEMS, distribution=distribution
    )
    with session(SparkSettings(), "benchmark") as spark:
        warm(spark, folder / f"{distribution}-warm")
        with PeakMemory() as memory:
            took = seconds(lambda: build(spark, lake, versions, arrivals, rebuild=True), 3)
    return took, memory.peak


def main() -> None:
    """Print the figures."""
    rows = events_asked(ROWS)
    with tempfile.TemporaryDirectory() as scratch:
        even, even_peak = measure(Path(scratch), rows, "uniform")
        hot, hot_peak = measure(Path(scratch), rows, "hot")
    ratios = {"time_ratio": hot / even, "memory_ratio": hot_peak / even_peak}
    report("hot_user", {**ratios, "seconds_uniform": even, "seconds_hot": hot, "megabytes_hot": hot_peak / 2**20})


if __name__ == "__main__":
    main()
