"""Events to training sequences and evaluation targets, point-in-time correct.

One shuffle by user, a sort within each task, and one streaming pass: memory is bounded by a batch and
one user's events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurize import delta
from featurize.contract import Contract
from featurize.settings import SequenceSettings
from infra.commit import commit
from infra.errors import DataRefused
from infra.lake import Lake
from infra.tables import ITEMS, SEQUENCES, UNKNOWN, events

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_OUTPUT = "split string, user string, items array<int>, target int, target_ts timestamp"


@dataclass(frozen=True)
class Cut:
    """What decides the split: days in microseconds since 1970 (temporal), or nothing (leave-one-out)."""

    split: str
    valid_start: int = 0
    test_start: int = 0
    test_end: int = 0

    @classmethod
    def of(cls, split: str, day: str) -> Cut:
        """The cut of a run date (YYYY-MM-DD)."""
        first = (date.fromisoformat(day) - date(1970, 1, 1)) // timedelta(days=1)
        return cls(split, *((first + k) * 86400 * 10**6 for k in (-1, 0, 1)))


def build(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    settings: SequenceSettings,
    inputs: Mapping[str, int],
    arrivals: Sequence[str],
    day: str,
    metadata: dict[str, Any],
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the sequences as of run date `day`; returns table versions and row counts per split.

    Raises DataRefused when there is nothing to train on.
    """
    from pyspark.sql import functions as F

    ordered = _ordered_events(spark, lake, contract, settings, inputs, arrivals)
    cut, length, cap = Cut.of(settings.split, day), settings.max_length, settings.history_cap

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows: list[dict[str, Any]] = []
        for user, items, times, targets in users_of(batches):
            rows += sequences_of(user, items, times, targets, cut, length, cap)
            if len(rows) >= 4096:
                yield _batch(rows)
                rows = []
        if rows:
            yield _batch(rows)

    built = ordered.mapInArrow(task, _OUTPUT).persist()
    try:
        frame = _with_known(built).withColumn("as_of", F.lit(day)).repartition("split")
        frame = frame.sortWithinPartitions("as_of", "split", "user", "target_ts", "items")
        files = delta.write(frame, lake, SEQUENCES)
    finally:
        built.unpersist()
    rows = {split: sum(f.rows for f in files if f.partition["split"] == split) for split in ("train", "valid", "test")}
    if not rows["train"]:
        raise DataRefused(
            f"sequences: no user has two events to train on before {day}; check sequences.split and the dates"
        )
    version = commit(lake, SEQUENCES, files, replace={"as_of": [day]}, metadata=metadata)
    return {SEQUENCES.name: version}, rows


def _with_known(built: DataFrame) -> DataFrame:
    """The rows to write, with `target_known`: whether the target's item stands in anybody's training part."""
    from pyspark.sql import functions as F

    trained = built.where("target is null").select(F.explode("items").alias("target")).distinct()
    evaluated = built.where("target is not null").join(trained.withColumn("seen", F.lit(True)), "target", "left")
    known = F.col("seen").isNotNull() & (F.col("target") != UNKNOWN)
    return (
        built.where("split = 'train'")
        .withColumn("target_known", F.lit(None).cast("boolean"))
        .unionByName(evaluated.withColumn("target_known", known).drop("seen"))
    )


def _ordered_events(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    settings: SequenceSettings,
    inputs: Mapping[str, int],
    arrivals: Sequence[str],
) -> DataFrame:
    """(user, item index, ts, target) shuffled by user and sorted by (ts, event id) within each."""
    from pyspark.sql import functions as F

    where = {"arrival": list(arrivals)}
    log = delta.read(spark, lake, events(contract.kinds_from("log")), inputs["events"], where)
    if contract.targets:
        log = log.where(F.col("type").isin(*contract.targets, *contract.context))
    if settings.positives_only:
        log = log.where("label is null or label = 1")
    is_target = F.col("type").isin(*contract.targets) if contract.targets else F.lit(True)
    items = delta.read(spark, lake, ITEMS, inputs["items"], where).select(F.col("key").alias("item"), F.col("index"))
    indexed = log.join(F.broadcast(items), "item", "left").select(
        "user",
        F.coalesce("index", F.lit(UNKNOWN)).cast("int").alias("item"),
        F.unix_micros("ts").alias("ts"),
        is_target.alias("target"),
        "event_id",
    )
    return (
        indexed.repartition("user")
        .sortWithinPartitions("user", "ts", "event_id")
        .select("user", "item", "ts", "target")
    )


