"""featurize/delta.py: what tasks write is what a pinned version reads, file by file and attempt by attempt."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurize import delta
from infra.commit import DataFile, commit
from infra.lake import Lake
from infra.tables import TIMESTAMP, Column, Table
from tests.conftest import put

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

THINGS = Table(
    "things",
    "one column of every type that our tables use",
    (
        Column("day", pa.string(), "partition"),
        Column("kind", pa.string(), "partition"),
        Column("id", pa.string(), "id"),
        Column("n", pa.int64(), "number"),
        Column("small", pa.int32(), "small number", True),
        Column("flag", pa.bool_(), "flag", True),
        Column("x", pa.float64(), "real", True),
        Column("at", TIMESTAMP, "time", True),
        Column("words", pa.list_(pa.string()), "words", True),
        Column("indices", pa.list_(pa.int32()), "indices", True),
    ),
    ("day", "kind"),
)
START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {
        "day": f"2024-01-0{1 + n % 3}",
        "kind": "ab"[n % 2],
        "id": ["plain", "\u00e9", "e\u0301", "\U0001f600", "a\x00b", "", 'q"\n,'][n % 7],
        "n": n - 2**62,
        "small": None if n % 5 == 0 else -n,
        "flag": None if n % 4 == 0 else n % 4 == 1,
        "x": None if n % 3 == 0 else n / 7,
        "at": None if n % 6 == 0 else START + timedelta(days=n - 5, microseconds=n),
        "words": None if n % 5 == 1 else ["w", "\u00e9"][: n % 3],
        "indices": None if n % 5 == 2 else list(range(n % 4)),
    }
    for n in range(40)
]


def framed(spark: SparkSession, rows: list[dict[str, Any]] = ROWS) -> DataFrame:
    return spark.createDataFrame(pa.Table.from_pylist(rows, schema=THINGS.schema))


def write(spark: SparkSession, lake: Lake, rows: list[dict[str, Any]] = ROWS) -> tuple[list[DataFile], int]:
    frame = framed(spark, rows).repartition("day", "kind").sortWithinPartitions("day", "kind", "n")
    files = delta.write(frame, lake, THINGS)
    days = sorted({row["day"] for row in rows})
    return files, commit(lake, THINGS, files, replace={"day": days}, metadata={})


def by_number(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["n"])


def test_round_trip_to_arrow_and_to_spark(spark: SparkSession, lake: Lake) -> None:
    files, version = write(spark, lake)
    assert len(files) == 6, "one file per partition"
    assert by_number(lake.read("things", version).to_pylist()) == ROWS
    back = delta.read(spark, lake, THINGS, version).select(*THINGS.schema.names)
    assert by_number(back.toArrow().to_pylist()) == ROWS
    assert sum(file.rows for file in files) == back.count() == 40


def test_reading_one_version_and_some_partitions(spark: SparkSession, lake: Lake) -> None:
    first = put(lake, THINGS, ROWS[:20])
    second = put(lake, THINGS, [{**ROWS[0], "n": 7}])  # replaces its day
    assert delta.read(spark, lake, THINGS, first).count() == 20
    assert delta.read(spark, lake, THINGS, second).count() == 20 - 7 + 1
    where = {"day": ["2024-01-02", "2024-01-03"], "kind": "a"}
    got = delta.read(spark, lake, THINGS, first, where).select("day", "kind", "n").collect()
    assert sorted(row.n for row in got) == [r["n"] for r in ROWS[:20] if r["day"] != "2024-01-01" and r["kind"] == "a"]
    assert {(row.day, row.kind) for row in got} == {("2024-01-02", "a"), ("2024-01-03", "a")}


def test_nothing_published_or_nothing_selected_is_no_rows(spark: SparkSession, lake: Lake) -> None:
    assert delta.read(spark, lake, THINGS, None).count() == 0
    version = put(lake, THINGS, ROWS)
    empty = delta.read(spark, lake, THINGS, version, {"day": []})
    assert empty.count() == 0
    assert set(empty.columns) == set(THINGS.schema.names)


def test_files_that_were_not_committed_do_not_exist(spark: SparkSession, lake: Lake) -> None:
    _, version = write(spark, lake)
    delta.write(framed(spark, ROWS[:5]).coalesce(1).sortWithinPartitions("day", "kind"), lake, THINGS)
    on_disk = list(Path(lake.path("things")).rglob("*.parquet"))
    assert len(on_disk) > 6
    assert delta.read(spark, lake, THINGS, version).count() == 40


def test_an_empty_frame_writes_no_file(spark: SparkSession, lake: Lake) -> None:
    assert delta.write(framed(spark).where("n is null"), lake, THINGS) == []


def test_a_task_that_fails_late_and_is_retried_leaves_no_double_rows(spark: SparkSession, lake: Lake) -> None:
    """The first attempts write files, then die; the report holds the second attempts' files only."""

    def fail_once_at_the_end(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from pyspark import TaskContext

        yield from batches
        context = TaskContext.get()
        if context is not None and context.attemptNumber() == 0:
            raise RuntimeError("planned failure of a first attempt")

    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "3")
    try:
        long = [{**row, "id": "x" * 100_000} for row in ROWS]  # or all of it waits in a pipe when the failure comes
        sorted_rows = framed(spark, long).repartition(2, "day").sortWithinPartitions("day", "kind", "n")
        failing = sorted_rows.mapInArrow(fail_once_at_the_end, sorted_rows.schema)
        files = delta.write(failing, lake, THINGS)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    left_behind = {str(p.relative_to(lake.path("things"))) for p in Path(lake.path("things")).rglob("*.parquet")}
    assert left_behind > {file.path for file in files}, "the first attempts have written something"
    version = commit(lake, THINGS, files, replace={"day": [f"2024-01-0{d}" for d in (1, 2, 3)]}, metadata={})
    assert by_number(lake.read("things", version).to_pylist()) == long


