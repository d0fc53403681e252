"""The lake: pinned reading, creation, refusals, odd folders, and second engines that read the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from infra.commit import commit, write_file
from infra.errors import DataRefused, UsageError
from infra.lake import Lake, same_schema
from infra.schemas import create
from infra.tables import TIMESTAMP, Column, Table

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (
    Column("as_of", pa.string(), "d"),
    Column("split", pa.string(), "s"),
    Column("items", pa.list_(pa.int32()), "i"),
    Column("ts", TIMESTAMP, "t", True),
)
SEQ = Table("seq", "two partition columns", COLUMNS, ("as_of", "split"))


def put(lake: Lake, as_of: str, split: str, *items: list[int]) -> int:
    rows = pa.table({"items": list(items), "ts": pa.array([10**15] * len(items), TIMESTAMP)}, schema=SEQ.file_schema)
    file = write_file(lake.path("seq"), SEQ, {"as_of": as_of, "split": split}, [rows])
    return commit(lake, SEQ, [file], replace={"as_of": [as_of], "split": [split]}, metadata={})


def rows_of(lake: Lake, version: int, where: Any = None) -> list[tuple[str, str, list[int]]]:
    return sorted((r["as_of"], r["split"], r["items"]) for r in lake.read("seq", version, where).to_pylist())


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Versions 1 to 3; version 4 rewrites what version 1 wrote."""
    lake = Lake(tmp_path / "lake")
    put(lake, "d1", "train", [1, 2], [3])
    put(lake, "d1", "test", [4])
    put(lake, "d2", "train", [5])
    put(lake, "d1", "train", [6])
    return lake


class TestReading:
    def test_pinned_versions(self, lake: Lake) -> None:
        assert [len(rows_of(lake, v)) for v in range(5)] == [0, 2, 3, 4, 3]
        assert rows_of(lake, 1) == [("d1", "train", [1, 2]), ("d1", "train", [3])]
        assert rows_of(lake, 4) == [("d1", "test", [4]), ("d1", "train", [6]), ("d2", "train", [5])]
        assert lake.version("seq") == 4

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            ({"as_of": "d1"}, [4, 6]),
            ({"as_of": "d1", "split": "train"}, [6]),
            ({"as_of": ["d1", "d2"], "split": ["train"]}, [5, 6]),
            ({"as_of": ["d3"]}, []),
            ({"as_of": []}, []),
            ({"as_of": "d"}, []),
            ({}, [4, 5, 6]),
        ],
    )
    def test_whole_partitions_by_value(self, lake: Lake, where: dict[str, Any], expected: list[int]) -> None:
        assert sorted(items[0] for _, _, items in rows_of(lake, 4, where)) == expected
        assert len(lake.files("seq", 4, where)) == len(expected)

    def test_columns_and_schema_are_the_declared_ones(self, lake: Lake) -> None:
        for version in (0, 4):
            assert lake.read("seq", version).schema.equals(SEQ.schema)
        assert lake.read("seq", 4, columns=["split", "ts"]).column_names == ["split", "ts"]
        assert lake.read("seq", 4, columns=[]).num_rows == 3
        assert lake.dataset("seq", 4).count_rows() == 3

    def test_partitions(self, lake: Lake) -> None:
        assert lake.partitions("seq", 4, "as_of") == ["d1", "d2"]
        assert lake.partitions("seq", 1, "split") == ["train"]
        assert lake.partitions("seq", 0, "split") == []

    def test_the_order_does_not_change_with_a_checkpoint(self, lake: Lake) -> None:
        for day in range(3, 9):
            version = put(lake, f"d{day}", "train", [day])
        before = lake.files("seq", version), lake.read("seq", version)
        lake.open("seq").create_checkpoint()
        assert (lake.files("seq", version), lake.read("seq", version)) == before
        assert before[0] == sorted(before[0])

    def test_a_foreign_table_with_escaped_partition_values(self, tmp_path: Path) -> None:
        rows = pa.table({"p": ["a b", "c%d", "e/f", "ü"], "x": [1, 2, 3, 4]})
        write_deltalake(str(tmp_path / "foreign"), rows, partition_by=["p"])
        lake = Lake(tmp_path)
        assert lake.read("foreign", 0).sort_by("x").to_pylist() == rows.to_pylist()
        assert all(Path(f).is_file() for f in lake.files("foreign", 0))
        assert lake.read("foreign", 0, {"p": "e/f"})["x"].to_pylist() == [3]


