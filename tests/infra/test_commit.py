"""The write protocol against real Delta tables; what it has to make up for is in test_deltalake.py."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import commit as module
from infra.commit import COMMIT_ID, DataFile, append_rows, commit, write_file
from infra.errors import CommitConflict, CommitError
from infra.lake import Lake
from infra.schemas import create
from infra.tables import Column, Table

ROOT = Path(__file__).resolve().parents[2]
DAYS = Table("days", "by day", (Column("day", pa.string(), "d"), Column("x", pa.int64(), "x")), ("day",))
SPLITS = Table(
    "splits",
    "by day and split",
    (Column("day", pa.string(), "d"), Column("split", pa.string(), "s"), Column("x", pa.int64(), "x")),
    ("day", "split"),
)
NOTES = Table("notes", "records", (Column("k", pa.string(), "k"), Column("v", pa.int64(), "v", True)))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def written(lake: Lake, day: str, *xs: int) -> DataFile:
    return write_file(lake.path("days"), DAYS, {"day": day}, [pa.table({"x": pa.array(xs, pa.int64())})])


def put(lake: Lake, days: Mapping[str, Sequence[int]], **metadata: Any) -> int:
    files = [written(lake, day, *xs) for day, xs in days.items() if xs]
    return commit(lake, DAYS, files, replace={"day": list(days)}, metadata=metadata)


def content(lake: Lake, version: int | None = None) -> dict[str, list[int]]:
    newest = lake.version("days") if version is None else version
    assert newest is not None
    out: dict[str, list[int]] = {}
    for row in lake.read("days", newest).to_pylist():
        out.setdefault(row["day"], []).append(row["x"])
    return {day: sorted(xs) for day, xs in sorted(out.items())}


class TestCommit:
    def test_returns_its_version_and_carries_its_metadata(self, lake: Lake) -> None:
        assert put(lake, {"a": [1, 2], "b": [3]}, runId="r1", inputs={"events": 4}) == 1
        assert content(lake, 1) == {"a": [1, 2], "b": [3]}
        entry = lake.open("days").history(1)[0]
        assert (entry["runId"], json.loads(entry["inputs"])) == ("r1", {"events": 4})
        assert lake.open("days").transaction_version("days:day=a") == 1

    def test_replaces_the_named_partitions_and_nothing_else(self, lake: Lake) -> None:
        put(lake, {"a": [1], "b": [2], "c": [3]})
        put(lake, {"a": [7], "b": []})
        assert content(lake) == {"a": [7], "c": [3]}
        assert content(lake, 1) == {"a": [1], "b": [2], "c": [3]}  # a pinned version does not change

    def test_replaces_one_of_two_partition_columns(self, lake: Lake) -> None:
        def splits(day: str, split: str, x: int) -> DataFile:
            return write_file(lake.path("splits"), SPLITS, {"day": day, "split": split}, [pa.table({"x": [x]})])

        files = [splits(d, s, 1) for d in ("a", "b") for s in ("train", "test")]
        commit(lake, SPLITS, files, replace={"day": ["a", "b"]}, metadata={})
        where = {"day": ["a"], "split": ["test"]}
        version = commit(lake, SPLITS, [splits("a", "test", 2)], replace=where, metadata={})
        rows = {(r["day"], r["split"]): r["x"] for r in lake.read("splits", version).to_pylist()}
        assert rows == {("a", "train"): 1, ("a", "test"): 2, ("b", "train"): 1, ("b", "test"): 1}

    def test_the_same_partition_again_is_one_copy(self, lake: Lake) -> None:
        assert [put(lake, {"a": [1, 2]}) for _ in range(3)] == [1, 2, 3]
        assert content(lake) == {"a": [1, 2]}
        assert lake.open("days").transaction_version("days:day=a") == 3

    def test_an_empty_commit_is_a_commit(self, lake: Lake) -> None:
        assert put(lake, {"a": []}) == 1
        assert content(lake) == {}
        assert put(lake, {"a": [1]}) == 2
        assert put(lake, {"a": []}) == 3
        assert content(lake) == {}

    def test_files_that_nobody_committed_are_not_there(self, lake: Lake) -> None:
        put(lake, {"a": [1]})
        written(lake, "a", 2)
        assert content(lake) == {"a": [1]}

    def test_the_commit_is_on_the_disk_before_it_is_reported(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        fsync = os.fsync

        def spy(handle: int) -> None:
            synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), lake.root))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", spy)
        file = written(lake, "a", 1)
        assert synced == [f"days/{file.path}"]
        synced.clear()
        commit(lake, DAYS, [file], replace={"day": ["a"]}, metadata={})
        log = "days/_delta_log"
        assert sorted(synced[:2]) == ["days", "days/day=a"]
        assert synced[2:] == [f"{log}/{0:020d}.json", f"{log}/{1:020d}.json", log, "days", "."]
        synced.clear()
        append_rows(lake, NOTES, [{"k": "a"}], app_id="a")
        assert f"notes/_delta_log/{1:020d}.json" in synced

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=3), min_size=1)))
    def test_any_sequence_of_commits_is_a_dictionary(self, operations: list[dict[str, list[int]]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            lake, model = Lake(folder), dict[str, list[int]]()
            for number, operation in enumerate(operations[:4], 1):
                model |= operation
                assert put(lake, operation) == number
                assert content(lake) == {day: sorted(xs) for day, xs in sorted(model.items()) if xs}


def report(**changes: Any) -> Callable[[Lake, DataFile], DataFile]:
    return lambda lake, file: dataclasses.replace(file, **changes)


def truncated(lake: Lake, file: DataFile) -> DataFile:
    path = Path(lake.path("days")) / file.path
    path.write_bytes(path.read_bytes()[:-9])
    return dataclasses.replace(file, size=path.stat().st_size)


def rewritten(rows: pa.Table) -> Callable[[Lake, DataFile], DataFile]:
    def change(lake: Lake, file: DataFile) -> DataFile:
        path = Path(lake.path("days")) / file.path
        pq.write_table(rows, path)
        return dataclasses.replace(file, size=path.stat().st_size)

    return change


def moved(target: str) -> Callable[[Lake, DataFile], DataFile]:
    def change(lake: Lake, file: DataFile) -> DataFile:
        root = Path(lake.path("days"))
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        (root / file.path).rename(root / target)
        return dataclasses.replace(file, path=target)

    return change


def absolute(lake: Lake, file: DataFile) -> DataFile:
    return dataclasses.replace(file, path=f"{lake.path('days')}/{file.path}")


class TestRefusals:
    """Nothing is committed: the version stays."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (report(path="day=a/nowhere.parquet"), "it is not there"),
            (report(size=1), "bytes, its task reported 1"),
            (report(rows=4), "its footer counts 3 rows, its task reported 4"),
            (report(rows=4, stats='{"numRecords": 4}'), "its footer counts 3 rows, its task reported 4"),
            (report(stats='{"numRecords": 4}'), "its footer counts 3 rows"),
            (report(stats="{}"), "its footer counts 3 rows"),
            (report(stats="no json"), "its footer counts 3 rows"),
            (truncated, "not a complete Parquet file"),
            (rewritten(pa.table({"y": [1, 2, 3]})), "its columns are (y int64), declared are (x int64)"),
            (rewritten(pa.table({"x": ["1", "2", "3"]})), "its columns are (x string)"),
            (rewritten(pa.table({"x": [1, 2, 3], "day": ["a"] * 3})), "its columns are (x int64, day string)"),
            (rewritten(pa.table({"x": [1, None, 3]})), "x may hold nulls"),
            (report(partition={"day": "b"}), "its partition's folder 'day=b'"),
            (report(partition={}), "does not name ('day',)"),
            (report(partition={"day": "a", "split": "b"}), "does not name ('day',)"),
            (report(partition={"day": None}), "cannot be a folder's name"),
            (moved("day=z/part.parquet"), "its partition's folder 'day=a'"),
            (moved("part.parquet"), "its partition's folder"),
            (moved("day=a/../../escaped.parquet"), "its partition's folder"),
            (moved("day=a/deeper/part.parquet"), "its partition's folder"),
            (moved("day=a/_part.parquet"), "by a plain name"),
            (moved("day=a/.part.parquet"), "by a plain name"),
            (moved("day=a/a b.parquet"), "by a plain name"),
            (moved("day=a/a%20b.parquet"), "by a plain name"),
            (report(path="day=a//part.parquet"), "its partition's folder"),
            (absolute, "its partition's folder"),
        ],
    )
    def test_a_file_that_is_not_what_its_report_says(
        self, lake: Lake, change: Callable[[Lake, DataFile], DataFile], words: str
    ) -> None:
        put(lake, {"a": [9]})
        file = change(lake, written(lake, "a", 1, 2, 3))
        with pytest.raises(CommitError) as caught:
            commit(lake, DAYS, [written(lake, "a", 5), file], replace={"day": ["a"]}, metadata={})
        assert words in str(caught.value)
        assert "'days'" in str(caught.value)
        assert (lake.version("days"), content(lake)) == (1, {"a": [9]})

    def test_a_file_outside_the_replaced_partitions(self, lake: Lake) -> None:
        with pytest.raises(CommitError, match=r"day=b is outside the replaced \['a'\]"):
            commit(lake, DAYS, [written(lake, "b", 1)], replace={"day": ["a"]}, metadata={})
        assert lake.version("days") == 0

    def test_a_file_twice_or_again(self, lake: Lake) -> None:
        file = written(lake, "a", 1)
        with pytest.raises(CommitError, match="committed already"):
            commit(lake, DAYS, [file, file], replace={"day": ["a"]}, metadata={})
        commit(lake, DAYS, [file], replace={"day": ["a"]}, metadata={})
        with pytest.raises(CommitError, match="committed already"):
            commit(lake, DAYS, [file], replace={"day": ["a"]}, metadata={})
        assert (lake.version("days"), content(lake)) == (1, {"a": [1]})

    @pytest.mark.parametrize(
        ("replace", "words"),
        [
            ({}, "replace names []"),
            ({"split": ["a"]}, "replace names ['split']"),
            ({"x": ["1"]}, "replace names ['x']"),
            ({"day": ["a"], "x": ["1"]}, "replace names ['day', 'x']"),
            ({"day": []}, "not a list of plain values"),
            ({"day": "a"}, "not a list of plain values"),
            ({"day": ["a", 1]}, "not a list of plain values"),
            ({"day": ["../a"]}, "not a list of plain values"),
        ],
    )
    def test_what_names_no_partitions(self, lake: Lake, replace: Any, words: str) -> None:
        put(lake, {"a": [9]})
        with pytest.raises(CommitError) as caught:
            commit(lake, DAYS, [], replace=replace, metadata={})
        assert words in str(caught.value)
        assert content(lake) == {"a": [9]}

    def test_what_leaves_the_first_partition_column_out(self, lake: Lake) -> None:
        with pytest.raises(CommitError, match=r"replace names \['split'\], not \('day',\)"):
            commit(lake, SPLITS, [], replace={"split": ["test"]}, metadata={})
        assert not lake.exists("splits")

    @pytest.mark.parametrize("value", ["..", "a/b", "a b", "a%20b", "a=b", "_a", ".a", "", "ü", "a\n", "a:b", None, 1])
    def test_partition_values_that_would_need_escaping(self, lake: Lake, value: Any) -> None:
        with pytest.raises(CommitError, match="cannot be a folder's name"):
            write_file(lake.path("days"), DAYS, {"day": value}, [pa.table({"x": [1]})])

    def test_metadata_that_is_no_json(self, lake: Lake) -> None:
        with pytest.raises(CommitError, match="not JSON serializable"):
            put(lake, {"a": [1]}, x=object())
        assert lake.version("days") == 0


