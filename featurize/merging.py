"""Histories in Arrow and numpy: events grouped by user, cut to the latest N, and merged in order of time.

A table of histories has a row per user: user, items, ts, is_target (lists of equal length), first_target and
first_target_ts. Runs inside Spark tasks: nothing here loops over users or events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LISTS = ("items", "ts", "is_target", "ids")
"""Columns with one element per event; `ids` only on the way, never in a table of the lake."""

_TS = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Events:
    """Events in any order, column by column; `users` are the distinct ids that `codes` count."""

    users: pa.Array
    codes: np.ndarray
    items: np.ndarray
    ts: np.ndarray
    is_target: np.ndarray | None
    """None: all of them are."""
    ids: Callable[[np.ndarray], pa.Array]
    """Event ids at these places; asked only for events of a user that have one time, and with `keep_ids`."""


def grouped(events: Events, cap: int, *, keep_ids: bool = False) -> pa.Table:
    """One row per user in order of `codes`, each with the last `cap` events by (ts, id).

    first_target is that of all events given, cut or not. With `keep_ids` the rows also carry ids and never lose
    the first target, so that they can be grouped again together with others.
    """
    order = _time_order(events)
    codes = events.codes[order]
    first = np.flatnonzero(np.diff(codes, prepend=-1)) if len(codes) else np.zeros(0, np.int64)
    ends = np.append(first[1:], len(codes)).astype(np.int64)
    is_target = events.is_target[order] if events.is_target is not None else None
    target = first if is_target is None else first_of(np.flatnonzero(is_target), first, ends)
    starts = np.maximum(first, ends - cap)
    items, ts = events.items[order], events.ts[order]
    columns = {
        "user": events.users.take(pa.array(codes[first])),
        "items": items,
        "ts": ts,
        "is_target": is_target,
        "ids": None,
    }
    if np.any(starts > first):
        kept = np.zeros(len(codes), bool)
        kept[ranges(starts, ends - starts)] = True
        if keep_ids:
            kept[target[target >= 0]] = True
        chosen = np.flatnonzero(kept)
        columns = {n: c if n not in LISTS or c is None else c[chosen] for n, c in columns.items()}
        lengths = np.add.reduceat(kept.astype(np.int64), first)
        order = order[chosen]
    else:
        lengths = ends - first
    if keep_ids:  # of those that stay: ids may be long
        columns["ids"] = events.ids(order)
    has = target >= 0
    columns["first_target"] = pa.array(items[np.maximum(target, 0)], pa.int32(), mask=~has)
    columns["first_target_ts"] = pa.array(ts[np.maximum(target, 0)], _TS, mask=~has)
    return table_of(columns, lengths)


def regrouped(tables: Sequence[pa.Table], cap: int, *, keep_ids: bool = False) -> pa.Table:
    """Tables of the same day, made with `keep_ids`, as one."""
    whole = pa.concat_tables(tables)
    coded = whole["user"].combine_chunks().dictionary_encode()
    lengths = lengths_of(whole)
    return grouped(
        Events(
            coded.dictionary,
            np.repeat(coded.indices.to_numpy(), lengths),
            flat(whole, "items"),
            flat(whole, "ts"),
            flat(whole, "is_target") if has_targets(whole) else None,
            pc.list_flatten(whole["ids"].combine_chunks()).take,
        ),
        cap,
        keep_ids=keep_ids,
    )


def _time_order(events: Events) -> np.ndarray:
    """Positions in order of (user, ts, id); ids are looked at only where times tie."""
    codes, ts = events.codes, events.ts
    if not len(ts):
        return np.zeros(0, np.int64)
    low = int(ts.min())
    bits = (int(ts.max()) - low).bit_length()
    if bits + int(codes.max()).bit_length() < 63:
        key = (codes.astype(np.int64) << bits) | (ts - low)
        order = np.argsort(key)
        key = key[order]
        tied = key[1:] == key[:-1]
    else:
        order = np.lexsort((ts, codes))
        tied = (np.diff(codes[order]) == 0) & (np.diff(ts[order]) == 0)
    if not tied.any():
        return order
    member = np.append(tied, False) | np.insert(tied, 0, False)
    places = np.flatnonzero(member)
    run = np.cumsum(np.insert(~tied, 0, True))[places]
    rows = pa.table({"run": run, "id": events.ids(order[places])})
    sorted_places = pc.sort_indices(rows, [("run", "ascending"), ("id", "ascending")]).to_numpy()
    order[places] = order[places][sorted_places]
    return order


def trimmed(tables: Sequence[pa.Table], cap: int) -> list[pa.Table]:
    """Tables in order of time, without what each user has beyond the last `cap` events over all of them.

    Any subset of a user's tables may be trimmed, more than once: what goes would go in the end anyway.
    """
    users = [t["user"].combine_chunks() for t in tables]
    if not users or sum(map(len, users)) == 0:
        return list(tables)
    coded = pa.concat_arrays(users).dictionary_encode()
    codes = np.split(coded.indices.to_numpy(), np.cumsum([len(u) for u in users])[:-1])
    room = np.full(len(coded.dictionary), cap, np.int64)
    out = []
    for table, code in zip(reversed(tables), reversed(codes), strict=True):
        have = lengths_of(table)
        kept = np.minimum(have, room[code])
        room[code] -= kept
        out.append(table if np.array_equal(kept, have) else _last(table, kept))
    return out[::-1]


def _last(table: pa.Table, kept: np.ndarray) -> pa.Table:
    """The last `kept` events of each row; rows without any are dropped."""
    have = lengths_of(table)
    chosen = np.ones(int(have.sum()), bool)
    chosen[ranges(np.cumsum(have) - have, have - kept)] = False  # what goes is mostly little
    some = kept > 0
    rows = table.select([n for n in table.schema.names if n not in LISTS]).filter(pa.array(some))
    columns = {n: rows[n].combine_chunks() for n in rows.schema.names}
    columns |= {n: flat(table, n)[chosen] if filled(table, n) else None for n in LISTS if n in table.column_names}
    return table_of(columns, kept[some]).select(table.schema.names)


@dataclass(frozen=True)
class Merged:
    """Users in byte order, their events end to end: those of user k are [ends[k-1], ends[k])."""

    users: pa.Array
    ends: np.ndarray
    columns: dict[str, np.ndarray]
    counts: np.ndarray
    """Events of each user in each of the tables merged: [table, user]."""


def merged(tables: Sequence[pa.Table], columns: Sequence[str]) -> Merged:
    """The list `columns` of tables in order of time, joined user by user."""
    users = [t["user"].combine_chunks() for t in tables]
    coded = pa.concat_arrays([pa.array([], pa.string()), *users]).dictionary_encode()
    by_name = pc.sort_indices(coded.dictionary).to_numpy()
    code = inverse(by_name)[coded.indices.to_numpy()]
    lengths = np.concatenate([np.zeros(0, np.int64), *(lengths_of(t) for t in tables)])
    counts = np.zeros((len(tables), len(by_name)), np.int64)
    source = np.repeat(np.arange(len(tables)), [len(u) for u in users])
    counts[source, code] = lengths
    order = np.argsort(code, kind="stable")  # tables come in order of their users: runs, which this merges
    places = ranges((np.cumsum(lengths) - lengths)[order], lengths[order])
    kinds = {"items": np.int32, "is_target": np.bool_}
    out = {}
    for c in columns:
        values = np.concatenate([np.zeros(0, kinds.get(c, np.int64)), *(flat(t, c) for t in tables)])
        if len(values) != len(places):
            raise IndexError(f"{c}: {len(values)} values in lists of {len(places)}")
        out[c] = _taken(values, places)
    return Merged(coded.dictionary.take(pa.array(by_name)), np.cumsum(counts.sum(axis=0)), out, counts)


def by_user(table: pa.Table) -> pa.Table:
    """Rows in order of the user's bytes."""
    return table.take(pc.sort_indices(table["user"].combine_chunks()))