class TestRefusals:
    def test_a_table_that_is_not_there(self, tmp_path: Path) -> None:
        lake = Lake(tmp_path / "none")
        assert (lake.exists("seq"), lake.version("seq")) == (False, None)
        with pytest.raises(DataRefused, match="'seq' does not exist under"):
            lake.open("seq")
        assert not lake.root.exists()

    @pytest.mark.parametrize("version", [5, -1])
    def test_a_version_that_is_not_there(self, lake: Lake, version: int) -> None:
        with pytest.raises(DataRefused, match=f"'seq' has no version {version} "):
            lake.read("seq", version)

    def test_a_damaged_log(self, lake: Lake) -> None:
        (Path(lake.path("seq")) / "_delta_log" / f"{2:020d}.json").write_text("{", encoding="utf-8")
        with pytest.raises(DataRefused, match="its log is damaged") as caught:
            lake.open("seq")
        assert "\n" not in str(caught.value)

    def test_a_vacuumed_file(self, lake: Lake) -> None:
        lake.open("seq").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        with pytest.raises(DataRefused, match="version 1: a data file is gone"):
            lake.read("seq", 1)
        assert len(rows_of(lake, 4)) == 3

    def test_a_damaged_file(self, lake: Lake) -> None:
        os.truncate(lake.files("seq", 4)[0], 50)
        with pytest.raises(DataRefused, match="version 4 cannot be read"):
            lake.read("seq", 4)

    def test_columns_that_are_not_there(self, lake: Lake) -> None:
        with pytest.raises(DataRefused, match=r"cannot be read: .*nope"):
            lake.read("seq", 4, columns=["nope"])
        with pytest.raises(DataRefused, match=r"partitioned by \['as_of', 'split'\], not by ts"):
            lake.read("seq", 4, {"ts": "1"})
        with pytest.raises(DataRefused, match="not by ts"):
            lake.partitions("seq", 4, "ts")

    @pytest.mark.parametrize(
        ("configuration", "words"),
        [
            ({"delta.enableDeletionVectors": "true"}, "deletion vectors"),
            ({"delta.columnMapping.mode": "name"}, "column mapping"),
        ],
    )
    def test_features_that_are_not_honoured(self, tmp_path: Path, configuration: dict[str, str], words: str) -> None:
        lake = Lake(tmp_path)
        by = list(SEQ.partition_by)
        DeltaTable.create(lake.path("seq"), schema=SEQ.schema, partition_by=by, configuration=configuration)
        with pytest.raises(DataRefused, match=f"'seq' uses {words}"):
            lake.open("seq")
        with pytest.raises(DataRefused, match=words):
            put(lake, "d1", "train", [1])

    @pytest.mark.parametrize(("feature", "words"), [("deletionVectors", "deletion"), ("columnMapping", "mapping")])
    def test_features_in_the_protocol_alone(self, tmp_path: Path, feature: str, words: str) -> None:
        lake = Lake(tmp_path)
        create(lake, SEQ)
        first = Path(lake.path("seq")) / "_delta_log" / f"{0:020d}.json"
        actions = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
        for action in actions:
            if "protocol" in action:
                features = {"readerFeatures": [feature], "writerFeatures": [feature]}
                action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        first.write_text("\n".join(json.dumps(a) for a in actions), encoding="utf-8")
        with pytest.raises(DataRefused, match=words):
            lake.open("seq")


