"""featurize/sides.py: reference data row by row; what cannot be read refuses the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.contract import Contract
from featurize.sides import side_table
from infra.errors import DataRefused

FIELDS = [
    {"name": "age", "kind": "numeric", "column": "Age", "source": "users"},
    {"name": "tags", "kind": "multi", "separator": "|", "source": "users"},
    {"name": "job", "kind": "categorical", "source": "users"},
]


def contract(fmt: str = "csv", path: str = "users", **over: Any) -> Contract:
    side = {"path": path, "format": fmt, "key": "id"}
    base = {"name": "log", "source": {"path": "x", "format": "json"}, "user": "u", "item": "i"}
    return Contract.model_validate(
        {**base, "time": {"column": "t", "unit": "s"}, "users": side, "fields": FIELDS, **over}
    )


def rows(root: Path, made: Contract) -> list[dict[str, Any]]:
    answer = side_table(made, root, "user")
    assert answer is not None
    table, read = answer
    assert table.name == "user_features"
    assert read.schema == table.file_schema
    return read.to_pylist()


def row(key: str, age: float | None, tags: list[str] | None, job: str | None) -> dict[str, Any]:
    return {"key": key, "f_age": age, "f_tags": tags, "f_job": job}


def test_no_side_file_no_table(tmp_path: Path) -> None:
    assert side_table(contract(), tmp_path, "item") is None


def test_csv_with_missing_values(tmp_path: Path) -> None:
    (tmp_path / "users").write_text('id,job,Age,tags,zip\n2,,7,a|b,x\n1,"it, etc",nan,,y\n')
    assert rows(tmp_path, contract()) == [row("1", None, None, "it, etc"), row("2", 7.0, ["a", "b"], None)]


def test_json_may_lack_any_field_but_the_key(tmp_path: Path) -> None:
    (tmp_path / "users").write_text('{"id":10,"tags":[]}\n{"id":9,"Age":null,"job":"x"}\n')
    assert rows(tmp_path, contract("json")) == [row("10", None, [], None), row("9", None, None, "x")]


def test_parquet(tmp_path: Path) -> None:
    columns = {"id": [1, 2], "Age": [30.5, float("nan")], "tags": ["a", None], "job": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "users", row_group_size=1)
    assert rows(tmp_path, contract("parquet")) == [row("1", 30.5, ["a"], "x"), row("2", None, None, "y")]


def test_of_a_repeated_key_the_last_row_counts_over_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "b.csv").write_text("id,job,Age,tags\n1,late,1,\n1,last,2,\n")
    (tmp_path / "users" / "a.csv.gz").write_bytes(gzip.compress(b"id,job,Age,tags\n1,early,3,\n"))
    assert rows(tmp_path, contract()) == [row("1", 2.0, None, "last")]


def test_keys_stand_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    keys = ["b", "\uffff", "a", "\U00010000", "\u00e9", "B"]
    (tmp_path / "users").write_text("".join(f'{{"id":"{k}"}}\n' for k in keys))
    assert [r["key"] for r in rows(tmp_path, contract("json"))] == sorted(keys, key=str.encode)


@pytest.mark.parametrize(
    ("fmt", "content", "words"),
    [
        ("csv", b"id,job,Age,tags\n1,x,old,\n", r"users, position 16: 'old' is not a number; mend the side file"),
        ("csv", b"id,job,Age,tags\n1,x\n", "users, position 16: malformed 2 cells where the header has 4"),
        ("csv", b"id,job,Age,tags\n,x,1,\n", "users, position 16: id is absent, null or empty"),
        ("csv", b"id,job,Age,tags\n1,x,1,\n\n", "users, position 23: empty_line"),
        ("csv", b"id,job,tags\n1,x,\n", r"users: the column\(s\) 'Age'"),
        ("csv", b"id,job,Age,tags\n", "users: the side file holds no row"),
        ("csv", b"", "users: the side file holds no row"),
        ("json", b'{"job":"x"}\n', "users, position 0: id is absent"),
        ("json", b'{"id":"a"}\n{\n', "users, position 11: malformed not JSON"),
        ("json", b'{"id":"\\ud800"}\n', "users, position 0: .*surrogates not allowed"),
        ("json", b'{"id":1,"tags":{"a":1}}\n', "users, position 0: a dict"),
    ],
)
def test_a_row_that_cannot_be_read_refuses_the_file(tmp_path: Path, fmt: str, content: bytes, words: str) -> None:
    (tmp_path / "users").write_bytes(content)
    with pytest.raises(DataRefused, match=words):
        rows(tmp_path, contract(fmt))


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    lines = b"".join(b'{"id":%d}\n' % n for n in range(1000))
    (tmp_path / "users.gz").write_bytes(gzip.compress(lines)[:-9])
    with pytest.raises(DataRefused, match=r"users\.gz, position 1001: truncated_file"):
        rows(tmp_path, contract("json", "users.gz"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="users: no file there"):
        rows(tmp_path, contract())


TIMED = {"path": "users", "format": "csv", "key": "id", "time": {"column": "since", "unit": "s"}}


def test_a_key_has_a_row_for_every_time_it_says(tmp_path: Path) -> None:
    """Of a repeated key and time the last row counts; rows stand in the order of key and time."""
    lines = ["id,job,Age,tags,since", "2,x,,,5", "1,late,,,20.5", "1,early,,,3", "1,later,,,20.5"]
    (tmp_path / "users").write_text("\n".join(lines) + "\n")
    read = rows(tmp_path, contract(users=TIMED))
    found = [(r["key"], r["valid_from"].timestamp(), r["f_job"]) for r in read]
    assert found == [("1", 3.0, "early"), ("1", 20.5, "later"), ("2", 5.0, "x")]


@pytest.mark.parametrize(
    ("since", "words"),
    [("", "since is absent, null or empty"), ("soon", "is not a time in s"), ("1e15", "since lies outside the years")],
)
def test_a_row_without_a_time_refuses_the_file(tmp_path: Path, since: str, words: str) -> None:
    (tmp_path / "users").write_text(f"id,job,Age,tags,since\n1,x,,,{since}\n")
    with pytest.raises(DataRefused, match=words):
        rows(tmp_path, contract(users=TIMED))


def test_the_real_side_files(ml_100k: Path) -> None:
    """Against a count with the standard tools: 943 users of 21 occupations."""
    from infra.config import load

    recipes = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts"
    made = load(recipes / "ml-100k.yaml", Contract)
    lines = [line.split("\t") for line in (ml_100k / "ml-100k.user").read_text().splitlines()[1:]]
    users = rows(ml_100k, made)
    assert len(users) == len(lines) == 943
    by_key = {u["key"]: u for u in users}
    for user, age, gender, occupation, _ in lines:
        assert by_key[user] == {"key": user, "f_age": float(age), "f_gender": gender, "f_occupation": occupation}