class TestWriteFile:
    @pytest.mark.parametrize(
        ("rows", "words"),
        [
            (pa.table({"y": [1]}), '"x" does not exist'),
            (pa.table({"x": pa.array([None], pa.int64())}), "null"),
            (pa.table({"x": ["one"]}), "one"),
        ],
    )
    def test_rows_that_do_not_fit(self, lake: Lake, rows: pa.Table, words: str) -> None:
        with pytest.raises(CommitError, match="'days', partition") as caught:
            write_file(lake.path("days"), DAYS, {"day": "a"}, [rows])
        assert words in str(caught.value)

    def test_what_it_reports_is_what_is_there(self, lake: Lake) -> None:
        batches = [pa.table({"day": ["a"], "x": pa.array([i], pa.int32())}) for i in range(5)]  # more columns, narrower
        file = write_file(lake.path("days"), DAYS, {"day": "a"}, batches)
        path = Path(lake.path("days")) / file.path
        assert (file.size, file.rows, file.stats) == (path.stat().st_size, 5, '{"numRecords": 5}')
        assert file.path.startswith("day=a/part-")
        assert pq.ParquetFile(path).read().equals(pa.table({"x": range(5)}, schema=DAYS.file_schema))

    def test_row_groups_are_large_whatever_the_batches(self, lake: Lake) -> None:
        batches = [pa.table({"x": range(10_000)})] * 30
        file = write_file(lake.path("days"), DAYS, {"day": "a"}, batches)
        footer = pq.read_metadata(Path(lake.path("days")) / file.path)
        assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [1 << 18, 300_000 - (1 << 18)]


