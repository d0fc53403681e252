"""Users and items per arrival: how many, how many events each, and which were never seen before.

`first_seen` keeps each user and item once, under the arrival that brought it first. A day's new ones are
its own distinct keys less those kept before: exact whatever the vocabularies' minimum counts are, at the
cost of the distinct keys so far and never of the events so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurize import delta
from infra.commit import DataFile
from infra.lake import Lake
from infra.tables import FIRST_SEEN

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PERCENTILES = (10, 50, 90, 99)
KEYS = ("user", "item")


@dataclass(frozen=True)
class KeyCounts:
    """Of one arrival: distinct users and items, those seen for the first time, and events per user."""

    distinct: Mapping[str, int]
    new: Mapping[str, int]
    events_per_user: Mapping[str, float] | None
    """min, p10, p50, p90, p99, max, mean; None without users."""


def count(
    spark: SparkSession,
    lake: Lake,
    log: DataFrame,
    arrivals: Sequence[str],
    seen: tuple[int, Sequence[str]] | None,
) -> tuple[dict[str, KeyCounts], list[DataFile]]:
    """The counts of every arrival in `log`, and the files of `first_seen` (not committed) that hold its new keys.

    `seen`: the version of `first_seen` to stand on, and the arrivals before these; None for the first.
    """
    from pyspark.sql import functions as F

    parts = [log.select("arrival", F.lit(k).alias("kind"), F.col(k).alias("key")) for k in KEYS]
    keys = parts[0].unionByName(parts[1]).groupBy("arrival", "kind", "key").agg(F.count("*").alias("n")).persist()
    try:
        histogram: dict[tuple[str, str], dict[int, int]] = {}
        for r in keys.groupBy("arrival", "kind", "n").agg(F.count("*").alias("keys")).collect():
            histogram.setdefault((r.arrival, r.kind), {})[r.n] = r["keys"]
        first = keys.groupBy("kind", "key").agg(F.min("arrival").alias("arrival"))
        if seen is not None:
            version, before = seen
            known = delta.read(spark, lake, FIRST_SEEN, version, {"arrival": list(before)})
            first = first.join(known.select("kind", "key"), ["kind", "key"], "left_anti")
        placed = first.repartition("arrival", "kind").sortWithinPartitions("arrival", "kind", "key")
        files = delta.write(placed, lake, FIRST_SEEN)
    finally:
        keys.unpersist()
    return {a: _counts(a, histogram, files) for a in arrivals}, files


def _counts(
    arrival: str, histogram: Mapping[tuple[str, str], Mapping[int, int]], files: Sequence[DataFile]
) -> KeyCounts:
    distinct = {k: sum(histogram.get((arrival, k), {}).values()) for k in KEYS}
    new = {k: sum(f.rows for f in files if dict(f.partition) == {"arrival": arrival, "kind": k}) for k in KEYS}
    return KeyCounts(distinct, new, spread(histogram.get((arrival, "user"), {})))


def spread(histogram: Mapping[int, int]) -> dict[str, Any] | None:
    """Quantiles of a histogram {events: users}: the least number that q percent of the users do not exceed.

    >>> spread({1: 5, 2: 4, 40: 1})
    {'min': 1, 'p10': 1, 'p50': 1, 'p90': 2, 'p99': 40, 'max': 40, 'mean': 5.3}
    """
    users = sum(histogram.values())
    if not users:
        return None
    ordered = sorted(histogram.items())
    out: dict[str, Any] = {"min": ordered[0][0]}
    for percent in PERCENTILES:
        reached = 0
        for events, count in ordered:
            reached += count
            if 100 * reached >= percent * users:
                out[f"p{percent}"] = events
                break
    return {**out, "max": ordered[-1][0], "mean": sum(e * n for e, n in ordered) / users}
