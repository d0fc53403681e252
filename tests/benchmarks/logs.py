"""Events tables of any size for the benchmarks, made with numpy and committed as ingestion would leave them.

Also what those benchmarks share: the two stages under test, a warm session, and peak memory.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import psutil
import pyarrow as pa

from featurize import histories, sequences
from featurize.contract import Contract
from featurize.settings import SequenceSettings
from infra.commit import commit, write_file
from infra.lake import Lake
from infra.tables import ITEMS, events

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Users = Literal["lognormal", "zipf", "uniform", "hot"]
"""How events spread over users: log-normal (sigma 1); Zipf, of whom one user has a quarter; evenly; evenly but for
one user with a tenth."""

FIRST = date(2026, 1, 1)
LATE_SHARE = 0.01
_DAY_US = 86400 * 10**6
_HEX = np.frombuffer("".join(f"{n:02x}" for n in range(256)).encode(), np.uint16)


def days(count: int) -> list[str]:
    """The arrivals of a log of `count` days."""
    return [(FIRST + timedelta(days=n)).isoformat() for n in range(count)]


def fill(
    lake: Lake, *, rows: int, users: int, items: int, distribution: Users, day_count: int = 31, seed: int = 0
) -> tuple[dict[str, int], list[str]]:
    """Fill `events` and `items`; returns the pinned versions and the arrivals.

    One event in a hundred arrives a day late. Times are whole milliseconds. Each item enters the vocabulary with
    the first arrival.
    """
    rng = np.random.default_rng(seed)
    arrivals, table = days(day_count), events([])
    share = _user_shares(distribution, users, rng)
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    names = pa.array([f"u{n:07d}" for n in rng.permutation(users)])
    keys = pa.array([f"item-{n:06d}" for n in range(items)])
    files = []
    for n, (ds, late) in enumerate((d, late) for d in range(day_count) for late in (False, True)):
        if late and ds + 1 == day_count:
            continue
        daily = rows // day_count
        count = int(daily * LATE_SHARE) if late else daily - int(daily * LATE_SHARE)
        draw = np.random.default_rng((seed, n))
        user = _draw(draw, share, count)
        ts = (draw.integers(0, 86_400_000, count) + ds * 86_400_000) * 1000 + _start()
        order = np.lexsort((ts, user))
        columns = {
            "event_id": _ids(draw, count),
            "user": names.take(pa.array(user[order])),
            "item": keys.take(pa.array(_draw(draw, popularity / popularity.sum(), count))),
            "ts": pa.array(ts[order], pa.timestamp("us", tz="UTC")),
            "type": pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), ["click"]).cast(pa.string()),
            "label": pa.nulls(count, pa.int8()),
            "file": pa.DictionaryArray.from_arrays(np.zeros(count, np.int8), ["log.jsonl"]).cast(pa.string()),
            "position": pa.array(np.arange(count)),
        }
        partition = {"arrival": arrivals[ds + late], "ds": arrivals[ds]}
        files.append(write_file(lake.path(table.name), table, partition, list(_pieces(pa.table(columns)))))
    version = commit(lake, table, files, replace={"arrival": arrivals}, metadata={})
    vocabulary = pa.table({"index": pa.array(np.arange(items) + 2, pa.int32()), "key": keys})
    file = write_file(lake.path(ITEMS.name), ITEMS, {"arrival": arrivals[0]}, [vocabulary])
    return {
        "events": version,
        "items": commit(lake, ITEMS, [file], replace={"arrival": [arrivals[0]]}, metadata={}),
    }, arrivals


def _start() -> int:
    return (FIRST - date(1970, 1, 1)).days * _DAY_US


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, 1 << 20):
        yield table.slice(start, 1 << 20)


def _user_shares(distribution: Users, users: int, rng: np.random.Generator) -> np.ndarray:
    if distribution == "lognormal":
        weight = rng.lognormal(0.0, 1.0, users)
    elif distribution == "zipf":
        weight = 1 / np.arange(1, users + 1)
        weight[0] = weight[1:].sum() / 3
    else:
        weight = np.ones(users)
        if distribution == "hot":
            weight[0] = weight[1:].sum() / 9
    share: np.ndarray = weight / weight.sum()
    return share


def _draw(rng: np.random.Generator, share: np.ndarray, count: int) -> np.ndarray:
    return np.minimum(np.searchsorted(np.cumsum(share), rng.random(count)), len(share) - 1).astype(np.int32)


def _ids(rng: np.random.Generator, count: int) -> pa.Array:
    """32 hex digits each, as the ids that ingestion makes."""
    text = _HEX[rng.integers(0, 256, (count, 16), np.uint8)].tobytes()
    offsets = np.arange(count + 1, dtype=np.int32) * 32
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


CONTRACT = Contract.model_validate(
    {
        "name": "benchmark",
        "source": {"path": "{date}", "format": "json"},
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "ms"},
    }
)
SETTINGS = SequenceSettings()


def in_a_process(root: Path, **options: Any) -> tuple[Lake, dict[str, int], list[str]]:
    """`fill` in a process of its own, so that this one's memory stays as it was."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        versions, arrivals = pool.submit(_fill, str(root), options).result()
    return Lake(root), versions, arrivals


def _fill(root: str, options: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    return fill(Lake(root), **options)


def build(
    spark: SparkSession,
    lake: Lake,
    versions: dict[str, int],
    arrivals: list[str],
    state: histories.State | None = None,
    *,
    rebuild: bool = False,
) -> tuple[histories.Built, int]:
    """Histories and sequences as of the last arrival, committed; what the pipeline's two stages do."""
    day = arrivals[-1]
    built = histories.build(spark, lake, CONTRACT, SETTINGS, versions, arrivals, day, state, {}, rebuild=rebuild)
    made, _ = sequences.build(spark, lake, SETTINGS, built.as_of, day, {})
    return built, made["sequences"]


def events_asked(default: int) -> int:
    """The number after --events, else the default."""
    return int(sys.argv[sys.argv.index("--events") + 1]) if "--events" in sys.argv else default


def warm(spark: SparkSession, folder: Path) -> None:
    """A small run, so that what is measured finds a JVM and Python workers that have run before."""
    lake, versions, arrivals = in_a_process(
        folder, rows=200_000, users=5_000, items=1_000, distribution="uniform", day_count=6
    )
    for _ in range(2):
        build(spark, lake, versions, arrivals, rebuild=True)


class PeakMemory:
    """The largest sum of this process, the JVM and the Python workers, shared pages counted once; in bytes."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.peak = max(self.peak, total)


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least squares of log(value) over log(size).

    >>> round(slope([1, 2, 4], [3, 6, 12]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