def interleaved(monkeypatch: pytest.MonkeyPatch, first: Callable[[], Any]) -> None:
    """Let `first` run between another commit's reading of the table and its own commit, once."""
    transact, pending = module._transact, [first]

    def late(*args: Any) -> None:
        if pending:
            pending.pop()()
        transact(*args)

    monkeypatch.setattr(module, "_transact", late)


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run the jobs in threads that start at once; what each returned or raised."""
    barrier, results = threading.Barrier(len(jobs)), list[Any]([None] * len(jobs))

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = jobs[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class TestSeveralWriters:
    @pytest.mark.parametrize("days", [{"b": [1]}, {"a": [1]}], ids=["new partition", "existing partition"])
    def test_of_two_writers_of_one_partition_one_lands(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch, days: dict[str, Sequence[int]]
    ) -> None:
        put(lake, {"a": [9]})
        day = next(iter(days))
        interleaved(monkeypatch, lambda: put(lake, {day: [2]}))
        with pytest.raises(CommitConflict, match=f"another writer committed days:day={day} first"):
            put(lake, {"c": [3], **days})
        assert content(lake) == {"a": [9], day: [2]}

    def test_writers_of_different_partitions_both_land(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        put(lake, {"a": [9], "b": [9]})
        interleaved(monkeypatch, lambda: put(lake, {"a": [1]}))
        assert put(lake, {"b": [2]}) == 3
        assert content(lake) == {"a": [1], "b": [2]}

    def test_writers_of_overlapping_partitions_conflict(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        replace: dict[str, list[str]] = {"day": ["a"]}
        create(lake, SPLITS)
        interleaved(monkeypatch, lambda: commit(lake, SPLITS, [], replace=replace, metadata={}))
        with pytest.raises(CommitConflict, match="splits:day=a"):
            commit(lake, SPLITS, [], replace={**replace, "split": ["test"]}, metadata={})

    def test_the_same_split_of_different_days_is_no_conflict(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        def test_split(day: str) -> int:
            return commit(lake, SPLITS, [], replace={"day": [day], "split": ["test"]}, metadata={})

        create(lake, SPLITS)
        interleaved(monkeypatch, lambda: test_split("a"))
        assert test_split("b") == 2

    def test_it_gives_up_when_others_always_come_first(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        def always(*_: Any) -> None:
            raise CommitFailedError("a concurrent transaction deleted data")

        monkeypatch.setattr(module, "_transact", always)
        monkeypatch.setattr(module, "_ATTEMPTS", 3)
        with pytest.raises(CommitConflict, match="came first 3 times"):
            put(lake, {"a": [1]})
        assert lake.version("days") == 0

    def test_first_writers_of_one_partition_at_once(self, lake: Lake) -> None:
        results = together([lambda i=i: put(lake, {"a": [i]}) for i in range(4)])  # type: ignore[misc]
        landed = [i for i, r in enumerate(results) if isinstance(r, int)]
        assert landed
        assert all(isinstance(r, int | CommitConflict) for r in results)
        assert lake.version("days") == len(landed)
        assert content(lake)["a"][0] in landed
        assert len(content(lake)["a"]) == 1

    def test_threads_on_their_own_partitions_lose_nothing(self, lake: Lake) -> None:
        def job(day: str) -> list[int]:
            return [put(lake, {day: [n]}) for n in range(3)]

        versions = together([lambda d=d: job(d) for d in "abcdefgh"])  # type: ignore[misc]
        assert sorted(v for some in versions for v in some) == list(range(1, 25))
        assert content(lake) == {d: [2] for d in "abcdefgh"}

    def test_processes_on_their_own_partitions_lose_nothing(self, lake: Lake) -> None:
        code = (
            "import sys; from infra.lake import Lake; from tests.infra.test_commit import put\n"
            "print([put(Lake(sys.argv[1]), {sys.argv[2]: [n]}) for n in range(4)])"
        )
        command = [sys.executable, "-c", code, str(lake.root)]
        workers = [subprocess.Popen([*command, d], cwd=ROOT, stdout=subprocess.PIPE, text=True) for d in "abcd"]
        versions = [v for w in workers for v in json.loads(w.communicate()[0])]
        assert sorted(versions) == list(range(1, 17))
        assert content(lake) == {d: [3] for d in "abcd"}


class TestLostAnswers:
    def test_a_commit_that_landed_is_a_success(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        transact, lost = module._transact, [True]

        def answer_lost(*args: Any) -> None:
            transact(*args)
            if lost and lost.pop():
                put(lake, {"b": [2]})  # the newest version is another's
                raise CommitFailedError("connection reset")

        monkeypatch.setattr(module, "_transact", answer_lost)
        assert put(lake, {"a": [1]}) == 1
        assert content(lake) == {"a": [1], "b": [2]}
        assert lake.version("days") == 2

    def test_lost_inside_deltalake(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        real = DeltaTable.create_write_transaction

        def answer_lost(self: DeltaTable, *args: Any, **kwargs: Any) -> None:
            real(self, *args, **kwargs)
            raise OSError("connection reset")

        create(lake, DAYS)
        create(lake, NOTES)
        monkeypatch.setattr(DeltaTable, "create_write_transaction", answer_lost)
        assert put(lake, {"a": [1]}) == 1
        assert append_rows(lake, NOTES, [{"k": "a"}], app_id="a") is True
        assert append_rows(lake, NOTES, [{"k": "a"}], app_id="a") is False
        assert (lake.version("days"), lake.version("notes")) == (1, 1)

    def test_a_commit_that_did_not_land_is_an_error(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no route")

        monkeypatch.setattr(DeltaTable, "create_write_transaction", fail)
        with pytest.raises(CommitError, match="no route") as caught:
            put(lake, {"a": [1]})
        assert not isinstance(caught.value, CommitConflict)
        with pytest.raises(CommitError, match="no route"):
            append_rows(lake, NOTES, [{"k": "a"}], app_id="a")
        assert (lake.version("days"), lake.version("notes")) == (0, 0)

    def test_an_answer_without_a_commit_is_an_error(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DeltaTable, "create_write_transaction", lambda *_, **__: None)
        with pytest.raises(CommitError, match="not in the log"):
            put(lake, {"a": [1]})
        with pytest.raises(CommitError, match="not in the log"):
            append_rows(lake, NOTES, [{"k": "a"}], app_id="a")


class TestAppendRows:
    def test_once_per_application_id(self, lake: Lake) -> None:
        assert append_rows(lake, NOTES, [{"k": "a", "v": 1}, {"k": "b"}], app_id="one") is True
        assert append_rows(lake, NOTES, [{"k": "other", "v": 2}], app_id="one") is False
        assert append_rows(lake, NOTES, [{"k": "c", "v": 3}], app_id="two") is True
        rows = sorted((r["k"], r["v"]) for r in lake.read("notes", 2).to_pylist())
        assert rows == [("a", 1), ("b", None), ("c", 3)]
        assert COMMIT_ID in lake.open("notes").history(1)[0]

    def test_another_comes_between_the_look_and_the_commit(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        write, first = module.write_file, [True]

        def overtaken(*args: Any) -> DataFile:
            if first and first.pop():
                append_rows(lake, NOTES, [{"k": "other"}], app_id="one")
            return write(*args)

        monkeypatch.setattr(module, "write_file", overtaken)
        assert append_rows(lake, NOTES, [{"k": "mine"}], app_id="one") is False
        assert [r["k"] for r in lake.read("notes", 1).to_pylist()] == ["other"]

    def test_threads(self, lake: Lake) -> None:
        same = [lambda i=i: append_rows(lake, NOTES, [{"k": "s", "v": i}], app_id="same") for i in range(4)]
        own = [lambda i=i: append_rows(lake, NOTES, [{"k": "o", "v": i}], app_id=f"own{i}") for i in range(4)]
        results = together([*same, *own])
        assert results[4:] == [True] * 4
        assert sorted(results[:4]) == [False, False, False, True]
        rows = sorted((r["k"], r["v"]) for r in lake.read("notes", lake.version("notes") or 0).to_pylist())
        assert rows == [("o", 0), ("o", 1), ("o", 2), ("o", 3), ("s", results.index(True))]

    def test_a_row_without_a_value_that_must_be_there(self, lake: Lake) -> None:
        with pytest.raises(CommitError, match="'notes'"):
            append_rows(lake, NOTES, [{"v": 1}], app_id="one")
        assert append_rows(lake, NOTES, [{"k": "a"}], app_id="one") is True
