"""Append-only vocabularies of items and field values.

A key gets its index once, for ever. Order of indices: (arrival on which the key reached its minimum
count, key bytes); 0 is padding and 1 unknown in every vocabulary, so keys start at 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from featurize import delta
from featurize.contract import Contract
from featurize.settings import VocabularySettings
from infra.commit import commit
from infra.errors import DataRefused
from infra.lake import Lake
from infra.tables import FIELD_VALUES, FIRST_INDEX, ITEMS, Kind, column_of, events, side_features

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

ITEM, USER = "item", "user"
"""The two fields that every sample has beside the contract's own."""


@dataclass(frozen=True)
class Vocabularies:
    """Versions of `items` and `field_values`, sizes with padding and unknown, and the items' hash."""

    versions: dict[str, int]
    sizes: dict[str, int]
    items_hash: str


def build(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    settings: VocabularySettings,
    inputs: Mapping[str, int],
    arrivals: Sequence[str],
    prior: Mapping[str, int] | None,
    metadata: dict[str, Any],
) -> Vocabularies:
    """Add the keys that reached their minimum count by the last of `arrivals`.

    `inputs` holds the pinned versions of events and side features, `arrivals` all arrivals as of the run,
    `prior` the versions of items and field_values published before. What a run that was never published
    left behind is removed.
    """
    as_of = arrivals[-1]
    known = _known(lake, prior)
    covered = pc.max(known["arrival"]).as_py() or ""
    late = max(covered, as_of)
    replaced = _replaced(lake, arrivals, covered) or [late]
    fresh = _reached(_counts(spark, lake, contract, inputs, arrivals), settings, covered, late)
    fresh = fresh.join(spark.createDataFrame(known.select(["field", "key"])), ["field", "key"], "left_anti")
    taken = pc.value_counts(known["field"].combine_chunks()).to_pylist()
    indexed = _index(fresh, {e["values"]: FIRST_INDEX + e["counts"] for e in taken})
    kept = known.filter(pc.is_in(known["arrival"], pa.array(replaced)))
    indexed = indexed.unionByName(spark.createDataFrame(kept))
    indexed = indexed.coalesce(1).sortWithinPartitions("arrival", "field", "index").persist()
    try:
        files = {
            table: delta.write(indexed.where(f"field {condition} '{ITEM}'"), lake, table)
            for table, condition in ((ITEMS, "="), (FIELD_VALUES, "<>"))
        }
    finally:
        indexed.unpersist()
    old = pc.unique(known.filter(pc.equal(known["field"], ITEM))["arrival"]).to_pylist()
    if not any(arrival <= as_of for arrival in (*old, *(f.partition["arrival"] for f in files[ITEMS]))):
        raise DataRefused("items: no item reached vocabularies.min_item_count; lower it or check the log")
    versions = {t.name: commit(lake, t, f, replace={"arrival": replaced}, metadata=metadata) for t, f in files.items()}
    vocabulary = read(lake, versions, as_of)
    sizes = {field: FIRST_INDEX + keys.num_rows for field, keys in vocabulary.items()}
    return Vocabularies(versions, sizes, hash_of(vocabulary[ITEM]))


def read(lake: Lake, versions: Mapping[str, int], as_of: str) -> dict[str, pa.Table]:
    """Field -> table (index, key) in index order, as of an arrival; the item vocabulary is the field `item`."""
    both = _known(lake, versions)
    both = both.filter(pc.less_equal(both["arrival"], as_of)).sort_by([("field", "ascending"), ("index", "ascending")])
    out = {}
    for field in pc.unique(both["field"]).to_pylist():
        out[field] = both.filter(pc.equal(both["field"], field)).select(["index", "key"])
    return out


def hash_of(vocabulary: pa.Table) -> str:
    """SHA-256 over (index, key) in index order, first 16 hex digits: models carry it and loaders compare it."""
    sha = hashlib.sha256()
    for index, key in zip(vocabulary["index"].to_pylist(), vocabulary["key"].to_pylist(), strict=True):
        data = key.encode()
        sha.update(b"%d %d " % (index, len(data)) + data)  # the length, because a key may hold any character
    return sha.hexdigest()[:16]


