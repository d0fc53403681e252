"""Categories of a published split's items, and the file of them for MovieLens 100K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataRefused, UsageError
from pipelines import published_split, split_categories
from tests.conftest import REAL_DATA as SHARED
from tests.pipelines.test_published_split import written
from tests.pipelines.test_replicate import drawn


def file(path: Path, item: Any = (1, 3), categories: Any = (["b", "a"], ["a"])) -> Path:
    pq.write_table(pa.table({"item": item, "categories": categories}), path)
    return path


def test_an_item_has_its_categories_and_one_without_a_row_none(tmp_path: Path) -> None:
    found, digest = split_categories.read(file(tmp_path / "c"), 4)
    assert found.offsets.tolist() == [0, 0, 0, 2, 2, 3, 3]  # padding, unknown, items 1 to 4
    assert found.values.tolist() == [0, 1, 1]
    assert split_categories.read(file(tmp_path / "d", item=(1, 2)), 4)[1] != digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": (1, 5)}, "column item holds 5; the split's ids are 1 to 4"),
        ({"item": (0, 1)}, "column item holds 0"),
        ({"item": (1, 1)}, "holds an id twice"),
        ({"item": (1, None)}, "holds a null"),
        ({"categories": (None, ["a"])}, "holds a null"),
        ({"categories": (["a", None], ["a"])}, "holds a null"),
        ({"categories": ("a", "b")}, "no table of items and lists"),
        ({"item": ("x", "y")}, "no table of items and lists"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataRefused, match=message):
        split_categories.read(file(tmp_path / "c", **changes), 4)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        split_categories.read(tmp_path / "nowhere", 4)
    (tmp_path / "text").write_text("item,categories")
    with pytest.raises(DataRefused, match="text: no table"):
        split_categories.read(tmp_path / "text", 4)
    pq.write_table(pa.table({"item": [1]}), tmp_path / "one")
    with pytest.raises(DataRefused, match="one: needs the columns item and categories"):
        split_categories.read(tmp_path / "one", 4)


def test_movielens(tmp_path: Path) -> None:
    log, folder = SHARED / "ml-100k", SHARED / "adrec-ml-100k"
    if not log.is_dir() or not folder.is_dir():
        pytest.skip("shared/data/ml-100k and adrec-ml-100k are not there")
    out = tmp_path / "made" / "items.parquet"
    assert split_categories.main([str(log), str(folder), str(out)]) == 0
    split = split_categories.joined(published_split.read(folder), out)
    assert split.categories is not None
    assert len(split.categories.offsets) == 1 + 2 + 1008
    assert (split.categories.offsets[3:] > split.categories.offsets[2:-1]).all(), "every film has a genre"
    assert split.categories.values.max() == 18  # 18 genres and "unknown"
    # The first user with a rating above 3 is 298: what is left of the liked films stands in the order of time.
    rows = pq.read_table(out).to_pydict()
    genres = dict(zip(rows["item"], rows["categories"], strict=True))
    first = pq.read_table(folder / "sequences.parquet")["train"][0].as_py()
    all_liked = iter(liked(log, "298"))
    assert len(first) > 5
    assert all(any(found == genres[item] for found in all_liked) for item in first)


def liked(log: Path, user: str) -> list[list[str]]:
    """Genres of what a user rated above 3, in order of time."""
    genres = dict(line.split("\t")[::3] for line in (log / "ml-100k.item").read_text().splitlines()[1:])
    events = [line.split("\t") for line in (log / "ml-100k.inter").read_text().splitlines()[1:]]
    mine = sorted((float(t), n, item) for n, (u, item, r, t) in enumerate(events) if u == user and float(r) > 3)
    return [genres[item].split() for _, _, item in mine]


def test_a_log_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, log = written(tmp_path / "split", **drawn()), tmp_path / "log"
    log.mkdir()
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (log / "ml-100k.inter").write_text(head + "".join(f"{u}\t{i}\t5\t{i}\n" for u in range(9) for i in range(9)))
    out = tmp_path / "out.parquet"
    assert split_categories.main([str(log), str(folder), str(out)]) == DataRefused.exit_code
    assert "does not lead to the split's sequences" in capsys.readouterr().err
    assert not out.exists()
    assert split_categories.main([]) == UsageError.exit_code
    (log / "ml-100k.inter").write_text("user_id:token\n1\n")
    assert split_categories.main([str(log), str(folder), str(out)]) == DataRefused.exit_code
    assert "has no column" in capsys.readouterr().err
    (log / "ml-100k.inter").write_text(head + "1\t2\tbad\t3\n")
    assert split_categories.main([str(log), str(folder), str(out)]) == DataRefused.exit_code
    assert "cannot be read as an atomic file" in capsys.readouterr().err
