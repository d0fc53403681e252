"""What a user had done strictly before each event: the last positives (`history`), and what may not be a negative.

One pass over rows sorted by (user, ts, event_id), vectorised batch by batch. Carried from batch to batch are
the current user's last positives (twice as many as a history is long, at most) and, for negatives only, the
distinct items the user was positive about: never the user's events.

Runs in Spark tasks: standard library, numpy and pyarrow. Shapes: N rows, a few of them carried; P positives.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

Ints = NDArray[np.int64]

_NONE = np.zeros(0, np.int64)


def with_past(frame: DataFrame, history: int, negatives: int) -> DataFrame:
    """The frame with `history`, `past_until` (time of its newest item) and, from `draws`, `negatives`.

    `frame` has user, ts, event_id, label, item_index, and `draws` where `negatives` is above 0; each user's
    rows stand in one partition (which the caller sees to, so that one shuffle serves whatever else is per user).
    """
    from pyspark.sql.types import ArrayType, IntegerType, StructField, StructType, TimestampType

    ints = ArrayType(IntegerType())
    added = [StructField("history", ints), StructField("past_until", TimestampType())]
    added += [StructField("negatives", ints)] if negatives else []

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        past = Past(history, negatives)
        for batch in batches:
            yield past.extend(batch)

    kept = [f for f in frame.schema.fields if f.name != "draws"]
    ordered = frame.sortWithinPartitions("user", "ts", "event_id")
    return ordered.mapInArrow(task, StructType([*kept, *added]))


@dataclass
class Past:
    """A stream of batches; `history` and `negatives` as in `with_past`."""

    history: int
    negatives: int
    user: str | None = None
    items: Ints = field(default_factory=lambda: _NONE)
    """The current user's last positives, oldest first, and their times."""
    times: Ints = field(default_factory=lambda: _NONE)
    seen: Ints = field(default_factory=lambda: _NONE)
    """The distinct items of the current user's positives, and the time of the first of each."""
    seen_since: Ints = field(default_factory=lambda: _NONE)

    def extend(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its new columns, `draws` left out."""
        rows = self._rows(batch)
        history, until = self._histories(rows)
        columns = {n: batch.column(n) for n in batch.schema.names if n != "draws"}
        columns |= {"history": history, "past_until": until}
        if self.negatives:
            columns["negatives"] = self._negatives(rows, batch.column("draws"))
        if batch.num_rows:
            self._carry(rows)
            self.user = batch.column("user")[-1].as_py()
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def _rows(self, batch: pa.RecordBatch) -> _Rows:
        """The carried positives as rows in front of the batch's own; another user than the carried one has none."""
        users = pc.run_end_encode(batch.column("user"))
        ends = users.run_ends.to_numpy()
        user = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        if not batch.num_rows or users.values[0].as_py() != self.user:
            self.items = self.times = self.seen = self.seen_since = _NONE
        carried = len(self.items)
        return _Rows(
            carried=carried,
            user_N=np.concatenate([np.zeros(carried, np.int64), user]),
            time_N=np.concatenate([self.times, batch.column("ts").cast(pa.int64()).to_numpy()]),
            positive_N=np.concatenate([np.ones(carried, bool), batch.column("label").to_numpy() == 1]),
            item_N=np.concatenate([self.items, batch.column("item_index").to_numpy().astype(np.int64)]),
        )

    def _histories(self, rows: _Rows) -> tuple[pa.Array, pa.Array]:
        own = slice(rows.carried, None)
        end_N = rows.before_N[rows.moment_N[own]]
        start_N = np.maximum(rows.before_N[rows.first_N[own]], end_N - self.history)
        length_N = end_N - start_N
        offsets = np.concatenate([[0], np.cumsum(length_N)])
        place = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start_N, length_N)
        item_P, time_P = rows.item_N[rows.positive_N], rows.time_N[rows.positive_N]
        lists = pa.ListArray.from_arrays(offsets.astype(np.int32), item_P[place].astype(np.int32))
        none = length_N == 0
        newest = time_P[end_N - 1] if len(time_P) else np.zeros(len(end_N), np.int64)
        until = pa.array(newest, mask=none).cast(pa.timestamp("us", tz="UTC"))
        return pc.if_else(pa.array(none), pa.scalar(None, lists.type), lists), until

    def _negatives(self, rows: _Rows, draws: pa.Array) -> pa.Array:
        """The first `negatives` draws of each row but its own item and the user's positives strictly before it."""
        length_N = pc.fill_null(pc.list_value_length(draws), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        row = np.repeat(np.arange(len(draws)), length_N) + rows.carried
        item = draws.flatten().to_numpy().astype(np.int64)
        key_S, since_S = self._seen(rows)
        wanted = (rows.user_N[row] << 32) | item
        place = np.minimum(np.searchsorted(key_S, wanted), max(len(key_S) - 1, 0))
        free = item != rows.item_N[row]
        if len(key_S):
            free &= (key_S[place] != wanted) | (since_S[place] >= rows.time_N[row])
        taken = np.concatenate([[0], np.cumsum(free)])
        before = np.concatenate([[0], np.cumsum(length_N)])[:-1]
        kept = free & (taken[1:] - taken[np.repeat(before, length_N)] <= self.negatives)
        count = np.bincount(row[kept] - rows.carried, minlength=len(draws))
        offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
        return pa.ListArray.from_arrays(offsets, item[kept].astype(np.int32))

    def _seen(self, rows: _Rows) -> tuple[Ints, Ints]:
        """(user and item as one number, time of the first positive), sorted; the first user's are carried on."""
        own = rows.positive_N.copy()
        own[: rows.carried] = False  # they are among the carried `seen`
        key = np.concatenate([self.seen, (rows.user_N[own] << 32) | rows.item_N[own]])
        since = np.concatenate([self.seen_since, rows.time_N[own]])
        key_S, first = np.unique(key, return_index=True)  # of equal ones the first, hence the earliest
        since_S = since[first]
        last = key_S >> 32 == rows.user_N[-1] if len(rows.user_N) else np.zeros(len(key_S), bool)
        self.seen, self.seen_since = key_S[last] & 0xFFFFFFFF, since_S[last]
        return key_S, since_S

    def _carry(self, rows: _Rows) -> None:
        """Keep what the next batch needs of its first user: the last positives before the newest moment, and at it."""
        moment, total = rows.before_N[rows.moment_N[-1]], rows.before_N[-1]
        first = rows.before_N[rows.first_N[-1]]
        item_P, time_P = rows.item_N[rows.positive_N], rows.time_N[rows.positive_N]
        kept = np.concatenate(
            [
                np.arange(max(first, moment - self.history), moment),
                np.arange(max(moment, total - self.history), total),
            ]
        )
        self.items, self.times = item_P[kept], time_P[kept]


@dataclass
class _Rows:
    """Carried rows and a batch's, by column."""

    carried: int
    user_N: Ints
    time_N: Ints
    positive_N: NDArray[np.bool_]
    item_N: Ints

    def __post_init__(self) -> None:
        new_user = np.ones(len(self.user_N), bool)
        new_user[1:] = self.user_N[1:] != self.user_N[:-1]
        new_moment = new_user.copy()
        new_moment[1:] |= self.time_N[1:] != self.time_N[:-1]
        self.first_N = _starts(new_user)
        """Where the row's user begins."""
        self.moment_N = _starts(new_moment)
        """Where the rows of the same user and time begin."""
        self.before_N = np.concatenate([[0], np.cumsum(self.positive_N)])
        """Positives in front of each row, and in all."""


def _starts(new_N: NDArray[np.bool_]) -> Ints:
    place = np.where(new_N, np.arange(len(new_N)), 0)
    return np.maximum.accumulate(place) if len(place) else place
