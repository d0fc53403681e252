"""Feature values to vocabulary indices, and which of them are really missing.

A small vocabulary travels with the task as Arrow arrays; a large one (users, items) is joined by Spark.
`indexed_batches` runs in Spark tasks: standard library, numpy and pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurize import vocabularies
from featurize.vocabularies import ITEM
from infra.lake import Lake
from infra.tables import UNKNOWN, Kind, column_of, samples

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CLOSURE_KEYS = 1 << 17
"""A vocabulary of more keys than this is joined by Spark and never sent with a task."""

Keys = Mapping[str, tuple[pa.Array, pa.Array]]
"""Field -> (keys, indices)."""


@dataclass(frozen=True)
class Catalogue:
    """The vocabularies as of a run."""

    sizes: Mapping[str, int]
    """Padding and unknown counted; a field without a key is not there."""
    small: Keys
    large: DataFrame
    """(field, key, index) of the fields that are not among `small`."""

    @classmethod
    def of(cls, spark: SparkSession, lake: Lake, versions: Mapping[str, int], as_of: str) -> Catalogue:
        """The vocabularies at the pinned versions, as of an arrival."""
        from pyspark.sql import functions as F

        sizes = vocabularies.sizes(lake, versions, as_of)
        small = [field for field, size in sizes.items() if size <= CLOSURE_KEYS]
        read = vocabularies.read(lake, versions, as_of, small)
        keys = {f: (t["key"].combine_chunks(), t["index"].combine_chunks()) for f, t in read.items()}
        frame = vocabularies.frame(spark, lake, versions, as_of).where(~F.col("field").isin(small))
        return cls(sizes, keys, frame.select("field", "key", "index"))


def indexed(frame: DataFrame, kinds: Sequence[tuple[str, Kind]], catalogue: Catalogue, day: str) -> DataFrame:
    """The frame as `samples` rows, with `draw` and `leaks`: values become indices, the missing mask is set.

    A column that holds integers already (the history; an item that was looked up before) is taken as it is.
    """
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import ArrayType, StringType

    given = dict(frame.dtypes)
    for name, kind in kinds:
        raw = given[column_of(name)] in ("string", "array<string>")
        if kind is not Kind.NUMERIC and raw and name in catalogue.sizes and name not in catalogue.small:
            frame = looked_up(frame, column_of(name), catalogue.large.where(f"field = '{name}'"))
    text = (StringType(), ArrayType(StringType()))
    known = {n for n, k in kinds if k is not Kind.NUMERIC and frame.schema[column_of(n)].dataType not in text}
    schema = samples(kinds).schema.append(pa.field("draw", pa.int32())).append(pa.field("leaks", pa.int32()))
    small = {name: catalogue.small[name] for name, _ in kinds if name in catalogue.small and name not in known}

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield indexed_batch(batch, kinds, small, known, schema, day)

    fixed = ["split", "event_id", "user", "ts", "label", "label_source", "draw", "leaks"]
    columns = [*fixed, *(column_of(n) for n, _ in kinds)]
    return frame.select(*columns).mapInArrow(task, from_arrow_schema(schema))


def looked_up(frame: DataFrame, column: str, keys: DataFrame) -> DataFrame:
    """The frame with the text of `column` (or each text of its lists) replaced by its index in `keys`, or unknown."""
    from pyspark.sql import functions as F

    keys = keys.select(F.col("key").alias("looked_up"), F.col("index").alias("found"))
    found = F.coalesce("found", F.lit(UNKNOWN))
    if dict(frame.dtypes)[column] == "string":
        met = frame.join(keys, F.col(column) == F.col("looked_up"), "left")
        return met.withColumn(column, F.when(F.col(column).isNotNull(), found)).drop("looked_up", "found")
    # Every distinct list once: its values are looked up, and put back in their places.
    lists = frame.select(F.col(column).alias("list")).where("list is not null").distinct()
    values = lists.select("list", F.posexplode("list").alias("place", "looked_up")).join(keys, "looked_up", "left")
    places = F.sort_array(F.collect_list(F.struct("place", found.alias("index"))))
    indices = values.groupBy("list").agg(F.transform(places, lambda p: p["index"]).alias("indices"))
    met = frame.join(indices, F.col(column) == F.col("list"), "left")
    value = F.when(F.col(column).isNotNull(), F.coalesce("indices", F.array().cast("array<int>")))
    return met.withColumn(column, value).drop("list", "indices")


def indexed_batch(
    batch: pa.RecordBatch,
    kinds: Sequence[tuple[str, Kind]],
    keys: Keys,
    known: set[str],
    schema: pa.Schema,
    day: str,
) -> pa.RecordBatch:
    """One batch of `indexed`; the fields in `known` hold indices already."""
    columns: dict[str, pa.Array] = {n: batch.column(n) for n in batch.schema.names if n in schema.names}
    missing = np.zeros(batch.num_rows, np.int64)
    for position, (name, kind) in enumerate(kinds):
        raw = batch.column(column_of(name))
        missing |= raw.is_null().to_numpy(zero_copy_only=False).astype(np.int64) << position
        given = kind is Kind.NUMERIC or name in known
        columns[column_of(name)] = raw if given else index_of(raw, *keys.get(name, (None, None)))
    columns |= {
        "as_of": pa.repeat(day, batch.num_rows),
        "item": columns[column_of(ITEM)],
        "missing": pa.array(missing),
    }
    return pa.RecordBatch.from_arrays([columns[f.name].cast(f.type) for f in schema], schema=schema)


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