def table_of(columns: Mapping[str, Any], lengths: np.ndarray) -> pa.Table:
    """A table of histories: the columns of LISTS are flat and cut into lists of these lengths, or null."""
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    out = {}
    for name, column in columns.items():
        if name not in LISTS:
            out[name] = column
        elif column is not None:
            values = pa.array(column) if isinstance(column, np.ndarray) else column
            out[name] = pa.ListArray.from_arrays(offsets, values.cast(_TS) if name == "ts" else values)
        elif name == "is_target":
            out[name] = pa.nulls(len(lengths), pa.list_(pa.bool_()))
    return pa.table(out)


def first_of(places: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The first of the ascending `places` inside each [start, end), -1 where there is none.

    >>> first_of(np.array([2, 5]), np.array([0, 3, 6]), np.array([3, 6, 9])).tolist()
    [2, 5, -1]
    """
    if not len(places):
        return np.full(len(starts), -1)
    at = np.searchsorted(places, starts)
    found = places[np.minimum(at, len(places) - 1)]
    return np.where((at < len(places)) & (found < ends), found, -1)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … of each range, end to end; 32 bits where they do, which is half the memory to go through.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    total = int(lengths.sum())
    small = max(total, int((starts + lengths).max(initial=0))) < 1 << 31
    kind = np.int32 if small else np.int64
    out = np.repeat((starts - (np.cumsum(lengths) - lengths)).astype(kind), lengths)
    out += np.arange(total, dtype=kind)
    return out


def gathered(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """values[start], values[start + 1], … of each range, end to end.

    >>> gathered(np.array([7, 8, 9]), np.array([2, 0]), np.array([1, 2])).tolist()
    [9, 7, 8]
    """
    some = lengths > 0
    if np.any(starts[some] < 0) or np.any((starts + lengths)[some] > len(values)):
        raise IndexError(f"a range lies outside the {len(values)} values")
    return _taken(values, ranges(starts, lengths))


def _taken(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values at places known to lie inside; Arrow's take without a check of each: 0.6 of numpy's time."""
    return pc.take(pa.array(values), pa.array(places), boundscheck=False).to_numpy(zero_copy_only=False)


def inverse(order: np.ndarray) -> np.ndarray:
    """The place of each element in a permutation.

    >>> inverse(np.array([2, 0, 1])).tolist()
    [1, 2, 0]
    """
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def lengths_of(table: pa.Table) -> np.ndarray:
    """Events per row."""
    return pc.list_value_length(table["items"]).to_numpy().astype(np.int64)


def flat(table: pa.Table, column: str) -> np.ndarray:
    """A list column end to end; times as microseconds since 1970."""
    values = pc.list_flatten(table[column].combine_chunks())
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return (values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values).to_numpy(zero_copy_only=False)


def has_targets(table: pa.Table) -> bool:
    """Whether events say if they are targets; if not, all are."""
    return filled(table, "is_target")


def filled(table: pa.Table, column: str) -> bool:
    """Whether a list column is there at all: it is null for every row, or for none."""
    return table[column].null_count == 0
