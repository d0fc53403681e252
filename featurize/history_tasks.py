"""What Spark tasks do to make histories: read events with Arrow, group them, and write a bucket's files.

Before the shuffle a group of event files becomes one small table of histories per bucket; the shuffle carries
those tables as bytes, and after it they are cut to the cap, merged in order of time and written.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import merging
from featurize.buckets import bucket_of
from infra.commit import DataFile, write_file
from infra.errors import AuditError
from infra.tables import HISTORIES, UNKNOWN

HELD_EVENTS = 8 << 20
"""Events of a bucket that a task holds before it cuts every user to the cap."""

DAY_US = 86400 * 10**6
_PROBLEM = "!"

BLOCK = "bucket int, number int, ds string, block binary"
"""What is shuffled: histories of one bucket from one group of event files."""


@dataclass(frozen=True)
class Group:
    """Event files that one task turns into histories.

    Files are (path, rank of the arrival, first microsecond of their day). Groups of equal `number` share a day and
    keep event ids; else groups follow one another in time by `number`.
    """

    number: int
    ds: str
    """The day of a tail; empty for a part of the base."""
    shared: bool
    files: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Rules:
    """What a history is made of; plain values, for the tasks."""

    cap: int
    buckets: int
    targets: tuple[str, ...]
    context: tuple[str, ...]
    positives_only: bool
    vocabulary: tuple[tuple[str, int], ...]
    """Files of the item vocabulary and the rank of their arrival."""


def blocks(group: Group, rules: Rules) -> Iterator[pa.RecordBatch]:
    """One batch (BLOCK) for every bucket that has events in the group, or one that says what is wrong with them."""
    tables, masks = zip(*(_read(path, rules) for path, *_ in group.files), strict=True)
    for table, (path, _, midnight) in zip(tables, group.files, strict=True):
        if strange := _outside(table, midnight):
            yield _block(0, group.number, _PROBLEM, f"events file {path!r} {strange}".encode())
            return
    ranks = np.repeat([rank for _, rank, _ in group.files], [t.num_rows for t in tables])
    sources = [(path, mask, t.num_rows) for (path, *_), mask, t in zip(group.files, masks, tables, strict=True)]
    log = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    if not log.num_rows:
        return
    users, codes = _by_bucket(log["user"].chunk(0), rules.buckets)
    is_target = None
    if rules.context:
        is_target = _among(log["type"].chunk(0), rules.targets)
    events = merging.Events(
        users,
        codes,
        _indices(log["item"].chunk(0), ranks, rules.vocabulary),
        log["ts"].chunk(0).cast(pa.int64()).to_numpy(),
        is_target,
        lambda places: _ids(sources, places),
    )
    table = merging.grouped(events, rules.cap, keep_ids=group.shared)
    bucket = bucket_of(table["user"].combine_chunks(), rules.buckets)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(bucket)], strict=True):
        yield _block(int(bucket[start]), group.number, group.ds, _bytes(table.slice(start, end - start)))


def _block(bucket: int, number: int, ds: str, block: bytes) -> pa.RecordBatch:
    columns = [[bucket], [number], [ds], [block]]
    types = (pa.int32(), pa.int32(), pa.string(), pa.binary())
    arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=["bucket", "number", "ds", "block"])


def _outside(table: pa.Table, midnight: int) -> str | None:
    """What is wrong with the times of a day's events, if anything: a tail must not know another day."""
    if not table.num_rows:
        return None
    span = pc.min_max(table["ts"].cast(pa.int64())).as_py()
    if midnight <= span["min"] and span["max"] < midnight + DAY_US:
        return None
    return f"has times from {span['min']} to {span['max']} us: its day begins at {midnight} us"


def _read(path: str, rules: Rules) -> tuple[pa.Table, pa.Array | None]:
    """The events of a file that stand in histories, and the mask that chose them; None: all."""
    columns = ["user", "item", "ts", *(["type"] if rules.targets else [])]
    file = pq.ParquetFile(path, read_dictionary=["user", "item", "type"])
    table = file.read(columns, use_threads=False)
    kept = _kept(path, table, rules)
    return (table if kept is None else table.filter(kept)), kept


def _ids(sources: Sequence[tuple[str, pa.Array | None, int]], places: np.ndarray) -> pa.Array:
    """Event ids at these places in the chosen rows of (path, mask, how many rows it chose), end to end."""
    order = np.argsort(places)
    wanted, start = places[order], 0
    found = [pa.array([], pa.large_string())]
    for path, mask, count in sources:
        here = wanted[slice(*np.searchsorted(wanted, (start, start + count)))] - start
        if mask is not None:
            here = np.flatnonzero(mask.to_numpy(zero_copy_only=False))[here]
        found += _ids_in(path, here)
        start += count
    return pa.concat_arrays(found).take(pa.array(merging.inverse(order)))


def _ids_in(path: str, rows: np.ndarray) -> Iterator[pa.Array]:
    """Event ids at ascending rows of a file; a batch is in memory at a time, row groups without any are not read."""
    file, start = pq.ParquetFile(path), 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        low, high = np.searchsorted(rows, (start, end))
        if low < high:
            for batch in file.iter_batches(1 << 16, row_groups=[group], columns=["event_id"], use_threads=False):
                here = rows[slice(*np.searchsorted(rows, (start, start + batch.num_rows)))] - start
                yield batch.column(0).take(pa.array(here)).cast(pa.large_string())
                start += batch.num_rows
        start = end


def _kept(path: str, table: pa.Table, rules: Rules) -> pa.Array | None:
    """Which rows stand in histories; None: all."""
    kept = np.ones(table.num_rows, bool)
    if rules.targets:
        types = table.unify_dictionaries()["type"].combine_chunks()
        kept &= _among(types, (*rules.targets, *rules.context))
    if rules.positives_only:
        label = pq.ParquetFile(path).read(["label"], use_threads=False)["label"]
        kept &= pc.fill_null(pc.equal(label, 1), True).to_numpy()
    return None if kept.all() else pa.array(kept)


