"""Negatives for a log that has only positives: drawn from what was popular before the event.

The item of draw j of event e is found from x = u(e, j) * W, u uniform and W the sum of popularity^0.75: the
first item, in index order, whose running sum exceeds x. Repeats are left out, which is drawing without
replacement. Where few items were popular, all of them are put into such an order at once, by growing
-log(1 - u(e, i)) / weight(i) (Efraimidis and Spirakis, 2006): the same distribution, and none is left undrawn.
u comes from a hash of the event's id, so retries, rebuilds and other cluster sizes draw the same.

Popularity: positive events of the 7 days before the event's day; where these have none, of the 7 days up to
the last one before it that has any; on the log's first day there is none, and nothing is drawn. Items unknown
to the vocabulary are never drawn. Of the items drawn, the event's own and the user's earlier positives are
left out (featurize.past), so an event may get fewer negatives than wanted.

Runs in Spark tasks: standard library, numpy and pyarrow. A task holds the few windows it used last, of the
items active in them, never the catalogue times the days.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import delta
from infra.commit import DataFile
from infra.lake import Lake
from infra.tables import POPULARITY

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Ints = NDArray[np.int64]

EXPONENT = 0.75
WINDOW_DAYS = 7
DRAWS, KEPT = 16, 8
"""Per wanted negative: items drawn, and distinct ones kept, from which the user's past positives still drop out."""
FEW_ITEMS = 128
"""A window of no more items than this is put in order whole."""

_WINDOWS_HELD = 4
_ODD, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def popularity(lake: Lake, positives: DataFrame, items: DataFrame, day: str) -> list[DataFile]:
    """Write (not commit) `popularity` as of run date `day`: positive events by day and item.

    An event counts when its item was in the vocabulary (`items`: arrival, index, key) as of the event's own
    arrival: what is learnt of an item later changes nothing.
    """
    from pyspark.sql import functions as F

    known = items.select(F.col("arrival").alias("known"), "index", F.col("key").alias("item"))
    counts = (
        positives.select("ds", "arrival", "item")
        .join(known, "item")
        .where("known <= arrival")
        .groupBy("ds", F.col("index").alias("item"))
        .agg(F.count("*").alias("events"))
        .withColumn("as_of", F.lit(day))
    )
    return delta.write(counts.repartition("ds").sortWithinPartitions("as_of", "ds", "item"), lake, POPULARITY)


def window_days(ds: str, days: Sequence[str]) -> list[str]:
    """Of `days` (sorted, those with positive events) the ones that an event of `ds` draws from.

    >>> window_days("2024-01-10", ["2024-01-02", "2024-01-03", "2024-01-09", "2024-01-10"])
    ['2024-01-03', '2024-01-09']
    >>> window_days("2024-03-01", ["2024-01-02", "2024-01-03"]), window_days("2024-01-02", ["2024-01-02"])
    (['2024-01-02', '2024-01-03'], [])
    """
    before = bisect_left(days, ds)
    if not before:
        return []
    first = _earlier(ds, WINDOW_DAYS)
    if days[before - 1] < first:
        first = _earlier(days[before - 1], WINDOW_DAYS - 1)
    return list(days[bisect_left(days, first) : before])


def _earlier(ds: str, days: int) -> str:
    return (date.fromisoformat(ds) - timedelta(days)).isoformat()


def with_draws(frame: DataFrame, root: str, files: Sequence[DataFile], negatives: int) -> DataFrame:
    """The positives (`ds`, `event_id`) with `draws`, distinct items in order, and `popular_until`, for the audit."""
    from pyspark.sql import functions as F
    from pyspark.sql.types import ArrayType, IntegerType, StringType, StructField, StructType

    by_day: dict[str, list[str]] = {}
    for file in files:
        by_day.setdefault(file.partition["ds"], []).append(f"{root}/{file.path}")
    days = sorted(by_day)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        windows = Windows(days, by_day)
        for batch in batches:
            draws, until = windows.draw(batch.column("ds"), batch.column("seed"), negatives)
            columns = [*(batch.column(n) for n in batch.schema.names if n != "seed"), draws, until]
            names = [*(n for n in batch.schema.names if n != "seed"), "draws", "popular_until"]
            yield pa.RecordBatch.from_arrays(columns, names=names)

    added = [StructField("draws", ArrayType(IntegerType())), StructField("popular_until", StringType())]
    schema = StructType([*frame.schema.fields, *added])
    return frame.withColumn("seed", F.xxhash64("event_id")).mapInArrow(task, schema)


