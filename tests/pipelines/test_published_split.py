"""A published split: refused by name at the border, and its rows as featurize would have cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataRefused, UsageError
from infra.lake import Lake
from pipelines.published_split import AS_OF, FILE, read, write

GOOD = {"user": [7, 8], "train": [[1, 2], [3]], "val": [3, 1], "test": [4, 2]}


def written(folder: Path, **columns: Any) -> Path:
    """A split with some columns other than GOOD's; None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: values for name, values in {**GOOD, **columns}.items() if values is not None}
    pq.write_table(pa.table(kept), folder / FILE)
    return folder


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"val": None}, r"needs each column once, and val is not; it has \['user', 'train', 'test'\]"),
        ({"user": [7, None]}, "column user is null in 1 rows"),
        ({"user": [7, 7]}, "user 7 has several rows"),
        ({"user": [0.5, 1.5]}, "column user is double"),
        ({"train": [[1, 2], None]}, "user 8: column train is null"),
        ({"train": [[1, 2], [3, None]]}, "user 8: column train holds a null"),
        ({"train": [[], [3, 0]]}, "user 8: column train holds item id 0; ids count from 1"),
        ({"train": [[1, -4], [3]]}, "user 7: column train holds item id -4"),
        ({"train": [["a"], ["b"]]}, "column train holds string; item ids have to be whole numbers"),
        ({"train": [1, 2]}, "column train is int64; it has to be of lists"),
        ({"val": [None, 3]}, "user 7: column val is null"),
        ({"val": [[1], None]}, "user 8: column val is null"),
        ({"val": [1.0, 2.0]}, "column val holds double"),
        ({"test": [1, 2**31]}, "user 8: column test holds item id 2147483648; ids count from 1 to 2147483645"),
        ({"test": [[1], [1, 2]]}, "user 8: column test holds 2 items where it has to hold exactly one"),
        ({"test": [[], [1]]}, "user 7: column test holds 0 items"),
        ({"train": [[1, 2], [3]], "val": [2, 3]}, "every val item stands in its user's own train list"),
        ({"test": [4, 10_000]}, "largest item id is 10,000, but only 5 ids occur, .*; number the items from 1"),
    ],
)
def test_refused_by_file_column_and_user(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataRefused, match=rf"{FILE}: .*{message}"):
        read(written(tmp_path, **columns))


def test_folders_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"none: no such folder; --data takes the folder that holds {FILE}"):
        read(tmp_path / "none")
    with pytest.raises(DataRefused, match=f"{FILE}: no file there"):
        read(tmp_path)
    (tmp_path / FILE).write_text("user,train,val,test\n")
    with pytest.raises(DataRefused, match=f"{FILE}: cannot be read as Parquet"):
        read(tmp_path)
    types = {"user": pa.int64(), "train": pa.list_(pa.int64()), "val": pa.int64(), "test": pa.int64()}
    pq.write_table(pa.table({name: pa.array([], kind) for name, kind in types.items()}), tmp_path / FILE)
    with pytest.raises(DataRefused, match=f"{FILE}: has no row"):
        read(tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"val": [[3], [1]], "test": pa.array([[4], [2]], pa.large_list(pa.int16()))},
        {"val": pa.array([[3], [1]], pa.list_(pa.int32(), 1)), "test": pa.array([4, 2], pa.uint8())},
        {"train": pa.array([[1, 2], [3]], pa.large_list(pa.uint64())), "more": ["x", "y"]},
        {"user": pa.array(["7", "8"]).dictionary_encode()},
    ],
)
def test_the_forms_that_it_may_have(tmp_path: Path, columns: dict[str, Any]) -> None:
    split = read(written(tmp_path, **columns))
    assert (split.users, split.items) == (["7", "8"], 4)
    assert [split.train_T.tolist(), split.lengths_U.tolist()] == [[2, 3, 4], [2, 1]]
    assert [split.valid_U.tolist(), split.test_U.tolist()] == [[4, 2], [5, 3]]
    assert split.vocabulary().to_pydict() == {"index": [2, 3, 4, 5], "key": ["1", "2", "3", "4"]}


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    """Four users with 7, 1, 0 and 3 training events, chunks of at most 3; ids 8, 9 and 10 are in no training part."""
    columns = {
        "user": ["d", "c", "b", "a"], "train": [[1, 2, 3, 4, 5, 6, 7], [7], [], [3, 2, 1]], "val": [8, 1, 2, 4],
        "test": [1, 8, 9, 10],
    }  # fmt: skip
    lake = Lake(tmp_path / "lake")
    version = write(lake, read(written(tmp_path / "split", **columns)), 2)
    return {
        split: lake.read("sequences", version, {"as_of": AS_OF, "split": split}).to_pylist()
        for split in ("train", "valid", "test")
    }


def test_training_parts_are_cut_from_the_end(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Id 1 is index 2. The first event of seven is a lone one, as is the only event of c."""
    assert [(r["user"], r["items"]) for r in rows["train"]] == [("d", [3, 4, 5]), ("d", [6, 7, 8]), ("a", [4, 3, 2])]
    assert all(r["target"] is r["target_known"] is r["target_ts"] is r["is_target"] is None for r in rows["train"])


def test_targets_and_what_comes_before_them(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Known is what stands in a training part, also in one that is too short to train on; an item of `val` is not."""

    def told(split: str) -> list[tuple[Any, ...]]:
        return [(r["user"], r["items"], r["target"], r["target_known"]) for r in rows[split]]

    whole = [2, 3, 4, 5, 6, 7, 8]
    assert told("valid") == [("d", whole, 9, False), ("c", [8], 2, True), ("b", [], 3, True), ("a", [4, 3, 2], 5, True)]
    assert told("test") == [
        ("d", [*whole, 9], 2, True), ("c", [8, 2], 9, False), ("b", [3], 10, False), ("a", [4, 3, 2, 5], 11, False),
    ]  # fmt: skip
    assert {r["target_ts"] for r in rows["valid"] + rows["test"]} == {None}


def test_whole_training_parts_for_models_without_a_length(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    version = write(lake, read(written(tmp_path / "split", train=[[1, 2, 3, 4], [1]], val=[5, 5])), None)
    assert lake.read("sequences", version, {"split": "train"}, ["items"])["items"].to_pylist() == [[2, 3, 4, 5]]


def test_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="no user has two training items"):
        write(Lake(tmp_path / "lake"), read(written(tmp_path / "split", train=[[], [3]])), 5)
