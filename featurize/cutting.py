"""One bucket's histories cut into training chunks and evaluation targets, per split; inside Spark tasks.

Positions count in one array that holds the events of all users of the bucket end to end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import merging
from infra.tables import TIMESTAMP, UNKNOWN

_DAY_US = 86400 * 10**6
_INT32 = pa.int32()


@dataclass(frozen=True)
class Cut:
    """What decides the split; plain values, for the tasks.

    Windows are microseconds since 1970: temporal validates on [valid_start, test_start) and tests on
    [test_start, test_end); the other splits go by position.
    """

    split: str
    valid_start: int
    test_start: int
    test_end: int
    length: int
    cap: int
    test_share: float
    valid_share: float
    k_core: int | None

    @classmethod
    def of(
        cls, split: str, day: str, length: int, cap: int, shares: tuple[float, float] = (0.2, 0.1), k: int | None = None
    ) -> Cut:
        """The cut of a run date (YYYY-MM-DD); `shares` of test and validation, `k` of the core."""
        start = _start(day)
        return cls(split, start - _DAY_US, start, start + _DAY_US, length, cap, *shares, k)


Part = tuple[str, pa.Table]
"""The last day of a base, or the day of a tail, and its histories."""


@dataclass(frozen=True)
class Held:
    """Evaluation rows of one split: users, where their history lies, and the target."""

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    target: np.ndarray
    target_ts: np.ndarray
    late: int = 0
    """Rows whose history reaches beyond their target: none, or the split leaks."""

    def only(self, chosen: np.ndarray) -> Held:
        """The chosen of these rows; `late` stays that of all of them."""
        columns = ("rows", "starts", "ends", "target", "target_ts")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})


@dataclass(frozen=True)
class Pieces:
    """Where each user's training part lies in `items`, and who is evaluated on what."""

    users: pa.Array
    items: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    held_out: Mapping[str, Held]
    is_target: np.ndarray | None = None
    """Of each of `items`, whether its event is of a target type; None: all of them."""

    def trained(self) -> np.ndarray:
        """The items of everybody's training part."""
        if not len(self.starts):
            return self.items[:0]
        if self.starts[0] == 0 and np.array_equal(self.starts[1:], self.ends[:-1]):
            return self.items[: self.ends[-1]]
        return merging.gathered(self.items, self.starts, self.ends - self.starts)


def columns_of(cut: Cut) -> list[str]:
    """The columns of histories that a split needs; temporal takes the times from the files' footers."""
    if cut.split == "temporal":
        return ["user", "items", "is_target", "first_target", "first_target_ts"]
    return ["user", "items", "ts", "is_target"]


def pieces(parts: Sequence[Part], cut: Cut, alive: np.ndarray | None = None) -> Pieces:
    """Cut the histories of a bucket; `parts` in order of time, `alive` the items of the k-core if there is one.

    >>> table = merging.table_of({"user": ["u"], "items": np.arange(2, 8, dtype=np.int32), "ts": np.arange(6),
    ...                           "is_target": None}, np.array([6]))
    >>> cut = pieces([("1970-01-01", table)], Cut.of("leave_one_out", "1970-01-01", 2, 9))
    >>> cut.trained().tolist(), cut.held_out["valid"].target.tolist(), cut.held_out["test"].target.tolist()
    ([2, 3, 4, 5], [6], [7])
    """
    return _temporal(parts, cut) if cut.split == "temporal" else _positional(parts, cut, alive)


def _temporal(parts: Sequence[Part], cut: Cut) -> Pieces:
    past: list[pa.Table] = []
    valid: list[pa.Table] = []
    test: list[pa.Table] = []
    for ds, table in parts:
        start = _start(ds)
        (past if start < cut.valid_start else valid if start < cut.test_start else test).append(table)
    columns = _marked([*past, *valid])
    whole = merging.merged([*past, *valid], columns)
    first = whole.ends - whole.counts.sum(axis=0)
    trained = whole.ends - whole.counts[len(past) :].sum(axis=0)
    held = {
        "valid": _of_day(valid, whole.users, first, trained, cut.cap),
        "test": _of_day(test, whole.users, first, whole.ends, cut.cap),
    }
    starts = np.maximum(first, trained - cut.cap)
    return Pieces(whole.users, whole.columns["items"], starts, trained, held, whole.columns.get("is_target"))