def _among(column: pa.DictionaryArray, values: Sequence[str]) -> np.ndarray:
    known = pc.is_in(column.dictionary, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)
    chosen: np.ndarray = known[column.indices.to_numpy()] if len(known) else np.zeros(len(column), bool)
    return chosen


def _by_bucket(column: pa.DictionaryArray, buckets: int) -> tuple[pa.Array, np.ndarray]:
    """Distinct users, those of a bucket side by side, and each row's place among them."""
    order = np.argsort(bucket_of(column.dictionary, buckets), kind="stable")
    return column.dictionary.take(pa.array(order)), merging.inverse(order)[column.indices.to_numpy()]


def _indices(column: pa.DictionaryArray, ranks: np.ndarray, vocabulary: Sequence[tuple[str, int]]) -> np.ndarray:
    """The index that each event's item had when the event arrived.

    The vocabulary streams past the items of the group, so its size costs time and no memory.
    """
    index = np.full(len(column.dictionary), UNKNOWN, np.int32)
    since = np.full(len(index), np.iinfo(np.int64).max)
    for path, rank in vocabulary:
        for batch in pq.ParquetFile(path).iter_batches(1 << 20, columns=["index", "key"], use_threads=False):
            found = pc.index_in(batch.column("key"), value_set=column.dictionary)
            known = found.is_valid().to_numpy(zero_copy_only=False)
            place = found.drop_null().to_numpy()
            index[place] = batch.column("index").to_numpy()[known]
            since[place] = rank
    items = column.indices.to_numpy()
    out: np.ndarray = np.where(since[items] <= ranks, index[items], np.int32(UNKNOWN))
    return out


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def files(batches: Iterable[pa.RecordBatch], folder: str, base: str, rules: Rules) -> Iterator[bytes]:
    """Write the base and tails of one bucket from its blocks; a report per file."""
    held: dict[int, pa.Table] = {}
    shared: dict[str, list[pa.Table]] = {}
    bucket, count = -1, 0
    for batch in batches:
        for row in range(batch.num_rows):
            bucket, number, ds = (batch.column(c)[row].as_py() for c in ("bucket", "number", "ds"))
            if ds == _PROBLEM:
                yield json.dumps({"problem": batch.column("block")[row].as_py().decode()}).encode()
                continue
            table = pa.ipc.open_stream(batch.column("block")[row].as_buffer()).read_all()
            if "ids" in table.column_names:
                shared.setdefault(f"{number} {ds}", []).append(table)
            elif ds:
                yield write(folder, merging.by_user(table), ds, "tail", bucket)
                continue
            else:
                held[number] = table
            count += int(merging.lengths_of(table).sum())
            if count > HELD_EVENTS:
                _cut(held, shared, rules.cap)
                left = itertools.chain(held.values(), *shared.values())
                count = sum(int(merging.lengths_of(t).sum()) for t in left)
    for key in sorted(shared):
        number, _, ds = key.partition(" ")
        table = merging.regrouped(shared[key], rules.cap)
        if ds:
            yield write(folder, merging.by_user(table), ds, "tail", bucket)
        else:
            held[int(number)] = table
    if held:
        yield write(folder, base_of([held[n] for n in sorted(held)], rules.cap), base, "base", bucket)


def _cut(held: dict[int, pa.Table], shared: dict[str, list[pa.Table]], cap: int) -> None:
    """Let go of whatever no user's latest `cap` events can need."""
    numbers = sorted(held)
    held.update(zip(numbers, merging.trimmed([held[n] for n in numbers], cap), strict=True))
    for key, tables in shared.items():
        if len(tables) > 1:
            shared[key] = [merging.regrouped(tables, cap, keep_ids=True)]


def base_of(tables: Sequence[pa.Table], cap: int) -> pa.Table:
    """Histories in order of time as one table, each user's last `cap` events, in order of users."""
    kept = merging.trimmed(tables, cap)
    targets = ["is_target"] if all(map(merging.has_targets, kept)) else []
    whole = merging.merged(kept, ["items", "ts", *targets])
    columns = {"user": whole.users, **{c: whole.columns.get(c) for c in ("items", "ts", "is_target")}}
    table = merging.table_of(columns, np.diff(whole.ends, prepend=0))
    nothing = {"first_target": pa.int32(), "first_target_ts": HISTORIES.schema.field("first_target_ts").type}
    for name, kind in nothing.items():
        table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def write(folder: str, table: pa.Table, ds: str, kind: str, bucket: int) -> bytes:
    """Write one file of histories; its report, with the earliest and latest time in it."""
    partition = {"ds": ds, "kind": kind, "bucket": str(bucket)}
    file = write_file(folder, HISTORIES, partition, [table], order=(bucket,), distinct=("items", "ts"))
    times = merging.flat(table, "ts")
    return report(file, low=int(times.min()), high=int(times.max()))


def report(file: DataFile, **more: int) -> bytes:
    """A file's report as a task returns it."""
    return json.dumps({**file.__dict__, "partition": dict(file.partition), **more}).encode()


def reported(payload: bytes) -> tuple[DataFile, dict[str, int]]:
    """A report read back: the file, and whatever else its task said of it.

    Raises AuditError when the task refused its events.
    """
    values = json.loads(payload)
    if "problem" in values:
        raise AuditError(f"histories: {values['problem']}; nothing was committed, ingest that arrival again")
    file = DataFile(*(values.pop(name) for name in ("path", "size", "rows", "partition", "stats")))
    return file, values
