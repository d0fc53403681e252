"""Append-only vocabularies of items and field values.

A key gets its index once, for ever. Order of indices: (arrival on which the key reached its minimum
count, key bytes); 0 is padding and 1 unknown in every vocabulary, so keys start at 2.

What was published is read by Spark's tasks, or in batches: the driver never holds a whole vocabulary here
(`read` gives one to whoever asks).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from featurize import delta
from featurize.time_fields import with_time_fields
from infra.commit import DataFile, astray, commit
from infra.errors import AuditError, DataRefused
from infra.lake import Lake
from infra.tables import FIELD_VALUES, FIRST_INDEX, ITEMS, Kind, Table, column_of, events, side_features

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

    from featurize.contract import Contract
    from featurize.settings import VocabularySettings

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
    left behind is removed. The new keys are sorted and numbered in one task, which streams them.
    """
    from pyspark.sql import functions as F

    as_of = arrivals[-1]
    stored = {t.name: _arrivals(lake, t, prior) for t in (ITEMS, FIELD_VALUES)}
    covered = max((a for some in stored.values() for a in some), default="")
    late = max(covered, as_of)
    replaced = _replaced(lake, arrivals, covered) or [late]
    known = frame(spark, lake, prior)
    fresh = _reached(_counts(spark, lake, contract, inputs, arrivals), settings, covered, late)
    fresh = fresh.join(known.select("field", "key"), ["field", "key"], "left_anti")
    indexed = _index(fresh, {field: FIRST_INDEX + n for field, n in _keys(lake, prior, None).items()})
    indexed = indexed.unionByName(known.where(F.col("arrival").isin(replaced)))
    indexed = indexed.coalesce(1).sortWithinPartitions("arrival", "field", "index").persist()
    try:
        files = {
            table: delta.write(indexed.where(f"field {condition} '{ITEM}'"), lake, table)
            for table, condition in ((ITEMS, "="), (FIELD_VALUES, "<>"))
        }
    finally:
        indexed.unpersist()
    if not any(arrival <= as_of for arrival in (*stored[ITEMS.name], *(f.partition["arrival"] for f in files[ITEMS]))):
        raise DataRefused("items: no item reached vocabularies.min_item_count; lower it or check the log")
    versions = {}
    for table, new in files.items():
        back, moved = _put_back(lake, table, prior, stored[table.name], replaced)
        replace = {"arrival": sorted({*replaced, *moved})}
        versions[table.name] = commit(lake, table, [*new, *back], replace=replace, metadata=metadata)
    return Vocabularies(versions, sizes(lake, versions, as_of), items_hash(lake, versions, as_of))


def read(
    lake: Lake, versions: Mapping[str, int], as_of: str, fields: Collection[str] | None = None
) -> dict[str, pa.Table]:
    """Field -> table (index, key) in index order, as of an arrival; the item vocabulary is the field `item`.

    `fields`: these only. The vocabularies pass through the caller's memory.
    """
    out = {}
    wanted = pads.scalar(True) if fields is None else pads.field("field").isin(pa.array(sorted(fields), pa.string()))
    where = {"arrival": _arrivals(lake, FIELD_VALUES, versions, as_of)}
    names = ["field", "index", "key"]
    values = lake.dataset(FIELD_VALUES.name, versions[FIELD_VALUES.name], where).to_table(names, wanted)
    values = values.sort_by([("field", "ascending"), ("index", "ascending")])
    if fields is None or ITEM in fields:
        where = {"arrival": _arrivals(lake, ITEMS, versions, as_of)}
        items = lake.read(ITEMS.name, versions[ITEMS.name], where, ["index", "key"]).sort_by("index")
        if items.num_rows:
            out[ITEM] = items
    for field in pc.unique(values["field"]).to_pylist():
        out[field] = values.filter(pc.equal(values["field"], field)).select(["index", "key"])
    return out


def frame(
    spark: SparkSession,
    lake: Lake,
    versions: Mapping[str, int] | None,
    as_of: str | None = None,
    tables: Sequence[Table] = (ITEMS, FIELD_VALUES),
) -> DataFrame:
    """(arrival, field, index, key) of the tables, for Spark to join with; no rows without versions."""
    from pyspark.sql import functions as F

    def stored(table: Table) -> DataFrame:
        where = {"arrival": _arrivals(lake, table, versions, as_of)}
        rows = delta.read(spark, lake, table, versions[table.name] if versions else None, where)
        rows = rows.withColumn("field", F.lit(ITEM)) if table is ITEMS else rows
        return rows.select("arrival", "field", "index", "key")

    return reduce(lambda left, right: left.unionByName(right), map(stored, tables))


def sizes(lake: Lake, versions: Mapping[str, int], as_of: str) -> dict[str, int]:
    """Field -> size of its vocabulary as of an arrival, padding and unknown counted."""
    return {field: FIRST_INDEX + keys for field, keys in sorted(_keys(lake, versions, as_of).items())}


def hash_of(vocabulary: pa.Table) -> str:
    """SHA-256 over (index, key) in index order, first 16 hex digits: models carry it and loaders compare it."""
    return _hash(vocabulary.select(["index", "key"]).to_batches())


def items_hash(lake: Lake, versions: Mapping[str, int], as_of: str) -> str:
    """`hash_of` the item vocabulary as of an arrival, file by file: nothing is held but a batch."""
    where = {"arrival": _arrivals(lake, ITEMS, versions, as_of)}
    return _hash(_in_index_order(lake.files(ITEMS.name, versions[ITEMS.name], where)))


def side_snapshots(lake: Lake, table: str, version: int, as_of: str) -> list[str]:
    """The snapshots (by arrival) of a side table that are known as of an arrival: those up to it, else the first."""
    arrivals = lake.partitions(table, version, "arrival")
    return [a for a in arrivals if a <= as_of] or arrivals[:1]