def test_small_batches_become_one_file_with_one_row_group(spark: SparkSession, lake: Lake) -> None:
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "2")
    try:
        files, version = write(spark, lake)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert len(files) == 6
    for file in files:
        assert pq.read_metadata(Path(lake.path("things")) / file.path).num_row_groups == 1
    assert lake.read("things", version).num_rows == 40


RUNS = st.lists(st.tuples(st.sampled_from(["d1", "d2"]), st.sampled_from(["a", "b"])), max_size=30)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=RUNS, cuts=st.lists(st.integers(0, 30), max_size=5))
def test_one_file_per_run_however_rows_are_batched(
    tmp_path: Path, keys: list[tuple[str, str]], cuts: list[int]
) -> None:
    rows = [{**ROWS[0], "day": day, "kind": kind, "n": n} for n, (day, kind) in enumerate(keys)]
    table = pa.Table.from_pylist(rows, schema=THINGS.schema)
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    batches = [b for s, e in pairwise(bounds) for b in table.slice(s, e - s).to_batches()]
    files = list(delta._write_runs(str(tmp_path), THINGS, iter(batches)))
    runs: list[tuple[tuple[str, str], list[int]]] = []
    for n, key in enumerate(keys):
        if not runs or runs[-1][0] != key:
            runs.append((key, []))
        runs[-1][1].append(n)
    got = [
        (tuple(f.partition[c] for c in ("day", "kind")), pq.ParquetFile(tmp_path / f.path).read()["n"].to_pylist())
        for f in files
    ]
    assert got == runs


def test_a_long_run_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "ROWS_PER_FILE", 10)
    rows = [{**ROWS[0], "n": n} for n in range(25)]
    batches = pa.Table.from_pylist(rows, schema=THINGS.schema).to_batches(max_chunksize=5)
    files = list(delta._write_runs(str(tmp_path), THINGS, iter(batches)))
    assert [file.rows for file in files] == [10, 10, 5]
