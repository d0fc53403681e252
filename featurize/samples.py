"""Labelled impressions for the ranking models: field indices and which fields are really missing.

Every sample carries the fields `user` and `item` and the contract's own, in that order; bit i of the
missing mask is set when field i is absent or null in the log. A value outside its vocabulary is index
1 (unknown) and not missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurize import delta, vocabularies
from featurize.contract import Contract
from featurize.settings import SampleSettings
from featurize.vocabularies import ITEM, USER, side_partition
from infra.commit import commit, write_file
from infra.errors import ConfigError, DataRefused
from infra.lake import Lake
from infra.tables import FIELDS, UNKNOWN, Kind, column_of, events, samples, side_features

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def field_kinds(contract: Contract) -> list[tuple[str, Kind]]:
    """(name, kind) of every field of a sample, in mask order."""
    return [(USER, Kind.CATEGORICAL), (ITEM, Kind.CATEGORICAL), *((f.name, f.kind) for f in contract.fields)]


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
    """Write `samples` and `fields` as of run date `day`; returns versions and a report (rows, missing rates)."""
    if contract.label is None:
        raise ConfigError(
            "label: the contract has no label rule, so there are no observed labels; add one or set ranking: null"
        )
    kinds = field_kinds(contract)
    table = samples(kinds)
    labelled = _split(_labelled(spark, lake, contract, inputs, arrivals), settings, day)
    vocabulary = vocabularies.read(lake, inputs, arrivals[-1])
    frame = (
        _indexed(labelled, kinds, vocabulary, day)
        .repartition("split")
        .sortWithinPartitions("as_of", "split", "ts", "event_id")
    )
    frame = frame.persist()
    try:
        files = delta.write(frame, lake, table)
        rows = {s: sum(f.rows for f in files if f.partition["split"] == s) for s in ("train", "valid", "test")}
        if not rows["train"]:
            raise DataRefused(f"samples: no labelled event to train on before {day}; check samples.split and the dates")
        described = _describe(frame, kinds, vocabulary, day)
    finally:
        frame.unpersist()
    field_file = write_file(lake.path(FIELDS.name), FIELDS, {"as_of": day}, [described])
    versions = {
        t.name: commit(lake, t, f, replace={"as_of": [day]}, metadata=metadata)
        for t, f in ((table, files), (FIELDS, [field_file]))
    }
    rates = dict(zip(described["name"].to_pylist(), described["missing_rate"].to_pylist(), strict=True))
    return versions, {"rows": rows, "missing_rates": rates}


def _labelled(
    spark: SparkSession, lake: Lake, contract: Contract, inputs: Mapping[str, int], arrivals: Sequence[str]
) -> DataFrame:
    """Labelled events with the side features of their user and item as of the run."""
    from pyspark.sql import functions as F

    where = {"arrival": list(arrivals)}
    frame = delta.read(spark, lake, events(contract.kinds_from("log")), inputs["events"], where).where(
        "label is not null"
    )
    for of in (USER, ITEM):
        kinds = contract.kinds_from(f"{of}s")
        if kinds:
            table = side_features(of, kinds)
            version = inputs[table.name]
            side = delta.read(spark, lake, table, version, side_partition(lake, table.name, version, arrivals[-1]))
            frame = frame.join(side.drop("arrival").withColumnRenamed("key", of), of, "left")
    return frame.withColumn(column_of(USER), F.col(USER)).withColumn(column_of(ITEM), F.col(ITEM))


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


def _indexed(
    frame: DataFrame, kinds: Sequence[tuple[str, Kind]], vocabulary: Mapping[str, pa.Table], day: str
) -> DataFrame:
    """The frame as `samples` rows: values become indices, and the missing mask is set."""
    from pyspark.sql.pandas.types import from_arrow_schema

    schema = samples(kinds).schema
    keys = {f: (t["key"].combine_chunks(), t["index"].combine_chunks()) for f, t in vocabulary.items()}

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            columns: dict[str, pa.Array] = {n: batch.column(n) for n in ("split", "event_id", "user", "ts", "label")}
            missing = np.zeros(batch.num_rows, np.int64)
            for position, (name, kind) in enumerate(kinds):
                raw = batch.column(column_of(name))
                missing |= raw.is_null().to_numpy(zero_copy_only=False).astype(np.int64) << position
                columns[column_of(name)] = raw if kind is Kind.NUMERIC else index_of(raw, *keys.get(name, (None, None)))
            columns |= {
                "as_of": pa.repeat(day, batch.num_rows),
                "item": columns[column_of(ITEM)],
                "label_source": pa.repeat("observed", batch.num_rows),
                "missing": pa.array(missing),
            }
            yield pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in schema], schema=schema)

    names = ["split", "event_id", "user", "ts", "label", *(column_of(n) for n, _ in kinds)]
    return frame.select(*names).mapInArrow(task, from_arrow_schema(schema))


def index_of(values: pa.Array, keys: pa.Array | None, indices: pa.Array | None) -> pa.Array:
    """Vocabulary indices of text values (or lists of them); unknown is 1, null stays null.

    >>> index_of(pa.array(["b", "z", None]), pa.array(["a", "b"]), pa.array([2, 3], pa.int32())).to_pylist()
    [3, 1, None]
    """
    if pa.types.is_list(values.type):
        # .flatten() leaves out the values under null lists; the offsets are rebuilt to match
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        mask = values.is_null() if values.null_count else None
        return pa.ListArray.from_arrays(offsets, index_of(values.flatten(), keys, indices), mask=mask)
    if keys is None or indices is None:
        found = pa.nulls(len(values), pa.int32())
    else:
        found = indices.take(pc.index_in(values, value_set=keys))
    return pc.if_else(
        values.is_null(), pa.scalar(None, pa.int32()), pc.fill_null(found, pa.scalar(UNKNOWN, pa.int32()))
    )


def _describe(
    frame: DataFrame, kinds: Sequence[tuple[str, Kind]], vocabulary: Mapping[str, pa.Table], day: str
) -> pa.Table:
    """The `fields` rows: statistics over the training rows."""
    from pyspark.sql import functions as F

    aggregates = [F.count("*").alias("rows")]
    for name, kind in kinds:
        column = F.col(column_of(name))
        aggregates.append(F.sum(column.isNull().cast("long")).alias(f"missing_{name}"))
        if kind is Kind.NUMERIC:
            aggregates += [F.avg(column).alias(f"mean_{name}"), F.stddev_pop(column).alias(f"std_{name}")]
    row = frame.where("split = 'train'").agg(*aggregates).first()
    assert row is not None
    fields = []
    for position, (name, kind) in enumerate(kinds):
        numeric = kind is Kind.NUMERIC
        if numeric and not all(math.isfinite(row[f"{s}_{name}"] or 0.0) for s in ("mean", "std")):
            raise DataRefused(f"fields: {name} has values too large for a mean and deviation; correct them in the log")
        keys = vocabulary.get(name)
        fields.append(
            {
                "as_of": day,
                "position": position,
                "name": name,
                "kind": kind.value,
                "size": 0 if numeric else vocabularies.FIRST_INDEX + (keys.num_rows if keys is not None else 0),
                "mean": float((row[f"mean_{name}"] if numeric else 0.0) or 0.0),
                "std": float((row[f"std_{name}"] if numeric else 1.0) or 1.0),
                "missing_rate": row[f"missing_{name}"] / row["rows"],
            }
        )
    return pa.Table.from_pylist(fields, schema=FIELDS.schema)
