"""infra/schemas.py: creation, columns that come and go, what is refused, and tables that start anew."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infra import lake as lake_module
from infra.commit import astray, commit, write_file
from infra.errors import CommitError, SchemaChanged
from infra.lake import FORMAT_PROPERTY, Lake
from infra.schemas import check_schema, conflicts, create
from infra.tables import FORMAT_VERSION, TIMESTAMP, Column, Table

COLUMNS = (
    Column("as_of", pa.string(), "d"),
    Column("split", pa.string(), "s"),
    Column("items", pa.list_(pa.int32()), "i"),
    Column("ts", TIMESTAMP, "t", True),
)
SEQ = Table("seq", "two partition columns", COLUMNS, ("as_of", "split"))
DAY, N = Column("day", pa.string(), "d"), Column("n", pa.int64(), "n")
COLOUR = Column("f_colour", pa.string(), "a field", True)
TAGS = Column("f_tags", pa.list_(pa.string()), "another", True)


def log(*columns: Column) -> Table:
    return Table("log", "one partition column", (DAY, N, *columns), ("day",))


def put(lake: Lake, table: Table, day: str, *rows: dict[str, Any], renew: bool = False) -> int:
    data = pa.Table.from_pylist([{"day": day, **r} for r in rows], schema=table.schema)
    file = write_file(lake.path(table.name), table, {"day": day}, [data])
    return commit(lake, table, [file], replace={"day": [day]}, metadata={}, renew=renew)


def rows(lake: Lake, version: int) -> list[dict[str, Any]]:
    return lake.read("log", version).sort_by([("day", "ascending"), ("n", "ascending")]).to_pylist()


class TestCreate:
    def test_properties_and_schema(self, tmp_path: Path) -> None:
        lake = Lake(tmp_path)
        create(lake, SEQ)
        create(lake, SEQ)
        delta = lake.open("seq")
        assert delta.version() == 0
        assert delta.metadata().configuration == {
            "delta.logRetentionDuration": "interval 3650 days",
            "delta.enableExpiredLogCleanup": "false",
            "delta.checkpointInterval": "10",
            "logs2rec.formatVersion": str(FORMAT_VERSION),
        }
        assert delta.metadata().partition_columns == ["as_of", "split"]
        assert pa.schema(delta.schema().to_arrow()).equals(SEQ.schema)

    def test_files_may_be_written_before_the_table_is_there(self, tmp_path: Path) -> None:
        assert put(Lake(tmp_path), log(), "d1", {"n": 1}) == 1

    def test_one_of_several_creators_is_first_and_stays(self, tmp_path: Path) -> None:
        """With deltalake's own retries a second one lands as version 1 and replaces the schema."""
        other = Table("seq", "other", (*COLUMNS[:2], Column("x", pa.int64(), "x")), SEQ.partition_by)
        for attempt in range(4):
            lake, barrier = Lake(tmp_path / str(attempt)), threading.Barrier(6)
            outcomes: list[tuple[str, bool]] = []

            def job(
                table: Table,
                lake: Lake = lake,
                barrier: threading.Barrier = barrier,
                outcomes: list[tuple[str, bool]] = outcomes,
            ) -> None:
                barrier.wait()
                try:
                    create(lake, table)
                    outcomes.append((table.meaning, True))
                except CommitError:
                    outcomes.append((table.meaning, False))

            threads = [threading.Thread(target=job, args=((SEQ, other)[i % 2],)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert lake.version("seq") == 0
            first = lake.open("seq").metadata().description
            assert sorted(outcomes) == sorted([(SEQ.meaning, first == SEQ.meaning), ("other", first == "other")] * 3)

    def test_a_root_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(CommitError, match=r"'seq' cannot be created under .*/file "):
            create(Lake(tmp_path / "file"), SEQ)


class TestRefused:
    @pytest.mark.parametrize(
        ("columns", "partition_by", "words", "stored", "declared"),
        [
            ((*COLUMNS[:2], COLUMNS[3]), ("as_of", "split"), "items may not be null and is no longer", "items", "ts"),
            (
                (*COLUMNS, Column("x", pa.int8(), "x")),
                ("as_of", "split"),
                "x is new and may not be null",
                "ts timestamp[us, tz=UTC];",
                "x int8 not null;",
            ),
            (
                (*COLUMNS[:3], Column("ts", pa.int64(), "t", True)),
                ("as_of", "split"),
                "ts is timestamp[us, tz=UTC], not int64",
                "ts timestamp",
                "ts int64",
            ),
            (
                (*COLUMNS[:2], Column("items", pa.list_(pa.int64()), "i"), COLUMNS[3]),
                ("as_of", "split"),
                "items is list<element: int32>, not list<item: int64>",
                "int32",
                "int64",
            ),
            (
                (*COLUMNS[:3], Column("ts", TIMESTAMP, "t")),
                ("as_of", "split"),
                "ts may be null",
                "tz=UTC];",
                "tz=UTC] not null;",
            ),
            (COLUMNS, ("as_of",), "partitioned by ['as_of', 'split']", "by as_of, split", "by as_of\n"),
        ],
    )
    def test_another_schema_with_both_and_the_migration(
        self,
        lake: Lake,
        columns: tuple[Column, ...],
        partition_by: tuple[str, ...],
        words: str,
        stored: str,
        declared: str,
    ) -> None:
        create(lake, SEQ)
        other = Table("seq", "changed", columns, partition_by)
        with pytest.raises(SchemaChanged, match=r"'seq' .* written with other columns") as caught:
            commit(lake, other, [], replace={"as_of": ["d1"]}, metadata={})
        first, there, asked = str(caught.value).split("\n", 2)
        assert (words in first, stored in there, declared in asked, "--rebuild" in asked) == (True,) * 4
        assert caught.value.exit_code == 2
        assert lake.version("seq") == 0

    @pytest.mark.parametrize(
        ("version", "words"),
        [
            (str(FORMAT_VERSION + 1), "newer logs2rec .*upgrade"),
            ("0", "older logs2rec .*new workspace"),
            ("next", "newer logs2rec"),
        ],
    )
    def test_another_format_version(self, lake: Lake, version: str, words: str) -> None:
        DeltaTable.create(
            lake.path("seq"),
            schema=SEQ.schema,
            partition_by=list(SEQ.partition_by),
            configuration={FORMAT_PROPERTY: version},
            raise_if_key_not_exists=False,
        )
        for use in (lambda: lake.read("seq", 0), lambda: create(lake, SEQ)):
            with pytest.raises(SchemaChanged, match=f"'seq' was written by a[n]? {words}"):
                use()

    def test_a_table_without_the_property_is_of_version_1(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        DeltaTable.create(lake.path("seq"), schema=SEQ.schema, partition_by=list(SEQ.partition_by))
        monkeypatch.setattr(lake_module, "FORMAT_VERSION", 1)
        lake.open("seq")
        monkeypatch.setattr(lake_module, "FORMAT_VERSION", 2)
        with pytest.raises(SchemaChanged, match="format version 1, this one writes 2"):
            lake.open("seq")


class TestEvolution:
    def test_a_new_column_is_null_in_older_rows(self, lake: Lake) -> None:
        one = put(lake, log(), "d1", {"n": 1})
        two = put(lake, log(TAGS, COLOUR), "d2", {"n": 2, "f_colour": "red", "f_tags": ["a", "b"]})
        assert rows(lake, two) == [
            {"day": "d1", "n": 1, "f_tags": None, "f_colour": None},
            {"day": "d2", "n": 2, "f_tags": ["a", "b"], "f_colour": "red"},
        ]
        assert rows(lake, one) == [{"day": "d1", "n": 1}]

    def test_a_dropped_column_stays_and_is_null_in_newer_rows(self, lake: Lake) -> None:
        put(lake, log(COLOUR), "d1", {"n": 1, "f_colour": "red"})
        two = put(lake, log(), "d2", {"n": 2})
        assert rows(lake, two) == [{"day": "d1", "n": 1, "f_colour": "red"}, {"day": "d2", "n": 2, "f_colour": None}]
        three = put(lake, log(COLOUR), "d3", {"n": 3, "f_colour": "blue"})
        assert [r["f_colour"] for r in rows(lake, three)] == ["red", None, "blue"]
        assert lake.open("log").version() == 3  # created with it, then one commit a day
        assert lake.open("log").schema().to_arrow().field("f_colour").nullable

    def test_the_order_of_declaration_does_not_matter(self, lake: Lake) -> None:
        put(lake, log(COLOUR, TAGS), "d1", {"n": 1, "f_colour": "red", "f_tags": ["a"]})
        two = put(lake, log(TAGS, COLOUR), "d2", {"n": 2, "f_colour": "blue", "f_tags": ["b"]})
        assert [(r["f_colour"], r["f_tags"]) for r in rows(lake, two)] == [("red", ["a"]), ("blue", ["b"])]

    def test_a_file_older_than_the_column_can_be_put_back(self, lake: Lake) -> None:
        one = put(lake, log(), "d1", {"n": 1})
        put(lake, log(COLOUR), "d1", {"n": 9, "f_colour": "red"})
        files, moved = astray(lake, log(COLOUR), one, "day", ["d1"])
        back = commit(lake, log(COLOUR), files, replace={"day": moved}, metadata={})
        assert rows(lake, back) == [{"day": "d1", "n": 1, "f_colour": None}]

    def test_other_engines_read_the_evolved_table_alike(self, lake: Lake) -> None:
        put(lake, log(TAGS), "d1", {"n": 1, "f_tags": ["a"]})
        version = put(lake, log(COLOUR), "d2", {"n": 2, "f_colour": "red"})
        frame = pl.read_delta(lake.path("log"), version=version).sort("n")
        assert frame.select("n", "f_colour").rows() == [(1, None), (2, "red")]
        assert frame["f_tags"].to_list() == [["a"], None]
        files = duckdb.read_parquet(lake.files("log", version), union_by_name=True)
        assert sorted(files.project("n, f_colour").fetchall()) == [(1, None), (2, "red")]

    def test_properties_and_checks_survive(self, lake: Lake) -> None:
        create(lake, log())
        before = lake.open("log").metadata()
        create(lake, log(COLOUR))
        after = lake.open("log").metadata()
        assert (after.configuration, after.partition_columns) == (before.configuration, before.partition_columns)
        create(lake, log(COLOUR))
        assert lake.version("log") == 1

    def test_several_at_once_add_every_column_once(self, tmp_path: Path) -> None:
        for attempt in range(4):
            lake, barrier, failed = Lake(tmp_path / str(attempt)), threading.Barrier(6), []
            create(lake, log())

            def job(
                table: Table, lake: Lake = lake, barrier: threading.Barrier = barrier, failed: list[Any] = failed
            ) -> None:
                barrier.wait()
                try:
                    create(lake, table)
                except CommitError as error:
                    failed.append(error)

            threads = [threading.Thread(target=job, args=(log((COLOUR, TAGS)[i % 2]),)) for i in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            names = lake_module.arrow_schema(lake.open("log")).names
            assert (failed, sorted(names), lake.version("log")) == ([], ["day", "f_colour", "f_tags", "n"], 2)

    def test_check_schema_writes_nothing(self, lake: Lake) -> None:
        check_schema(lake, log(COLOUR))
        assert not lake.exists("log")
        create(lake, log())
        check_schema(lake, log(COLOUR))
        assert lake.version("log") == 0
        assert conflicts(lake, log(Column("f_colour", pa.string(), "c"))) != []


class TestRenew:
    NUMERIC = Column("f_colour", pa.float64(), "a field of another kind", True)

    def test_a_table_starts_anew_and_pinned_versions_stay(self, lake: Lake) -> None:
        one = put(lake, log(COLOUR), "d1", {"n": 1, "f_colour": "red"})
        two = put(lake, log(COLOUR), "d2", {"n": 2, "f_colour": "blue"})
        with pytest.raises(SchemaChanged):
            put(lake, log(self.NUMERIC), "d1", {"n": 1, "f_colour": 0.5})
        new = put(lake, log(self.NUMERIC), "d1", {"n": 1, "f_colour": 0.5}, renew=True)
        assert rows(lake, new) == [{"day": "d1", "n": 1, "f_colour": 0.5}]
        assert rows(lake, one) == [{"day": "d1", "n": 1, "f_colour": "red"}]
        assert [r["f_colour"] for r in rows(lake, two)] == ["red", "blue"]
        assert lake.open("log").metadata().configuration[FORMAT_PROPERTY] == str(FORMAT_VERSION)

    def test_one_commit(self, lake: Lake) -> None:
        put(lake, log(COLOUR), "d1", {"n": 1})
        version = put(lake, log(self.NUMERIC), "d2", {"n": 2}, renew=True)
        entry = Path(lake.path("log")) / "_delta_log" / f"{version:020d}.json"
        actions = [next(iter(json.loads(line))) for line in entry.read_text().splitlines() if line.strip()]
        assert version == 2
        assert {"metaData", "add", "remove", "txn"} <= set(actions)

    def test_a_table_that_can_evolve_keeps_its_partitions(self, lake: Lake) -> None:
        put(lake, log(COLOUR), "d1", {"n": 1, "f_colour": "red"})
        version = put(lake, log(TAGS), "d2", {"n": 2, "f_tags": []}, renew=True)
        assert [(r["n"], r["f_colour"], r["f_tags"]) for r in rows(lake, version)] == [(1, "red", None), (2, None, [])]
