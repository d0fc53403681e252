"""Compaction of record tables: the same rows in one file, whatever happens meanwhile; checkpoints where they lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infra import compaction, log
from infra.commit import append_rows
from infra.compaction import Compacted, checkpoint, compact
from infra.errors import CommitConflict, DataRefused
from infra.lake import Lake
from infra.ledger import Ledger
from infra.maintenance import plan, remove
from infra.tables import RUNS, Column, Table
from tests.infra.test_commit import NOTES
from tests.infra.test_ledger import publish


def note(lake: Lake, *keys: str) -> None:
    for key in keys:
        assert append_rows(lake, NOTES, [{"k": key, "v": len(key)}], app_id=key)


def rows(lake: Lake, version: int | None = None) -> list[tuple[str, int]]:
    newest = lake.version("notes") if version is None else version
    assert newest is not None
    return sorted((r["k"], r["v"]) for r in lake.read("notes", newest).to_pylist())


def overtaken(monkeypatch: pytest.MonkeyPatch, by: Any) -> None:
    """Let `by` run when the rows are read and the new file is not written yet, once."""
    write, pending = compaction.write_file, [by]

    def late(*args: Any) -> Any:
        if pending:
            pending.pop()()
        return write(*args)

    monkeypatch.setattr(compaction, "write_file", late)


class TestCompact:
    def test_row_for_row_in_one_file(self, lake: Lake) -> None:
        note(lake, "a", "bb", "ccc")
        before = rows(lake)
        assert compact(lake, NOTES) == Compacted("notes", 3, 1, 3)
        assert rows(lake) == before == [("a", 1), ("bb", 2), ("ccc", 3)]
        assert len(lake.files("notes", 4)) == 1
        assert rows(lake, 2) == before[:2]  # earlier versions stay
        assert DeltaTable(lake.path("notes")).to_pyarrow_table().num_rows == 3  # another reader

    def test_again_there_is_nothing_to_do(self, lake: Lake) -> None:
        note(lake, "a", "b")
        compact(lake, NOTES)
        assert compact(lake, NOTES) == Compacted("notes", 1, 1, 2)
        assert lake.version("notes") == 3
        note(lake, "c")
        assert compact(lake, NOTES) == Compacted("notes", 2, 1, 3)

    def test_an_empty_table(self, lake: Lake) -> None:
        note(lake)
        assert compact(lake, NOTES) == Compacted("notes", 0, 0, 0)

    def test_what_was_appended_once_is_not_appended_again(self, lake: Lake) -> None:
        note(lake, "a", "b")
        compact(lake, NOTES)
        assert append_rows(lake, NOTES, [{"k": "a"}], app_id="a") is False

    def test_rows_appended_meanwhile_stay(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        note(lake, "a", "bb")
        overtaken(monkeypatch, lambda: note(lake, "ccc"))
        compact(lake, NOTES)
        assert rows(lake) == [("a", 1), ("bb", 2), ("ccc", 3)]

    def test_an_append_that_was_overtaken_stays(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        from infra import commit as module

        note(lake, "a", "bb")
        transact, first = module._transact, [True]

        def late(*args: Any) -> None:
            if first and first.pop():
                compact(lake, NOTES)
            transact(*args)

        monkeypatch.setattr(module, "_transact", late)
        note(lake, "ccc")
        assert rows(lake) == [("a", 1), ("bb", 2), ("ccc", 3)]

    def test_of_two_compactions_one_lands(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        note(lake, "a", "bb")
        overtaken(monkeypatch, lambda: compact(lake, NOTES))
        with pytest.raises(CommitConflict, match="notes:rewrite"):
            compact(lake, NOTES)
        assert rows(lake) == [("a", 1), ("bb", 2)]

    def test_columns_that_came_later_are_null(self, lake: Lake) -> None:
        note(lake, "a", "bb")
        wider = Table("notes", "records", (*NOTES.columns, Column("w", pa.int64(), "w", True)))
        compact(lake, wider)
        assert [r["w"] for r in lake.read("notes", lake.version("notes") or 0).to_pylist()] == [None, None]
        with pytest.raises(DataRefused, match="does not know, w: upgrade"):
            compact(lake, NOTES)

    def test_the_ledger_reads_the_same_before_during_and_after(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        published = [publish(Ledger(lake), date=f"2026-01-0{day}") for day in range(1, 6)]
        during: list[Any] = []
        overtaken(monkeypatch, lambda: during.extend(Ledger(lake).rows()))
        reader = Ledger(lake)
        assert reader.rows() == published
        compact(lake, RUNS)
        remove(lake, plan(lake, "runs", set(), -1))  # the single files are gone
        assert during == reader.rows() == Ledger(lake).rows() == published
        assert reader.find(published[2].key) == published[2]
        assert publish(reader, date="2026-01-03") == published[2]  # still published once
        assert len(Ledger(lake).rows()) == 5


class TestCheckpoint:
    def test_where_the_log_is_long_without_one(self, lake: Lake) -> None:
        DeltaTable.create(lake.path("notes"), schema=NOTES.schema, configuration={"delta.checkpointInterval": "1000"})
        note(lake, *(f"{n}" for n in range(10)))
        assert checkpoint(lake, "notes") is False
        note(lake, "last")
        before = rows(lake)
        assert checkpoint(lake, "notes") is True
        assert log.checkpoints(lake.path("notes")) == [11]
        assert checkpoint(lake, "notes") is False
        for version in range(11):  # readers need the entries before it no more
            (Path(lake.path("notes")) / "_delta_log" / f"{version:020d}.json").rename(lake.root / f"{version}")
        assert rows(lake) == before
