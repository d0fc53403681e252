"""A published leave-one-out split: one Parquet file, read, checked and written as the table `sequences`.

The file has a row per user: `user` (number or string), `train` (list of item ids in order of time), `val` and `test`
(an item id, or a list that holds one). Ids count from 1. No Spark: such files are small.

Shapes: U users, T training events of all users, one user after the other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluate.metrics.diversity import ItemCategories
from featurize import cutting
from infra.commit import commit, write_file
from infra.errors import DataRefused, UsageError
from infra.lake import Lake, brief
from infra.tables import FIRST_INDEX, SEQUENCES, TIMESTAMP

FILE = "sequences.parquet"
COLUMNS = ("user", "train", "val", "test")
AS_OF = "published"
"""Stands for the run date, which such a split does not have."""

_SHIFT = FIRST_INDEX - 1  # id 1 is the first index
_LARGEST = 2**31 - 1 - FIRST_INDEX  # ids beyond are no int32 indices
_SPARSE = 100  # every id up to the largest gets a row of the item table, used or not

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class PublishedSplit:
    """A split in the order of its file, as item indices (id + 1)."""

    users: list[str]
    train_T: Ids
    lengths_U: Ids
    """Training events of each user; a user without any is evaluated all the same, from nothing or from `val` alone."""
    valid_U: Ids
    test_U: Ids
    digest: str
    """Of the file."""
    categories: ItemCategories | None = None
    """Of the items, where they were read too (pipelines.split_categories)."""
    categories_digest: str | None = None
    """Of their file."""

    @property
    def items(self) -> int:
        """The largest id: the catalogue holds every id from 1 to it, whether it occurs or not."""
        return int(max(self.train_T.max(initial=0), self.valid_U.max(), self.test_U.max())) - _SHIFT

    def anybody_validates(self) -> bool:
        """Whether any user's validation item is not in the user's own training part."""
        owner_T = np.repeat(np.arange(len(self.users)), self.lengths_U)
        repeating = np.unique(owner_T[self.train_T == self.valid_U[owner_T]])
        return len(repeating) < len(self.users)

    def training_size(self, length: int | None) -> tuple[int, int]:
        """(training rows, events that they predict) for models that see `length` events."""
        longest = int(self.lengths_U.max()) if length is None else length + 1
        whole_U, rest_U = np.divmod(self.lengths_U, max(1, longest))
        rows = int(whole_U.sum() + (rest_U > 1).sum())
        return rows, int(self.lengths_U.sum() - (rest_U == 1).sum()) - rows

    def vocabulary(self) -> pa.Table:
        """Columns index and key: id i, as text, at index i + 1."""
        ids = np.arange(1, self.items + 1)
        return pa.table({"index": pa.array(ids + _SHIFT, pa.int32()), "key": pa.array(ids).cast(pa.string())})

    def in_file_order(self, users: NDArray[np.object_]) -> Ids:
        """The places of `users` (some of the split's) that bring them into the order of the file."""
        place = {user: number for number, user in enumerate(self.users)}
        return np.argsort([place[user] for user in users])


def read(folder: Path) -> PublishedSplit:
    """The split in `folder`/sequences.parquet.

    Raises UsageError for an absent folder, DataRefused for a file that is absent, empty or no Parquet, for missing
    columns, other types, nulls, ids out of range or with hardly an item behind them, users that come twice, targets
    that are not exactly one item, and validation items of which each is in its user's history. Each names the file,
    and column and user where there are.
    """
    path = folder / FILE
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --data takes the folder that holds {FILE}")
    if not path.is_file():
        raise DataRefused(f"{path}: no file there; --data takes the folder that holds {FILE}")
    table, digest = _table(path)
    reader = _Reader(path, _users(path, table["user"]))
    split = PublishedSplit(
        reader.users, *reader.lists(table["train"], "train"), reader.targets(table["val"], "val"),
        reader.targets(table["test"], "test"), digest,
    )  # fmt: skip
    if split.lengths_U.max() < 2:
        raise DataRefused(f"{path}: no user has two training items, so there is nothing to learn")
    if not split.anybody_validates():
        raise DataRefused(
            f"{path}: every val item stands in its user's own train list, so with the history removed nothing is left "
            "to select weights by; give each user a val item that is new to them"
        )
    used = len(np.unique(np.concatenate([split.train_T, split.valid_U, split.test_U])))
    if split.items > _SPARSE * used:
        raise DataRefused(
            f"{path}: the largest item id is {split.items:,}, but only {used:,} ids occur, and every one up to the "
            "largest would get a row of the item table; number the items from 1 without gaps"
        )
    return split


def _table(path: Path) -> tuple[pa.Table, str]:
    """The four columns, and the digest of the file."""
    try:
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()[:16]
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if absent := [name for name in COLUMNS if names.count(name) != 1]:
            raise DataRefused(f"{path}: needs each column once, and {', '.join(absent)} is not; it has {names}")
        table = file.read(list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(f"{path}: cannot be read as Parquet ({brief(error)})") from None
    if table.num_rows == 0:
        raise DataRefused(f"{path}: has no row, so no user to train or test on")
    return table, digest


def _users(path: Path, column: pa.ChunkedArray) -> list[str]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataRefused(f"{path}: column user is {column.type}; it has to be of whole numbers or strings")
    if column.null_count:
        raise DataRefused(f"{path}: column user is null in {column.null_count} rows; every row needs its user")
    users: list[str] = column.cast(pa.string()).to_pylist()
    if twice := [user for user, rows in Counter(users).items() if rows > 1]:
        raise DataRefused(f"{path}: user {twice[0]} has several rows; one holds all of a user")
    return users


@dataclass(frozen=True)
class _Reader:
    """Columns of item ids into indices; its refusals name file, column and user."""

    path: Path
    users: list[str]

    def lists(self, column: pa.ChunkedArray, name: str) -> tuple[Ids, Ids]:
        """(indices end to end, how many of each user)."""
        if not _is_list(column.type):
            self.refuse(name, f"is {column.type}; it has to be of lists of item ids")
        self.no_null(column, name)
        lengths_U = pc.list_value_length(column).to_numpy().astype(np.int64)
        owner = np.repeat(np.arange(len(self.users)), lengths_U)
        return self.indices(pc.list_flatten(column), name, owner), lengths_U

    def targets(self, column: pa.ChunkedArray, name: str) -> Ids:
        """One index per user."""
        if not _is_list(column.type):
            self.no_null(column, name)
            return self.indices(column, name, np.arange(len(self.users)))
        values, lengths_U = self.lists(column, name)
        if len(wrong := np.flatnonzero(lengths_U != 1)):
            self.refuse(name, f"holds {lengths_U[wrong[0]]} items where it has to hold exactly one", wrong[0])
        return values

    def indices(self, values: pa.ChunkedArray, name: str, owner: Ids) -> Ids:
        """Ids to indices; `owner` is the row that each belongs to."""
        if not pa.types.is_integer(values.type):
            self.refuse(name, f"holds {values.type}; item ids have to be whole numbers")
        if values.null_count:
            self.refuse(name, "holds a null", owner[np.flatnonzero(values.is_null().to_numpy())[0]])
        ids = values.to_numpy()
        if len(wrong := np.flatnonzero((ids < 1) | (ids > _LARGEST))):
            self.refuse(name, f"holds item id {ids[wrong[0]]}; ids count from 1 to {_LARGEST}", owner[wrong[0]])
        return ids.astype(np.int64) + _SHIFT

    def no_null(self, column: pa.ChunkedArray, name: str) -> None:
        """DataRefused if a row has nothing there."""
        if column.null_count:
            self.refuse(name, "is null", np.flatnonzero(column.is_null().to_numpy())[0])

    def refuse(self, name: str, why: str, row: int | np.integer | None = None) -> NoReturn:
        where = f"column {name}" if row is None else f"user {self.users[row]}: column {name}"
        raise DataRefused(f"{self.path}: {where} {why}")


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def write(lake: Lake, split: PublishedSplit, length: int | None) -> int:
    """Commit the split to `sequences` as of AS_OF, for models that see `length` events; returns the version.

    As featurize writes leave-one-out: training parts in chunks of at most `length` + 1 events cut from the end, one
    lone event left out (null: whole); valid with the training part as its history, test with that and the valid item;
    `target_known` where the target stands in anybody's training part, in both splits. Unlike there, everybody is
    evaluated, also users with fewer than three events. Raises DataRefused when nothing is left to train on.
    """
    pieces = _pieces(split)
    seen = cutting.marked(pieces.trained())
    parts = {"train": cutting.train_table(pieces, length or max(1, int(split.lengths_U.max())))}
    for name, held in pieces.held_out.items():
        rows = cutting.held_table(pieces, held, cutting.known(held.target, seen))
        place = rows.schema.get_field_index("target_ts")
        parts[name] = rows.set_column(place, "target_ts", pa.nulls(len(rows), TIMESTAMP))
    folder = lake.path(SEQUENCES.name)
    files = [
        write_file(folder, SEQUENCES, {"as_of": AS_OF, "split": name}, [rows], distinct=("items",))
        for name, rows in parts.items()
    ]
    return commit(lake, SEQUENCES, files, replace={"as_of": [AS_OF]}, metadata={"logs2rec.split": split.digest})


def sequences(split: PublishedSplit) -> Iterator[Ids]:
    """Each user's item indices, the validation and the test item last."""
    pieces = _pieces(split)
    held_out = len(pieces.held_out)
    return (pieces.items[s : e + held_out].astype(np.int64) for s, e in zip(pieces.starts, pieces.ends, strict=True))


def _pieces(split: PublishedSplit) -> cutting.Pieces:
    """Each user's training part, valid item and test item, side by side."""
    ends = np.cumsum(split.lengths_U) + 2 * np.arange(len(split.users))
    starts = ends - split.lengths_U
    items = np.zeros(len(split.train_T) + 2 * len(split.users), np.int32)
    items[ends], items[ends + 1] = split.valid_U, split.test_U
    items[cutting.merging.ranges(starts, split.lengths_U)] = split.train_T
    rows, never = np.arange(len(split.users)), np.zeros(len(split.users), np.int64)
    held = {
        "valid": cutting.Held(rows, starts, ends, split.valid_U, never),
        "test": cutting.Held(rows, starts, ends + 1, split.test_U, never),
    }
    return cutting.Pieces(pa.array(split.users, pa.string()), items, starts, ends, held)