def users_of(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(user, items, times, is target) of each user in a stream sorted by user; a user may span batches."""
    held: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = table if held is None else pa.concat_tables([held, table])
        ends = pc.run_end_encode(table["user"].combine_chunks()).run_ends.to_numpy()
        cut = int(ends[-2]) if len(ends) > 1 else 0
        yield from _groups(table.slice(0, cut), ends[:-1])
        held = table.slice(cut)
    if held is not None and held.num_rows:
        yield from _groups(held, np.array([held.num_rows]))


def _groups(table: pa.Table, ends: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    items, times, targets = (table[c].to_numpy() for c in ("item", "ts", "target"))
    start = 0
    for end in ends.tolist():
        yield table["user"][start].as_py(), items[start:end], times[start:end], targets[start:end]
        start = end


def sequences_of(
    user: str, items: np.ndarray, times: np.ndarray, targets: np.ndarray, cut: Cut, length: int, cap: int
) -> list[dict[str, Any]]:
    """One user's rows: training chunks and at most one validation and one test target.

    A training event that no chunk takes is a row of the split `single`: nothing to train on, but seen.

    >>> day = Cut("leave_one_out")
    >>> x = np.arange(2, 8)
    >>> [(r["split"], r["items"].tolist(), r["target"]) for r in sequences_of("u", x, x, x > 0, day, 2, 9)]
    [('train', [3, 4, 5], None), ('single', [2], None), ('valid', [2, 3, 4, 5], 6), ('test', [2, 3, 4, 5, 6], 7)]
    """
    if cut.split == "leave_one_out":
        of_type = np.flatnonzero(targets)
        held_out = of_type[-2:].tolist() if len(of_type) >= 3 else []
        trained = held_out[0] if held_out else len(items)
        evaluated = dict(zip(("valid", "test"), held_out, strict=False))
    else:
        trained = int(np.searchsorted(times, cut.valid_start))
        windows = {"valid": (cut.valid_start, cut.test_start), "test": (cut.test_start, cut.test_end)}
        evaluated = {s: t for s, w in windows.items() if (t := _first_target(times, targets, *w)) is not None}
    rows = [_row("train", user, chunk) for chunk in chunks(items[:trained], length + 1)]
    if trained % (length + 1) == 1:
        rows.append(_row("single", user, items[:1]))
    for split, position in evaluated.items():
        # temporal: the history ends where the window starts; leave-one-out: at the target
        before = int(np.searchsorted(times, cut.valid_start if split == "valid" else cut.test_start))
        end = position if cut.split == "leave_one_out" else before
        if end > 0:
            rows.append(_row(split, user, items[max(0, end - cap) : end], int(items[position]), int(times[position])))
    return rows


def chunks(items: np.ndarray, size: int) -> list[np.ndarray]:
    """Non-overlapping chunks of at most `size`, cut from the end; a remainder of one event has no target: left out.

    >>> [c.tolist() for c in chunks(np.arange(7), 3)]
    [[1, 2, 3], [4, 5, 6]]
    """
    ends = range(len(items), 0, -size)
    out = [items[max(0, e - size) : e] for e in ends]
    return [c for c in reversed(out) if len(c) > 1]


def _first_target(times: np.ndarray, targets: np.ndarray, start: int, end: int) -> int | None:
    inside = np.flatnonzero(targets & (times >= start) & (times < end))
    return int(inside[0]) if len(inside) else None


def _row(split: str, user: str, items: np.ndarray, target: int | None = None, ts: int | None = None) -> dict[str, Any]:
    return {"split": split, "user": user, "items": items, "target": target, "target_ts": ts}


def _batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    schema = pa.schema([SEQUENCES.schema.field(n) for n in ("split", "user", "items", "target", "target_ts")])
    arrays = [pa.array([r[f.name] for r in rows], f.type) for f in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
