"""Rows of one event id: which is the event, which are its copies, and which contradict it.

Nothing here depends on how arrivals are batched. Rows of an id are taken in the order of (arrival, file,
position); a row is an event unless an event kept before it lies within reach: anywhere in an undated log, at
most W + 1 event days away in a dated one (the rows of one arrival are never farther apart). A row that is
none is a duplicate when every typed column is the same as in a kept event, and else a conflict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from featurize import delta
from featurize.contract import Contract
from featurize.reasons import Reason
from infra import tables
from infra.lake import Lake
from infra.tables import column_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

EVENT, DUPLICATE, CONFLICT = "event", "duplicate", "conflict"

_FOREVER = 10**9  # days


def mark(
    spark: SparkSession, lake: Lake, contract: Contract, parsed: DataFrame, prior: int | None, arrivals: Sequence[str]
) -> DataFrame:
    """The valid rows among `parsed` with `fate` (event, duplicate, conflict) and, of a conflict, its `why`.

    `prior` is the version of `events` that holds the arrivals before `arrivals`.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    reach = contract.rules.window_days + 1 if contract.dated else _FOREVER
    rows = parsed.where("reason is null and lines is null").withColumn("known", F.lit(False))
    rows = rows.withColumn("lacks", F.array().cast("array<string>"))  # these know every column of the contract
    if prior is not None and contract.dated:
        rows = rows.unionByName(_known_events(spark, lake, contract, prior, arrivals[0]), allowMissingColumns=True)
    by_day = Window.partitionBy("event_id", "ds").orderBy("arrival", "file", "position")
    rows = rows.withColumn("day", F.unix_date(F.col("ds").cast("date"))).repartition("event_id")
    rows = rows.withColumn("copy", F.row_number().over(by_day))
    rows = rows.withColumn("first", F.first(F.struct(*_payload(contract), "lacks")).over(by_day))
    # The lowest row of each day decides for the others, so that a list holds one entry per day at most.
    lowest = F.when(F.col("copy") == 1, F.struct("arrival", "file", "position", "day"))
    rows = rows.withColumn("days", F.sort_array(F.collect_list(lowest).over(Window.partitionBy("event_id"))))
    kept = F.aggregate("days", F.array().cast("array<int>"), lambda kept, row: _with_day(kept, row["day"], reach))
    rows = rows.withColumn("kept", F.when(F.size("days") > 1, kept))
    # An exact copy has its event's time, hence its day: the day's lowest row is the only one to compare with.
    day_kept = F.col("kept").isNull() | F.array_contains("kept", F.col("day"))
    fate = (
        F.when(day_kept & (F.col("copy") == 1), EVENT)
        .when(day_kept & reduce(and_, (_same(c) for c in _payload(contract))), DUPLICATE)
        .otherwise(CONFLICT)
    )
    rows = rows.withColumn("fate", fate).withColumn("why", F.when(F.col("fate") == CONFLICT, _why(contract, reach)))
    return rows.where("not known").drop("known", "day", "copy", "first", "days", "kept", "lacks")


def quarantined(marked: DataFrame, contract: Contract) -> DataFrame:
    """The conflicts as rows of quarantine; `raw` shows the typed columns unless they may name a person."""
    from pyspark.sql import functions as F

    shown = F.lit("")
    if not contract.personal:
        shown = F.substring(F.to_json(F.struct("event_id", *_payload(contract))), 1, 4096)
    return marked.where(F.col("fate") == CONFLICT).select(
        "arrival",
        "file",
        "position",
        F.lit(Reason.ID_CONFLICT.value).alias("reason"),
        F.col("why").alias("detail"),
        shown.alias("raw"),
    )


def _payload(contract: Contract) -> list[str]:
    """Every typed column that the log fills."""
    return ["user", "item", "ts", "type", "label", *(column_of(f.name) for f in contract.fields_from("log"))]


def _same(column: str) -> Column:
    """Equal to the day's lowest row, or not known of that: its arrival is older than the field."""
    from pyspark.sql import functions as F

    return F.col(column).eqNullSafe(F.col(f"first.{column}")) | F.array_contains("first.lacks", column)


def _why(contract: Contract, reach: int) -> Column:
    """Which columns differ (no values), and where the event stands that the row contradicts."""
    from pyspark.sql import functions as F

    def contradicted(row: Column) -> Column:
        is_event = F.col("kept").isNull() | F.array_contains("kept", row["day"])
        return is_event & (F.abs(row["day"] - F.col("day")) <= reach)

    near = F.filter("days", contradicted)
    same_day = F.filter(near, lambda d: d["day"] == F.col("day"))
    event = F.when(F.size(same_day) > 0, same_day[0]).otherwise(near[0])
    names = (F.when(~_same(c), F.lit(c)) for c in _payload(contract))
    differing = F.when(F.size(same_day) > 0, F.array_join(F.array_compact(F.array(*names)), ", ")).otherwise("the day")
    return F.format_string(
        "differs in %s from the event of the same id: arrival %s, %s, position %d",
        differing,
        event["arrival"],
        event["file"],
        event["position"],
    )


def _with_day(kept: Column, day: Column, reach: int) -> Column:
    """The days of an event id's kept events, `day` added unless one of them lies within reach."""
    from pyspark.sql import functions as F

    near = F.exists(kept, lambda other: F.abs(other - day) <= reach)
    return F.when(near, kept).otherwise(F.concat(kept, F.array(day)))


def _known_events(spark: SparkSession, lake: Lake, contract: Contract, prior: int, first: str) -> DataFrame:
    """The events that the arrivals from `first` on may repeat, with `lacks`: the columns older than which they are.

    Their rows lie W days before it at the earliest, events within reach of those W + 1 days before that,
    and these arrived a day before their date at the earliest.
    """
    from pyspark.sql import functions as F

    earliest = date.fromisoformat(first) - timedelta(days=2 * contract.rules.window_days + 2)
    arrivals = [a for a in lake.partitions("events", prior, "arrival") if earliest.isoformat() <= a < first]
    known = delta.read(spark, lake, tables.events(contract.kinds_from("log")), prior, {"arrival": arrivals})
    lacks = F.array().cast("array<string>")
    for arrival, absent in _absent_columns(lake, prior, arrivals, _payload(contract)).items():
        lacks = F.when(F.col("arrival") == arrival, F.array(*map(F.lit, absent))).otherwise(lacks)
    columns = ("arrival", "file", "position", "ds", "event_id", *_payload(contract))
    return known.select(*columns).withColumn("lacks", lacks).withColumn("known", F.lit(True))


def _absent_columns(
    lake: Lake, version: int, arrivals: Sequence[str], columns: Sequence[str]
) -> Mapping[str, list[str]]:
    """arrival -> the columns that its files, written before the contract had them, do not hold."""
    out: dict[str, list[str]] = {}
    for arrival in arrivals:
        written = pq.read_schema(Path(lake.files("events", version, {"arrival": arrival})[0])).names
        if absent := [c for c in columns if c not in written]:
            out[arrival] = absent
    return out
