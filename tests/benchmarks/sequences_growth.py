"""How time and memory of events to sequences grow from 1 to 16 M events: `python -m tests.benchmarks.sequences_growth`.

200 k users at every size, so their histories grow with it. A session of its own for every size: a JVM does not give
back what a larger run took.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from infra.spark import SparkSettings, session
from tests.benchmarks.harness import report, seconds
from tests.benchmarks.logs import PeakMemory, build, events_asked, in_a_process, slope, warm

LARGEST, USERS, ITEMS = 16_000_000, 200_000, 50_000


def measure(folder: Path, rows: int) -> tuple[float, int]:
    """Seconds (median of three) and peak memory of a full build."""
    lake, versions, arrivals = in_a_process(
        folder / "log", rows=rows, users=USERS, items=ITEMS, distribution="lognormal"
    )
    with session(SparkSettings(), "benchmark") as spark:
        warm(spark, folder / "warm")
        with PeakMemory() as memory:
            took = seconds(lambda: build(spark, lake, versions, arrivals, rebuild=True), 3)
    return took, memory.peak


def main() -> None:
    """Print the figures."""
    sizes = [events_asked(LARGEST) // n for n in (16, 8, 4, 2, 1)]
    times, peaks = [], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            took, peak = measure(Path(scratch), size)
        times.append(took)
        peaks.append(peak)
    figures = {"time_slope": slope(sizes, times), "memory_slope": slope(sizes, peaks)}
    for size, took, peak in zip(sizes, times, peaks, strict=True):
        figures |= {f"seconds_{size}": took, f"megabytes_{size}": peak / 2**20}
    report("sequences_growth", figures)


if __name__ == "__main__":
    main()