def side_partition(lake: Lake, table: str, version: int, as_of: str) -> dict[str, str]:
    """The snapshot of a side table that holds as of an arrival: the last one up to it, else the first there is."""
    return {"arrival": side_snapshots(lake, table, version, as_of)[-1]}


def _arrivals(lake: Lake, table: Table, versions: Mapping[str, int] | None, as_of: str | None = None) -> list[str]:
    """The arrivals of a vocabulary table, up to `as_of`."""
    if versions is None:
        return []
    found = lake.partitions(table.name, versions[table.name], "arrival")
    return [a for a in found if as_of is None or a <= as_of]


def _keys(lake: Lake, versions: Mapping[str, int] | None, as_of: str | None) -> Counter[str]:
    """Field -> number of keys, counted batch by batch."""
    count: Counter[str] = Counter()
    if versions is None:
        return count
    where = {t.name: {"arrival": _arrivals(lake, t, versions, as_of)} for t in (ITEMS, FIELD_VALUES)}
    items = lake.dataset(ITEMS.name, versions[ITEMS.name], where[ITEMS.name]).count_rows()
    if items:
        count[ITEM] = items
    values = lake.dataset(FIELD_VALUES.name, versions[FIELD_VALUES.name], where[FIELD_VALUES.name])
    for batch in values.to_batches(columns=["field"]):
        for entry in pc.value_counts(batch.column(0)).to_pylist():
            count[entry["values"]] += entry["counts"]
    return count


def _hash(batches: Iterable[pa.RecordBatch]) -> str:
    sha = hashlib.sha256()
    for batch in batches:
        index, key = batch.column("index"), batch.column("key")
        # "index bytes key", the bytes counted, because a key may hold any character
        length = pc.binary_length(key.cast(pa.binary())).cast(pa.string())
        line = pc.binary_join_element_wise(index.cast(pa.string()), length, key, " ").cast(pa.large_binary())
        _, offsets, data = line.buffers()
        if data is not None and offsets is not None:
            ends = np.frombuffer(offsets, np.int64)[line.offset :]
            sha.update(memoryview(data)[int(ends[0]) : int(ends[len(line)])])
    return sha.hexdigest()[:16]


def _in_index_order(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The (index, key) batches of vocabulary files, each of which is sorted and follows another without a gap.

    Raises AuditError where that does not hold: an index is then missing or given twice.
    """
    starts = []
    for file in files:
        with pq.ParquetFile(file) as parquet:
            first = next(parquet.iter_batches(1, columns=["index"]), None)
        if first is not None and first.num_rows:
            starts.append((first.column(0)[0].as_py(), file))
    following = FIRST_INDEX
    for _, file in sorted(starts):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["index", "key"]):
                index = batch.column("index").to_numpy()
                if not np.array_equal(index, np.arange(following, following + len(index))):
                    raise AuditError(
                        f"table items, file {file}: index {following} is not where it belongs; the vocabulary has a "
                        "gap or a repeated index: run the vocabularies stage in a new workspace"
                    )
                following += len(index)
                yield batch


def _put_back(
    lake: Lake, table: Table, prior: Mapping[str, int] | None, published: Sequence[str], replaced: Sequence[str]
) -> tuple[list[DataFile], list[str]]:
    """Arrivals that are not written now and that a run which never published has changed, and their files before."""
    if prior is None:
        return [], []
    stored = lake.partitions(table.name, lake.version(table.name) or 0, "arrival")
    kept = sorted({*published, *stored} - set(replaced))
    return astray(lake, table, prior[table.name], "arrival", kept)


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
    log = with_time_fields(log, contract)
    for source in ("log", "time", "users", "items"):
        frame, of_side = log, source in ("users", "items")
        if of_side and contract.kinds_from(source):
            table = side_features(source[:-1], contract.kinds_from(source))
            version = inputs[table.name]
            snapshots = side_snapshots(lake, table.name, version, arrivals[-1])
            frame = delta.read(spark, lake, table, version, {"arrival": snapshots})
            frame = frame.withColumn("arrival", _side_arrival(snapshots, arrivals))
        for name, kind in contract.kinds_from(source):
            if kind is not Kind.NUMERIC:
                column = F.col(column_of(name))
                parts.append(occurrences(frame, name, F.explode(column) if kind is Kind.MULTI else column, of_side))
    return reduce(lambda left, right: left.unionByName(right), parts)


def _side_arrival(snapshots: Sequence[str], arrivals: Sequence[str]) -> Column:
    """The arrival as of which a snapshot's values count.

    Those of the first snapshot are there from the start, whichever days a run covers, because every earlier
    event sees it; later ones as of the run's first arrival that is not before them.
    """
    from pyspark.sql import functions as F

    column = F.lit(arrivals[0])
    for snapshot in snapshots[1:]:
        counted = next(a for a in arrivals if a >= snapshot)
        column = F.when(F.col("arrival") == snapshot, counted).otherwise(column)
    return column


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
            indices, start = [np.zeros(0, np.int64)], 0
            runs = pc.run_end_encode(batch.column("field"))
            for field, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                first = following.get(field, FIRST_INDEX)
                following[field] = first + end - start
                indices.append(np.arange(first, following[field]))
                start = end
            index = pa.array(np.concatenate(indices).astype(np.int32))
            yield pa.RecordBatch.from_arrays(
                [batch.column("arrival"), batch.column("field"), index, batch.column("key")],
                names=["arrival", "field", "index", "key"],
            )

    ordered = fresh.select("arrival", "field", "key").repartition(1).sortWithinPartitions("field", "arrival", "key")
    return ordered.mapInArrow(number, "arrival string, field string, index int, key string")