def _marked(tables: Sequence[pa.Table], *others: str) -> list[str]:
    """The list columns to merge; is_target where not all events are."""
    return ["items", *others, *(["is_target"] if all(map(merging.has_targets, tables)) else [])]


def _of_day(tails: Sequence[pa.Table], users: pa.Array, first: np.ndarray, ends: np.ndarray, cap: int) -> Held:
    """Each user's first target of the day; only users with a history before it."""
    rows = [np.zeros(0, np.int64)] * 3
    for tail in tails:
        targets = tail.select(["user", "first_target", "first_target_ts"]).drop_null()
        user = pc.fill_null(pc.index_in(targets["user"].combine_chunks(), value_set=users), -1).to_numpy()
        user = user.astype(np.int64)
        known = np.flatnonzero(user >= 0)
        known = known[ends[user[known]] > first[user[known]]]
        known = known[np.argsort(user[known])]
        times = targets["first_target_ts"].cast(pa.int64()).to_numpy()
        rows = [user[known], targets["first_target"].to_numpy()[known], times[known]]
    user, item, ts = rows
    return Held(user, np.maximum(first, ends - cap)[user], ends[user], item, ts)


def _positional(parts: Sequence[Part], cut: Cut, alive: np.ndarray | None) -> Pieces:
    tables = [table for _, table in parts]
    columns = _marked(tables, "ts")
    whole = merging.merged(tables, columns)
    counts = whole.counts.sum(axis=0)
    starts, ends = np.maximum(whole.ends - counts, whole.ends - cut.cap), whole.ends
    items, ts = whole.columns["items"].astype(np.int32), whole.columns["ts"]
    is_target = whole.columns["is_target"] if "is_target" in columns else np.ones(len(items), bool)
    if alive is not None:
        kept = in_core(items, starts, ends, alive, cut.k_core or 0)
        items, ts, is_target = items[kept], ts[kept], is_target[kept]
        before = np.append(0, np.cumsum(kept))
        starts, ends = before[starts], before[ends]
    if cut.split == "leave_one_out":
        valid, test = _last_two(is_target, starts, ends)
        trained, valid_start, test_start = np.where(valid >= 0, valid, ends), valid, test
    else:
        test_start = ends - _share(ends - starts, cut.test_share)
        trained = valid_start = test_start - _share(test_start - starts, cut.valid_share)
        places = np.flatnonzero(is_target)
        valid = merging.first_of(places, valid_start, test_start)
        test = merging.first_of(places, test_start, ends)
    held = {
        "valid": _at(valid, starts, valid_start, items, ts),
        "test": _at(test, starts, test_start, items, ts),
    }
    backwards = np.flatnonzero(np.diff(ts) < 0) + 1
    if len(np.setdiff1d(backwards, ends)):  # a history that is not in order of time hides what lies behind a target
        held = {split: replace(rows, late=len(rows.rows)) for split, rows in held.items()}
    return Pieces(whole.users, items, starts, trained, held, is_target if "is_target" in columns else None)


def in_core(items: np.ndarray, starts: np.ndarray, ends: np.ndarray, alive: np.ndarray, k: int) -> np.ndarray:
    """Which events stay: those of the `alive` items, of users who have at least k such events."""
    kept = np.zeros(len(items), bool)
    inside = merging.ranges(starts, ends - starts)
    kept[inside] = alive[items[inside]]
    so_far = np.append(0, np.cumsum(kept))
    enough = so_far[ends] - so_far[starts] >= k
    return kept & np.repeat(enough, np.diff(ends, prepend=0))


