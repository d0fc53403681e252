"""Facts of the pinned deltalake that infra/commit.py and infra/lake.py rest on.

When one fails after an upgrade, look at the code that makes up for it: some of it may go.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from infra.commit import DataFile, append_rows, write_file
from infra.lake import Lake
from infra.schemas import create
from tests.infra.test_commit import DAYS, NOTES, content, put, written


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def transact(delta: DeltaTable, file: DataFile, app_id: str | None, **how: Any) -> None:
    """deltalake's own overwrite of the file's day, without our protocol."""
    how = {"mode": "overwrite", "partition_filters": [("day", "in", [file.partition["day"]])], **how}
    transactions = [] if app_id is None else [Transaction(app_id, 1)]
    delta.create_write_transaction(
        [AddAction(file.path, file.size, dict(file.partition), 0, True, file.stats)],
        schema=how.pop("schema", Schema.from_arrow(DAYS.schema)),
        partition_by=["day"],
        commit_properties=CommitProperties(app_transactions=transactions),
        **how,
    )


def test_any_file_of_any_schema_outside_the_filter_is_accepted(lake: Lake) -> None:
    create(lake, DAYS)
    ghost = DataFile("day=b/nowhere.parquet", 1, 1, {"day": "b"}, '{"numRecords": 7}')
    transact(lake.open("days"), ghost, None, partition_filters=[("day", "in", ["a"])])
    assert lake.files("days", 1) == [lake.path("days") + "/day=b/nowhere.parquet"]
    other = Schema.from_arrow(pa.schema([("day", pa.string()), ("y", pa.string())]))
    transact(lake.open("days"), ghost, None, schema=other)
    assert [f.name for f in lake.open("days").schema().fields] == ["day", "y"]  # the table's schema is overwritten


def test_the_handle_that_committed_is_stale(lake: Lake) -> None:
    create(lake, DAYS)
    delta = lake.open("days")
    transact(delta, written(lake, "a", 1), None)
    assert (delta.version(), lake.version("days")) == (0, 1)


def test_history_beside_other_writers_reports_wrong_versions(lake: Lake) -> None:
    put(lake, {"a": [1]}, mine="yes")
    delta = lake.open("days")
    put(lake, {"a": [2]})
    assert [(e["version"], e.get("mine")) for e in delta.history(2)][:2] == [(1, None), (0, "yes")]


@pytest.mark.parametrize(("app_id", "landed"), [(None, [1, 2]), ("days:day=a", [1])])
def test_two_first_writers_of_a_partition(lake: Lake, app_id: str | None, landed: list[int]) -> None:
    create(lake, DAYS)
    one, two = lake.open("days"), lake.open("days")
    transact(one, written(lake, "a", 1), app_id)
    if app_id is None:
        transact(two, written(lake, "a", 2), app_id)
    else:
        with pytest.raises(CommitFailedError):
            transact(two, written(lake, "a", 2), app_id)
    assert content(lake) == {"a": landed}


def test_an_application_transaction_is_recorded_but_not_enforced(lake: Lake) -> None:
    create(lake, DAYS)
    for x in (1, 2):
        transact(lake.open("days"), written(lake, "a", x), "app", mode="append", partition_filters=None)
    assert content(lake) == {"a": [1, 2]}
    lake.open("days").create_checkpoint()
    assert lake.open("days").transaction_version("app") == 1  # survives a checkpoint


def test_rewriting_one_partition_fails_a_writer_of_another(lake: Lake) -> None:
    put(lake, {"a": [1], "b": [1]})
    one, two = lake.open("days"), lake.open("days")
    transact(one, written(lake, "a", 2), "a")
    with pytest.raises(CommitFailedError, match="concurrent transaction deleted"):
        transact(two, written(lake, "b", 2), "b")


def test_no_filter_is_the_whole_table(lake: Lake) -> None:
    put(lake, {"a": [1], "b": [1]})
    transact(lake.open("days"), written(lake, "a", 2), None, partition_filters=None)
    assert content(lake) == {"a": [2]}


def test_default_vacuum_leaves_orphans_and_no_vacuum_takes_underscores(lake: Lake) -> None:
    put(lake, {"a": [1]})
    orphan = written(lake, "a", 2)
    (Path(lake.path("days")) / "_hidden.parquet").write_bytes(b"x")

    def found(**how: Any) -> list[str]:
        return lake.open("days").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=True, **how)

    assert found() == []
    assert found(full=True) == [orphan.path]


def test_an_entry_that_lost_whole_lines_is_taken_for_a_whole_one(lake: Lake) -> None:
    put(lake, {"a": [1], "b": [1]})
    put(lake, {"a": [2]})
    entry = Path(lake.path("days")) / "_delta_log" / f"{2:020d}.json"
    lines = entry.read_text().splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["commitInfo", "add", "remove", "txn"]
    for kept, files in ((0, 2), (1, 2), (2, 3), (3, 2), (4, 2)):  # without the removal both files of a day count
        entry.write_text("".join(f"{line}\n" for line in lines[:kept]))
        delta = DeltaTable(lake.path("days"))
        assert (delta.version(), len(delta.file_uris())) == (2, files)


def test_a_damaged_checkpoint_makes_a_complete_log_unreadable(lake: Lake) -> None:
    put(lake, {"a": [1]})
    lake.open("days").create_checkpoint()
    log = Path(lake.path("days")) / "_delta_log"
    for damaged in ("_last_checkpoint", f"{1:020d}.checkpoint.parquet"):
        (log / damaged).write_bytes((log / damaged).read_bytes()[:20])
        if damaged == "_last_checkpoint":
            assert DeltaTable(lake.path("days")).version() == 1
        else:
            with pytest.raises(DeltaError):
                DeltaTable(lake.path("days"))


@pytest.mark.parametrize(("app_id", "copies"), [(None, 2), ("notes:rewrite", 1)])
def test_two_rewrites_of_the_same_files(lake: Lake, app_id: str | None, copies: int) -> None:
    for key in "ab":
        append_rows(lake, NOTES, [{"k": key}], app_id=key)
    handles = [lake.open("notes"), lake.open("notes")]
    for number, delta in enumerate(handles):
        paths = pa.table(delta.get_add_actions())["path"].to_pylist()
        file = write_file(lake.path("notes"), NOTES, {}, [lake.read("notes", 2)])
        actions = [
            AddAction(file.path, file.size, {}, 0, False, file.stats),
            *(RemoveAction(p, False, 1) for p in paths),
        ]
        transactions = [] if app_id is None else [Transaction(app_id, 1)]
        properties = CommitProperties(app_transactions=transactions)
        if number and app_id:
            with pytest.raises(CommitFailedError):
                delta.create_write_transaction(actions, "append", delta.schema(), [], commit_properties=properties)
        else:
            delta.create_write_transaction(actions, "append", delta.schema(), [], commit_properties=properties)
    rows = lake.read("notes", lake.version("notes") or 0)["k"].to_pylist()
    assert sorted(rows) == sorted("ab" * copies)


def test_its_vacuum_makes_versions(lake: Lake) -> None:
    put(lake, {"a": [1]})
    put(lake, {"a": [2]})
    lake.open("days").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert lake.version("days") == 4
