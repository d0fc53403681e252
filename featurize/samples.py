"""Labelled impressions for the ranking models: field indices and which fields are really missing.

Every sample carries the fields `user` and `item`, the contract's own, and `history` if it is asked for, in
that order; bit i of the missing mask is set when field i is absent or null in the log. A value outside its
vocabulary is index 1 (unknown) and not missing. Vocabularies are as of the run date, for older events too;
everything else is as the event could have seen it (featurize.point_in_time, .past, .negatives).

Labels are observed (`label_source`), or, where the contract has no label rule, every event of a target type
is an observed positive and its negatives are sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurize import delta, negatives, past, vocabularies
from featurize.field_statistics import describe
from featurize.indexing import Catalogue, indexed, looked_up
from featurize.point_in_time import with_sides
from featurize.time_fields import with_time_fields
from featurize.vocabularies import ITEM, USER
from infra.commit import DataFile, commit, write_file
from infra.errors import DataRefused, EmptySplit
from infra.lake import Lake
from infra.tables import FIELDS, HISTORY, ITEMS, MISSING_RATES, POPULARITY, Kind, column_of, events, samples

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from featurize.contract import Contract
    from featurize.settings import SampleSettings

ROWS_PER_TASK = 1 << 20
"""Events per task of the shuffles. Their number follows from the data alone, so that every run has the same files."""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class _Run:
    """What one build is a function of."""

    spark: SparkSession
    lake: Lake
    contract: Contract
    settings: SampleSettings
    inputs: Mapping[str, int]
    arrivals: Sequence[str]
    day: str
    tasks: int

    @property
    def sampled(self) -> bool:
        """Whether the log has only positives."""
        return self.contract.label is None

    def items(self) -> DataFrame:
        """(arrival, index, key) of the items known as of the run."""
        return vocabularies.frame(self.spark, self.lake, self.inputs, self.arrivals[-1], (ITEMS,)).drop("field")


def field_kinds(contract: Contract, history: int = 0) -> list[tuple[str, Kind]]:
    """(name, kind) of every field of a sample, in mask order."""
    own = [(f.name, f.kind) for f in contract.fields]
    return [(USER, Kind.CATEGORICAL), (ITEM, Kind.CATEGORICAL), *own, *([(HISTORY, Kind.MULTI)] if history else [])]


def build(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    settings: SampleSettings,
    inputs: Mapping[str, int],
    arrivals: Sequence[str],
    day: str,
    metadata: dict[str, Any],
) -> tuple[dict[str, int], dict[str, Any]]:
    """Write `samples` and what describes them as of run date `day`; returns versions and a report.

    The tables: samples, fields, missing_rates, and popularity where negatives are sampled. Raises DataRefused
    when there is nothing to train on, AuditError when a row shows something of its event's own future.
    """
    tasks = 1 + _event_count(lake, inputs["events"], arrivals) // ROWS_PER_TASK
    run = _Run(spark, lake, contract, settings, inputs, arrivals, day, tasks)
    kinds, table = field_kinds(contract, settings.history), samples(field_kinds(contract, settings.history))
    catalogue = Catalogue.of(spark, lake, inputs, arrivals[-1])
    sizes = {**catalogue.sizes, HISTORY: catalogue.sizes[ITEM]}
    rows, popular = _rows(run)
    frame = indexed(rows, kinds, catalogue, day)
    frame = frame.repartition(tasks, "event_id").sortWithinPartitions("as_of", "split", "ts", "event_id", "draw")
    frame = frame.persist()
    try:
        files = delta.write(frame, lake, table)
        written = {s: sum(f.rows for f in files if f.partition["split"] == s) for s in SPLITS}
        if not written["train"]:
            raise EmptySplit(f"samples: no labelled event to train on before {day}; check samples.split and the dates")
        described = describe(frame, kinds, sizes, day)
    finally:
        frame.unpersist()
    rates = dict(zip(*(described.fields[c].to_pylist() for c in ("name", "missing_rate")), strict=True))
    report: dict[str, Any] = {"rows": written, "missing_rates": rates}
    if run.sampled:
        report["negatives"] = _negatives(described.rows, settings.negatives, day)
    described_files = {
        t: [write_file(lake.path(t.name), t, {"as_of": day}, [rows])]
        for t, rows in ((FIELDS, described.fields), (MISSING_RATES, described.missing_rates))
    }
    all_files = {table: files, **described_files, **({POPULARITY: popular} if run.sampled else {})}
    versions = {
        t.name: commit(lake, t, of_table, replace={"as_of": [day]}, metadata=metadata, renew=True)
        for t, of_table in all_files.items()
    }
    return versions, report


def _negatives(rows: Mapping[tuple[str, str], int], wanted: int, day: str) -> dict[str, int]:
    """How many negatives were wanted and how many were found; DataRefused without any to train on."""
    if not rows.get(("train", "sampled")):
        raise DataRefused(
            f"samples: no negative could be drawn for the training events before {day}: what was popular on the days "
            "before an event is drawn from, and these are all of the first day or of one item; take a later run date"
        )
    count = {source: sum(n for (_, s), n in rows.items() if s == source) for source in ("observed", "sampled")}
    return {"wanted": wanted * count["observed"], "drawn": count["sampled"]}


def _rows(run: _Run) -> tuple[DataFrame, list[DataFile]]:
    """The samples with their raw values in the field columns, and the files of `popularity`."""
    from pyspark.sql import functions as F

    settings, popular = run.settings, []
    rows = _labelled(run)
    if run.sampled:
        popular = negatives.popularity(run.lake, rows, run.items(), run.day)
        rows = negatives.with_draws(rows.drop("arrival"), run.lake.path(POPULARITY.name), popular, settings.negatives)
    looks_back = run.sampled or settings.history > 0
    if looks_back:
        rows = looked_up(rows.withColumn("item_index", F.col("item")), "item_index", run.items())
        rows = rows.repartition(run.tasks, "user")  # the one shuffle by user; the windows of the split use it too
    rows = _split(rows, settings, run.day)
    if looks_back:
        rows = past.with_past(rows, settings.history, settings.negatives if run.sampled else 0)
    rows = rows.where("split is not null")
    if run.sampled:
        rows = negatives.exploded(rows, run.items())
    else:
        rows = rows.withColumn("draw", F.lit(0)).withColumn("label_source", F.lit("observed"))
    rows = with_sides(run.spark, run.lake, run.contract, rows, run.inputs, run.arrivals[-1])
    rows = with_time_fields(rows, run.contract)
    rows = rows.withColumn(column_of(USER), F.col("user"))
    rows = rows.withColumn(column_of(ITEM), F.col("item_index" if looks_back else "item"))
    return rows.withColumn(column_of(HISTORY), F.col("history")) if settings.history else rows, popular


def _labelled(run: _Run) -> DataFrame:
    """The events that become samples: those with a label, or else those of a target type, as positives."""
    from pyspark.sql import functions as F

    log = events(run.contract.kinds_from("log"))
    rows = delta.read(run.spark, run.lake, log, run.inputs["events"], {"arrival": list(run.arrivals)})
    if not run.sampled:
        rows = rows.where("label is not null")
    else:
        rows = rows.where(F.col("type").isin(*run.contract.targets)) if run.contract.targets else rows
        rows = rows.withColumn("label", F.lit(1).cast("tinyint"))
    return rows.drop("file", "position", "type")  # Python tasks and shuffles would carry them along


def _event_count(lake: Lake, version: int, arrivals: Sequence[str]) -> int:
    """Events of these arrivals, as the Delta log counts them."""
    wanted = set(arrivals)
    actions = pa.table(lake.open("events", version).get_add_actions()).to_pylist()
    return sum(a["num_records"] for a in actions if a["partition"]["arrival"] in wanted)


def _split(frame: DataFrame, settings: SampleSettings, day: str) -> DataFrame:
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    if settings.split == "temporal":
        valid = F.date_sub(F.lit(day).cast("date"), 1).cast("string")
        split = (
            F.when(F.col("ds") == day, "test").when(F.col("ds") == valid, "valid").when(F.col("ds") < valid, "train")
        )
        return frame.withColumn("split", split).where("split is not null")
    by_user = Window.partitionBy("user")
    latest = by_user.orderBy(F.desc("ts"), F.desc("event_id"))
    frame = frame.withColumn("n", F.count("*").over(by_user)).withColumn("r", F.row_number().over(latest))
    # 0.07 * 100 is a little more than 7 in floating point, and must not round up to 8
    test = F.ceil(F.col("n") * settings.test_share - 1e-9)
    valid = F.ceil((F.col("n") - test) * settings.valid_share - 1e-9)
    split = F.when(F.col("r") <= test, "test").when(F.col("r") <= test + valid, "valid").otherwise("train")
    return frame.withColumn("split", split).drop("n", "r")