def _last_two(is_target: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the last target but one and of the last; -1 for users with fewer than three."""
    places = np.flatnonzero(is_target)
    until = np.searchsorted(places, ends)
    enough = until - np.searchsorted(places, starts) >= 3
    if not enough.any():
        return np.full(len(ends), -1), np.full(len(ends), -1)
    return np.where(enough, places[until - 2], -1), np.where(enough, places[until - 1], -1)


def _share(counts: np.ndarray, share: float) -> np.ndarray:
    """That share of each count, rounded up; what is a whole number but for its binary fraction stays."""
    return np.ceil(counts * share - 1e-9).astype(np.int64)


def _at(places: np.ndarray, starts: np.ndarray, ends: np.ndarray, items: np.ndarray, ts: np.ndarray) -> Held:
    """The targets at `places`, with the history from start to end; only where there is some."""
    rows = np.flatnonzero((places >= 0) & (ends > starts))
    place = places[rows]
    last = ts[ends[rows] - 1]
    late = int(np.count_nonzero((last > ts[place]) | (ends[rows] > place)))
    return Held(rows, starts[rows], ends[rows], items[place], ts[place], late)


def train_table(cut: Pieces, length: int) -> pa.Table:
    """Non-overlapping chunks of at most `length` + 1 events, cut from the end; a chunk of one event is left out."""
    size = length + 1
    count = cut.ends - cut.starts
    chunks = count // size + (count % size >= 2)
    user = np.repeat(np.arange(len(count)), chunks)
    behind = np.repeat(np.cumsum(chunks), chunks) - 1 - np.arange(len(user))
    ends = cut.ends[user] - behind * size
    starts = np.maximum(cut.starts[user], ends - size)
    rows = {"user": cut.users.take(pa.array(user)), **_events(cut, starts, ends)}
    nothing = {"target": pa.int32(), "target_ts": TIMESTAMP, "target_known": pa.bool_()}
    return pa.table(rows | {name: pa.nulls(len(user), kind) for name, kind in nothing.items()})


def held_table(cut: Pieces, held: Held, known: np.ndarray) -> pa.Table:
    """Evaluation rows; `known` says of each whether its target was trained on."""
    return pa.table(
        {
            "user": cut.users.take(pa.array(held.rows)),
            **_events(cut, held.starts, held.ends),
            "target": pa.array(held.target, pa.int32()),
            "target_ts": pa.array(held.target_ts, TIMESTAMP),
            "target_known": pa.array(known, pa.bool_()),
        }
    )


def known(target: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Which targets have an item that is `seen` by its index; it is never known which one an unknown item is.

    >>> known(np.array([1, 2, 3, 9]), np.array([True, True, False, True])).tolist()
    [False, False, True, False]
    """
    inside: np.ndarray = seen[np.minimum(target, len(seen) - 1)]
    return inside & (target < len(seen)) & (target != UNKNOWN)


def _events(cut: Pieces, starts: np.ndarray, ends: np.ndarray) -> dict[str, pa.Array]:
    """The columns items and is_target of rows that reach from `starts` to `ends`."""
    marks = pa.nulls(len(starts), pa.list_(pa.bool_()))
    if cut.is_target is not None:
        marks = _lists(cut.is_target, starts, ends, pa.bool_())
    return {"items": _lists(cut.items, starts, ends), "is_target": marks}


def _lists(values: np.ndarray, starts: np.ndarray, ends: np.ndarray, kind: pa.DataType = _INT32) -> pa.Array:
    lengths = ends - starts
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(merging.gathered(values, starts, lengths), kind))


def read(files: Sequence[tuple[str, str]], columns: Sequence[str]) -> list[Part]:
    """The parts of a bucket from (day, path)."""
    return [(ds, pq.ParquetFile(path).read(list(columns), use_threads=False)) for ds, path in files]


def latest(path: str) -> int:
    """The latest event time in a file of histories, in microseconds: from its footer if that says so."""
    footer = pq.read_metadata(path)
    column = next(i for i in range(footer.num_columns) if footer.schema.column(i).path.startswith("ts."))
    highest = []
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return int(merging.flat(pq.ParquetFile(path).read(["ts"]), "ts").max())
        highest.append(int(statistics.max_raw))
    return max(highest)


def marked(items: np.ndarray) -> np.ndarray:
    """Which indices occur."""
    out = np.zeros(int(items.max(initial=0)) + 1, bool)
    out[items.astype(np.intp)] = True  # half the time of 32-bit indices
    return out


def facts(times: Sequence[tuple[str, int]], cut: Pieces, rule: Cut, split: str) -> dict[str, int]:
    """What the audit compares: latest history event, first and last target time, rows out of order.

    `times` of a temporal split: (day, latest time) of each part.
    """
    held = cut.held_out.get(split)
    out = {"late": held.late if held is not None else 0}
    if held is not None:
        out |= {"first": int(held.target_ts.min()), "last": int(held.target_ts.max())}
    if rule.split == "temporal":
        until = rule.test_start if split == "test" else rule.valid_start
        out["history"] = max(time for ds, time in times if _start(ds) < until)
    return out


def _start(ds: str) -> int:
    return (date.fromisoformat(ds) - date(1970, 1, 1)).days * _DAY_US
