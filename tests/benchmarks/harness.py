"""One form for every benchmark: `python -m tests.benchmarks.NAME --json` ends with one JSON line.

{"name": …, "figures": {…}, "machine": {…}}. Every comparison is a ratio of two things measured in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import psutil


def report(name: str, figures: Mapping[str, float]) -> None:
    """Print the figures, and with --json the line that tools read."""
    for figure, value in figures.items():
        print(f"{name} {figure}: {value:.4g}")
    if "--json" in sys.argv[1:]:
        machine = {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
            "python": platform.python_version(),
        }
        print(json.dumps({"name": name, "figures": dict(figures), "machine": machine}))


def seconds(work: Callable[[], object], repetitions: int = 5) -> float:
    """Median wall time of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def in_turns(runs: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median wall time of each, in turns, so that a busy machine is busy for all; a first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if repetition:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
