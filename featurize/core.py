"""The iterated k-core: users and items with fewer than k events are left out until none is left to remove.

The largest such set is unique, so it does not matter in which order they go. Only the items that are still in
travel between the driver and the tasks: a user is in as long as k of their events are of such items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from featurize import cutting, delta, merging
from infra.tables import FIRST_INDEX

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from featurize.histories import Files


def core_items(spark: SparkSession, files: Files, cap: int, k: int) -> np.ndarray:
    """Which item indices are in the k-core of the histories' last `cap` events; `files` are those of each bucket.

    Unknown items are in no core: which one it was is not known.
    """
    alive: np.ndarray | None = None
    while True:
        enough = _total(spark, files, cap, k, alive) >= k
        enough[:FIRST_INDEX] = False
        if alive is not None and np.array_equal(enough, alive):
            return enough
        alive = enough


def _total(spark: SparkSession, files: Files, cap: int, k: int, alive: np.ndarray | None) -> np.ndarray:
    buckets = files.buckets

    def work(bucket: int) -> Iterator[bytes]:
        yield counts(cutting.read(buckets[bucket], ["user", "items"]), cap, k, alive).tobytes()

    found = [np.frombuffer(p, np.int64) for p in delta.each(spark, len(buckets), work, files.size)]
    size = max(FIRST_INDEX, *map(len, found)) if alive is None else len(alive)
    total: np.ndarray = sum((np.pad(f, (0, size - len(f))) for f in found), np.zeros(size, np.int64))
    return total


def counts(parts: Sequence[cutting.Part], cap: int, k: int, alive: np.ndarray | None) -> np.ndarray:
    """Per item index the events in a bucket by users who have k events of items that are alive (None: all known)."""
    whole = merging.merged([table for _, table in parts], ["items"])
    items = whole.columns["items"].astype(np.int64)
    if alive is None:
        alive = np.arange(int(items.max(initial=0)) + 1) >= FIRST_INDEX
    starts = np.maximum(whole.ends - whole.counts.sum(axis=0), whole.ends - cap)
    kept = cutting.in_core(items, starts, whole.ends, alive, k)
    return np.bincount(items[kept], minlength=len(alive)).astype(np.int64)
