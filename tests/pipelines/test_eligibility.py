"""Files of what may be recommended: text as it stands, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import DataRefused
from pipelines.eligibility import eligible_items


def parquet(folder: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return folder / "items.parquet"


def test_csv_as_text(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("note,item\na,007\nb,7\nc,\nd,NA\ne,7\n")
    assert eligible_items(tmp_path / "items.csv").to_pylist() == ["007", "7", "NA"]


def test_parquet(tmp_path: Path) -> None:
    items = pa.array(["b", None, "a", "b"], pa.large_string())
    assert eligible_items(parquet(tmp_path, item=items, note=pa.array([1, 2, 3, 4]))).to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("article\na\n", "needs one column 'item'; it has article"),
        ("item,item\na,b\n", "needs one column 'item'; it has item, item"),
        ("item\n", "has no item; leave the setting out"),
        ("", "cannot be read"),
    ],
)
def test_a_csv_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(DataRefused, match=rf"scoring\.eligible: .*items\.csv: ({message})"):
        eligible_items(tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1.0, 2.0]), "item holds double; write the ids as text"),
        (pa.array([["a"], ["b"]]), "item holds list"),
        (pa.array([7, 8]), "item holds int64"),
        (pa.array([None, None], pa.string()), "has no item"),
    ],
)
def test_a_parquet_file_that_is_refused(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(DataRefused, match=message):
        eligible_items(parquet(tmp_path, item=column))
    with pytest.raises(DataRefused, match=r"needs one column 'item'; it has goods"):
        eligible_items(parquet(tmp_path, goods=column))


def test_a_file_that_is_not_there_or_no_parquet(tmp_path: Path) -> None:
    for name in ("items.parquet", "items.csv"):
        with pytest.raises(DataRefused, match="cannot be read"):
            eligible_items(tmp_path / name)
    (tmp_path / "items.parquet").write_bytes(b"item\na\n")
    with pytest.raises(DataRefused, match="cannot be read"):
        eligible_items(tmp_path / "items.parquet")