def test_same_schema() -> None:
    def of(kind: pa.DataType) -> pa.Schema:
        return pa.schema([("x", kind)])

    assert same_schema(of(pa.large_string()), of(pa.string()))
    assert same_schema(of(pa.list_(pa.field("element", pa.string()))), of(pa.list_(pa.field("item", pa.string()))))
    assert not same_schema(of(pa.list_(pa.int32())), of(pa.list_(pa.int64())))
    assert not same_schema(of(pa.int32()), of(pa.int64()))
    assert not same_schema(of(pa.timestamp("us")), of(TIMESTAMP))
    assert not same_schema(of(pa.string()), of(pa.dictionary(pa.int32(), pa.string())))
    assert not same_schema(pa.schema([("x", pa.int32()), ("y", pa.int32())]), of(pa.int32()))
    assert not same_schema(pa.schema([("y", pa.int32())]), of(pa.int32()))


class TestFolders:
    @pytest.mark.parametrize(
        "name", ["plain", "with space", "a=b", "ünï☃", "ha#sh", "a+b&c", "til~de", "co:lon", "a;b"]
    )
    def test_any_usual_name_works(self, tmp_path: Path, name: str) -> None:
        lake = Lake(tmp_path / name)
        for item in (1, 2):
            version = put(lake, "d1", "train", [item])
        assert rows_of(lake, version) == [("d1", "train", [2])]
        (file,) = lake.files("seq", version)
        assert Path(file).is_file()
        assert Path(file).parent == tmp_path / name / "seq" / "as_of=d1" / "split=train"

    @pytest.mark.parametrize("name", ["per%cent", "p%20q", "st*r", "br[a]c", "{a}", "q?m", "back\\slash"])
    def test_names_that_deltalake_or_spark_read_as_others_are_refused(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="choose another folder"):
            Lake(tmp_path / name)

    def test_what_is_no_folder_is_refused(self) -> None:
        with pytest.raises(UsageError, match="s3://bucket/lake: not a folder"):
            Lake("s3://bucket/lake")

    def test_a_relative_root_stays_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        lake = Lake("lake")
        version = put(lake, "d1", "train", [1])
        monkeypatch.chdir("/")
        assert rows_of(lake, version) == [("d1", "train", [1])]


class TestSecondEngines:
    def test_polars_reads_the_same_at_every_version(self, lake: Lake) -> None:
        for version in range(1, 5):
            frame = pl.read_delta(lake.path("seq"), version=version).select("as_of", "split", "items")
            assert sorted(frame.rows()) == rows_of(lake, version)

    @pytest.mark.parametrize("where", [None, {"as_of": "d1"}])
    def test_duckdb_reads_the_same_files(self, lake: Lake, where: Any) -> None:
        for version in range(1, 5):
            files = duckdb.read_parquet(lake.files("seq", version, where), hive_partitioning=True)
            got = files.project("as_of, split, items").fetchall()
            assert sorted(got) == rows_of(lake, version, where)

    def test_deltalake_reads_the_same(self, lake: Lake) -> None:
        rows = DeltaTable(lake.path("seq"), version=4).to_pyarrow_table().select(["as_of", "split", "items"])
        assert sorted((r["as_of"], r["split"], r["items"]) for r in rows.to_pylist()) == rows_of(lake, 4)


def test_the_interpreter_ends_cleanly_after_reading(lake: Lake) -> None:
    """deltalake's own dataset aborted it ("terminate called without an active exception") in two of three runs."""
    code = (
        "import sys; from infra.lake import Lake\n"
        "lake = Lake(sys.argv[1])\n"
        "print(sum(lake.read('seq', v).num_rows for v in (1, 2, 3, 4) for _ in range(5)))"
    )
    command = [sys.executable, "-c", code, str(lake.root)]
    for _ in range(3):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "60\n", "")