def _known(lake: Lake, prior: Mapping[str, int] | None) -> pa.Table:
    """(arrival, field, index, key) of what was published before."""
    if prior is None:
        return FIELD_VALUES.schema.empty_table()
    items = lake.read(ITEMS.name, prior[ITEMS.name])
    items = items.append_column("field", pa.array([ITEM] * items.num_rows, pa.string()))
    values = lake.read(FIELD_VALUES.name, prior[FIELD_VALUES.name])
    names = FIELD_VALUES.schema.names
    return pa.concat_tables([items.select(names), values.select(names)], promote_options="permissive")


def _replaced(lake: Lake, arrivals: Sequence[str], covered: str) -> list[str]:
    """The arrivals to write: those after the covered ones, and any that an unpublished run has left in a table."""
    tables = [t.name for t in (ITEMS, FIELD_VALUES) if lake.exists(t.name)]
    stale = {a for t in tables for a in lake.partitions(t, lake.version(t) or 0, "arrival")}
    return sorted(a for a in stale | set(arrivals) if a > covered)


def _counts(
    spark: SparkSession, lake: Lake, contract: Contract, inputs: Mapping[str, int], arrivals: Sequence[str]
) -> DataFrame:
    """(field, key, arrival, n, always): occurrences of every key on every arrival."""
    from pyspark.sql import functions as F

    def occurrences(frame: DataFrame, field: str, column: Any, always: bool) -> DataFrame:
        keys = frame.select(F.lit(field).alias("field"), column.alias("key"), "arrival").where("key is not null")
        return keys.groupBy("field", "key", "arrival").agg(F.count("*").alias("n")).withColumn("always", F.lit(always))

    log = delta.read(spark, lake, events(contract.kinds_from("log")), inputs["events"], {"arrival": list(arrivals)})
    parts = [occurrences(log, ITEM, F.col("item"), False), occurrences(log, USER, F.col("user"), False)]
    for source in ("log", "users", "items"):
        frame = log
        if source != "log" and contract.kinds_from(source):
            table = side_features(source[:-1], contract.kinds_from(source))
            version = inputs[table.name]
            snapshot = side_partition(lake, table.name, version, arrivals[-1])
            # A side file has no days: its values count as there from the start, whichever days a run covers.
            frame = delta.read(spark, lake, table, version, snapshot).withColumn("arrival", F.lit(arrivals[0]))
        for name, kind in contract.kinds_from(source):
            if kind is not Kind.NUMERIC:
                column = F.col(column_of(name))
                parts.append(
                    occurrences(frame, name, F.explode(column) if kind is Kind.MULTI else column, source != "log")
                )
    out = parts[0]
    for part in parts[1:]:
        out = out.unionByName(part)
    return out


def side_partition(lake: Lake, table: str, version: int, as_of: str) -> dict[str, str]:
    """The snapshot of a side table that holds as of an arrival: the last one up to it, else the first there is."""
    arrivals = lake.partitions(table, version, "arrival")
    return {"arrival": max((a for a in arrivals if a <= as_of), default=arrivals[0])}


def _reached(counts: DataFrame, settings: VocabularySettings, covered: str, late: str) -> DataFrame:
    """(field, key, arrival): the arrival on which each key reached its minimum count.

    A key that an already covered arrival brings only now (a re-ingested file) enters as of `late`, behind
    all that were published.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    so_far = Window.partitionBy("field", "key").orderBy("arrival").rowsBetween(Window.unboundedPreceding, 0)
    minimum = (
        F.when(F.col("always"), 1)
        .when(F.col("field") == ITEM, settings.min_item_count)
        .otherwise(settings.min_value_count)
    )
    reached = counts.withColumn("total", F.sum("n").over(so_far)).where(F.col("total") >= minimum)
    first = reached.groupBy("field", "key").agg(F.min("arrival").alias("arrival"))
    return first.withColumn("arrival", F.when(F.col("arrival") <= covered, late).otherwise(F.col("arrival")))


def _index(fresh: DataFrame, offsets: Mapping[str, int]) -> DataFrame:
    """Number the keys of each field in order; one task, whose memory does not grow with the keys."""

    def number(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        following = dict(offsets)
        for batch in batches:
            indices = []
            for field in batch.column("field").to_pylist():
                indices.append(following.setdefault(field, FIRST_INDEX))
                following[field] += 1
            yield pa.RecordBatch.from_arrays(
                [batch.column("arrival"), batch.column("field"), pa.array(indices, pa.int32()), batch.column("key")],
                names=["arrival", "field", "index", "key"],
            )

    ordered = fresh.select("arrival", "field", "key").repartition(1).sortWithinPartitions("field", "arrival", "key")
    return ordered.mapInArrow(number, "arrival string, field string, index int, key string")
