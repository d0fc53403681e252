"""Side features as an event could have seen them: snapshots by arrival, rows by the time they hold from.

An event of date ds sees the newest snapshot that had arrived by ds, else the first there is (a log is older
than the first side file kept of it). Within the snapshot, where the side file says from when on a row holds,
it sees the key's latest row with valid_from <= ts; a key without such a row has no features.

The join is one equi-join on (snapshot, key) with a range of time: Spark sends the side table to every task
or shuffles both sides, by their sizes. An event meets at most one row. Its cost grows with the rows per key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from featurize import delta
from featurize.vocabularies import ITEM, USER, side_snapshots
from infra.lake import Lake
from infra.tables import VALID_FROM, side_features

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from featurize.contract import Contract

LEAKS = {
    1: "a side snapshot of a later day than the event",
    2: "a side row that holds only after the event",
    4: "a history that reaches the event itself or beyond",
    8: "a popularity window that reaches the event's own day",
}
"""Bit of the column `leaks` -> what of the event's own future its row shows."""


def with_sides(
    spark: SparkSession, lake: Lake, contract: Contract, frame: DataFrame, inputs: Mapping[str, int], as_of: str
) -> DataFrame:
    """The frame (ds, ts, user, item) with the side features of its user and item, and `leaks`, the audit's bits."""
    frame = frame.withColumn("leaks", _leaks_of(frame.columns))
    for of, side in ((USER, contract.users), (ITEM, contract.items)):
        kinds = contract.kinds_from(f"{of}s")
        if side is not None and kinds:
            timed = side.time is not None
            name = side_features(of, kinds).name
            snapshots = side_snapshots(lake, name, inputs[name], as_of)
            table = side_features(of, kinds, timed)
            rows = delta.read(spark, lake, table, inputs[name], {"arrival": snapshots})
            frame = joined(frame, rows, of, snapshots, timed)
    return frame


def joined(frame: DataFrame, rows: DataFrame, key: str, snapshots: Sequence[str], timed: bool) -> DataFrame:
    """The frame with the features of the side `rows` (arrival, key, valid_from if `timed`) that its events saw.

    `leaks` is or-ed with what the rows that were met show of the future.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    since, until, met_arrival = F.col("side_from"), F.col("side_until"), F.col("side_id")["arrival"]
    # One column for both: on a partition column as it is, Spark would plan the left side twice, to prune with it.
    rows = rows.withColumn("side_id", F.struct("arrival", "key")).drop("arrival", "key")
    due = F.struct(snapshot_of(F.col("ds"), snapshots).alias("arrival"), F.col(key).alias("key"))
    same = F.col("side_id") == due
    leaks = F.when((met_arrival > F.col("ds")) & (met_arrival != snapshots[0]), 1).otherwise(0)
    if timed:
        following = Window.partitionBy("side_id").orderBy("side_from")
        rows = rows.withColumnRenamed(VALID_FROM.name, "side_from")
        rows = rows.withColumn("side_until", F.lead("side_from").over(following))
        same &= (F.col("ts") >= since) & (until.isNull() | (F.col("ts") < until))
        leaks = leaks.bitwiseOR(F.when(since > F.col("ts"), 2).otherwise(0))
    met = frame.join(rows, same, "left").withColumn("leaks", F.col("leaks").bitwiseOR(leaks))
    return met.drop("side_id", "side_from", "side_until")


def snapshot_of(ds: Column, snapshots: Sequence[str]) -> Column:
    """The arrival of the snapshot that an event of date `ds` sees; `snapshots` are sorted, the first stands in."""
    from pyspark.sql import functions as F

    arrived = F.filter(F.array(*map(F.lit, snapshots)), lambda arrival: arrival <= ds)
    return F.coalesce(F.array_max(arrived), F.lit(snapshots[0]))


def _leaks_of(columns: Sequence[str]) -> Column:
    """The audit's bits for those of `past_until` and `popular_until` that the frame has."""
    from pyspark.sql import functions as F

    found = F.lit(0)
    if "past_until" in columns:
        found = found.bitwiseOR(F.when(F.col("past_until") >= F.col("ts"), 4).otherwise(0))
    if "popular_until" in columns:
        found = found.bitwiseOR(F.when(F.col("popular_until") >= F.col("ds"), 8).otherwise(0))
    return found
