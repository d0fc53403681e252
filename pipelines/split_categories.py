"""Categories of a published split's items: a Parquet file of `item` (the split's id) and `categories` (strings).

`python -m pipelines.split_categories LOG SPLIT OUT` makes it for MovieLens 100K: the split published with ADRec has
item ids of its own, and no titles or genres. The raw log (RecBole's form) leads to the same 938 sequences: ratings
above 3, then users and items with five events or more until all have them, each user's events by time, equal times in
the log's order, users as they first appear. Item by item the two are then the same list, which gives the genres.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluate.metrics.diversity import ItemCategories
from infra.errors import DataRefused, Logs2RecError, UsageError
from infra.lake import brief
from infra.tables import FIRST_INDEX
from pipelines import published_split
from pipelines.published_split import PublishedSplit

COLUMNS = ("item", "categories")
_LIKED, _CORE = 3, 5


def joined(split: PublishedSplit, path: Path) -> PublishedSplit:
    """The split with its items' categories. Raises as `read`."""
    categories, digest = read(path, split.items)
    return replace(split, categories=categories, categories_digest=digest)


def read(path: Path, items: int) -> tuple[ItemCategories, str]:
    """(categories by item index of a split with `items` ids, the file's digest); an id without a row has none.

    Raises UsageError where there is no file, DataRefused, naming file and column, for one that is no such table, has
    nulls, an id beyond the split's or one twice.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; for MovieLens 100K `python -m pipelines.split_categories` makes it")
    try:
        with path.open("rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()[:16]
        table = pq.ParquetFile(path).read(list(COLUMNS))
        if table.column_names != list(COLUMNS):
            raise DataRefused(f"{path}: needs the columns {' and '.join(COLUMNS)}")
        number = table["item"].cast(pa.int64())
        lists = table["categories"].cast(pa.list_(pa.string()))
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(f"{path}: no table of items and lists of categories ({brief(error)})") from None
    if number.null_count or lists.null_count or pa.compute.list_flatten(lists).null_count:
        raise DataRefused(f"{path}: holds a null; every row needs its item and a list, if only an empty one")
    ids = number.to_pylist()
    if wrong := [i for i in ids if not 1 <= i <= items]:
        raise DataRefused(f"{path}: column item holds {wrong[0]}; the split's ids are 1 to {items}")
    if len(set(ids)) < len(ids):
        raise DataRefused(f"{path}: column item holds an id twice; one row has all of an item's categories")
    names: dict[str, int] = {}
    rows: list[list[int]] = [[] for _ in range(FIRST_INDEX + items)]
    for item, categories in zip(ids, lists.to_pylist(), strict=True):
        rows[item - 1 + FIRST_INDEX] = [names.setdefault(name, len(names)) for name in categories]
    return ItemCategories.from_lists(rows), digest


def write_movielens(log: Path, split: PublishedSplit, out: Path) -> int:
    """Write the file for `split` from the folder of the raw log; the number of items.

    Raises DataRefused when the log does not lead to the split's very sequences, and nothing is written.
    """
    events = _read_atomic(log / "ml-100k.inter", {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float64(),
                                                  "timestamp": pa.float64()})  # fmt: skip
    raw = _as_published(*(events[name].to_numpy() for name in ("user_id", "item_id", "rating", "timestamp")))
    published = [*published_split.sequences(split)]
    if [*map(len, raw)] != [*map(len, published)]:
        raise DataRefused(f"{log}: does not lead to the split's sequences; is it MovieLens 100K in RecBole's form?")
    pairs = np.unique(np.stack([np.concatenate(published) - FIRST_INDEX + 1, np.concatenate(raw)]), axis=1)
    if any(len(np.unique(side)) < pairs.shape[1] for side in pairs):
        raise DataRefused(f"{log}: its sequences are as long as the split's, but of other items")
    items = _read_atomic(log / "ml-100k.item", {"item_id": pa.int64(), "class": pa.string()})
    genres = dict(zip(items["item_id"].to_pylist(), items["class"].to_pylist(), strict=True))
    if unknown := set(pairs[1].tolist()) - genres.keys():
        raise DataRefused(f"{log / 'ml-100k.item'}: has no row for item {min(unknown)}")
    rows = {"item": pairs[0].tolist(), "categories": [(genres[i] or "").split() for i in pairs[1].tolist()]}
    types = pa.schema({"item": pa.int64(), "categories": pa.list_(pa.string())})
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows, types), out)
    return pairs.shape[1]


def _read_atomic(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """Columns of an atomic file: tab-separated, heads as "name:type"."""
    try:
        table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t", quote_char=False))
        table = table.rename_columns([name.partition(":")[0] for name in table.column_names])
        if absent := types.keys() - set(table.column_names):
            raise DataRefused(f"{path}: has no column {min(absent)}; it has {', '.join(table.column_names)}")
        return table.select(list(types)).cast(pa.schema(types))
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(f"{path}: cannot be read as an atomic file ({brief(error)})") from None


def _as_published(
    user_T: NDArray[np.int64], item_T: NDArray[np.int64], rating_T: NDArray[np.float64], time_T: NDArray[np.float64]
) -> list[NDArray[np.int64]]:
    """Items of each user, filtered and ordered as the published split is."""
    kept_T = np.flatnonzero(rating_T > _LIKED)
    while True:
        frequent_T = np.ones(len(kept_T), bool)
        for column in (user_T[kept_T], item_T[kept_T]):
            _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
            frequent_T &= counts[inverse] >= _CORE
        if frequent_T.all():
            break
        kept_T = kept_T[frequent_T]
    users, first = np.unique(user_T[kept_T], return_index=True)
    by_time_T = kept_T[np.argsort(time_T[kept_T], kind="stable")]
    return [item_T[by_time_T[user_T[by_time_T] == user]] for user in users[np.argsort(first)]]


def main(arguments: Sequence[str]) -> int:
    """The command; 0 or, with the reason on stderr, the error's exit code."""
    if len(arguments) != 3:
        print("usage: python -m pipelines.split_categories LOG SPLIT OUT", file=sys.stderr)
        return UsageError.exit_code
    log, folder, out = map(Path, arguments)
    try:
        print(f"{out}: {write_movielens(log, published_split.read(folder), out)} items")
    except Logs2RecError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