class Windows:
    """The popularity windows, read from the files of their days when a row first needs one."""

    def __init__(self, days: Sequence[str], files: Mapping[str, Sequence[str]]) -> None:
        self.days, self.files = days, files
        self.held: dict[tuple[str, ...], tuple[NDArray[np.int32], NDArray[np.float64]]] = {}

    def draw(self, ds: pa.Array, seeds: pa.Array, negatives: int) -> tuple[pa.Array, pa.Array]:
        """Per row the distinct items of its draws, and the last day of its window (null without one)."""
        encoded = ds.dictionary_encode()
        day_B, seed_B = encoded.indices.to_numpy(), seeds.to_numpy().view(np.uint64)
        item_BD = np.zeros((len(ds), max(DRAWS * negatives, FEW_ITEMS)), np.int32)
        kept_BD = np.zeros(item_BD.shape, bool)
        until: list[str | None] = []
        for number, name in enumerate(encoded.dictionary.to_pylist()):
            window = window_days(name, self.days)
            until.append(window[-1] if window else None)
            if window:
                rows = np.flatnonzero(day_B == number)
                items, kept = drawn(seed_B[rows], *self._window(window), negatives)
                item_BD[rows, : items.shape[1]], kept_BD[rows, : items.shape[1]] = items, kept
        offsets = np.concatenate([[0], np.cumsum(kept_BD.sum(axis=1))]).astype(np.int32)
        last = pa.array(until, pa.string()).take(encoded.indices)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(item_BD[kept_BD])), last

    def _window(self, window: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        key = tuple(window)
        if key not in self.held:
            if len(self.held) >= _WINDOWS_HELD:
                del self.held[next(iter(self.held))]
            paths = [path for day in window for path in self.files[day]]
            self.held[key] = cumulated([pq.ParquetFile(path).read(["item", "events"]) for path in paths])
        return self.held[key]


def cumulated(days: Sequence[pa.Table]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """(items in index order, running sum of their events^0.75) over the tables of a window's days.

    >>> cumulated([pa.table({"item": [2, 5], "events": [1, 10]}), pa.table({"item": [5], "events": [6]})])
    (array([2, 5], dtype=int32), array([1., 9.]))
    """
    table = pa.concat_tables(days)
    items, place = np.unique(table["item"].to_numpy().astype(np.int32), return_inverse=True)
    events = np.zeros(len(items), np.int64)
    np.add.at(events, place, table["events"].to_numpy())
    return items, np.cumsum(events.astype(np.float64) ** EXPONENT)


def drawn(
    seeds: NDArray[np.uint64], items: NDArray[np.int32], running: NDArray[np.float64], negatives: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Row i: items in the order in which seed i draws them, and which of them count (repeats and the last do not)."""
    if len(items) > FEW_ITEMS:
        several = draw_items(seeds, items, running, DRAWS * negatives)
        return several, first_distinct(several, KEPT * negatives)
    ordered = order_items(seeds, items, running)
    return ordered, np.ones(ordered.shape, bool)


def order_items(seeds: NDArray[np.uint64], items: NDArray[np.int32], running: NDArray[np.float64]) -> NDArray[np.int32]:
    """Row i: all items in the order of a weighted draw without replacement for seed i."""
    waiting = -np.log1p(-uniform(seeds, len(items))) / np.diff(running, prepend=0.0)
    return items[np.argsort(waiting, axis=1, kind="stable")]


def draw_items(
    seeds: NDArray[np.uint64], items: NDArray[np.int32], running: NDArray[np.float64], draws: int
) -> NDArray[np.int32]:
    """Row i: `draws` items for seed i, independent of the other rows."""
    point = uniform(seeds, draws) * running[-1]
    place = np.searchsorted(running, point, side="right")
    return items[np.minimum(place, len(items) - 1)]


def uniform(seeds: NDArray[np.uint64], draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1): the SplitMix64 sequence of each seed (Steele, Lea and Flood, 2014), its upper 53 bits."""
    step = np.arange(1, draws + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = seeds[:, None] + step * _ODD
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def first_distinct(items: NDArray[np.int32], most: int) -> NDArray[np.bool_]:
    """Which entries of each row are there for the first time, the first `most` of them.

    >>> first_distinct(np.array([[7, 7, 5, 7, 6, 9]], np.int32), 3).tolist()
    [[True, False, True, False, True, False]]
    """
    order = np.argsort(items, axis=1, kind="stable")
    arranged = np.take_along_axis(items, order, axis=1)
    new = np.ones(items.shape, bool)
    new[:, 1:] = arranged[:, 1:] != arranged[:, :-1]
    out = np.empty_like(new)
    np.put_along_axis(out, order, new, axis=1)
    return out & (np.cumsum(out, axis=1) <= most)


def exploded(frame: DataFrame, items: DataFrame) -> DataFrame:
    """One row per positive (`draw` 0) and per negative (1 and on), which has its positive's event and context.

    The event's id, time, user and log fields are the positive's, also those that describe the positive's
    item (a price), since nobody logged the negative's. `items`: (index, key).
    """
    from pyspark.sql import functions as F

    rows = frame.select("*", F.posexplode(F.concat(F.array("item_index"), "negatives")).alias("draw", "index"))
    negative = F.col("draw") > 0
    rows = rows.join(items.select("index", "key"), "index", "left")
    return (
        rows.withColumn("item", F.when(negative, F.col("key")).otherwise(F.col("item")))
        .withColumn("item_index", F.col("index"))
        .withColumn("label", F.when(negative, F.lit(0)).otherwise(F.col("label")).cast("tinyint"))
        .withColumn("label_source", F.when(negative, F.lit("sampled")).otherwise(F.lit("observed")))
        .drop("index", "key", "negatives")
    )
