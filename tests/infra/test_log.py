"""The log on the disk: entries cut short, damaged checkpoints, replay; beside what deltalake makes of the same."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from infra import log
from infra.compaction import repair
from infra.errors import DataRefused
from infra.lake import Lake
from tests.infra.test_commit import content, put


@pytest.fixture
def days(lake: Lake) -> Path:
    """A table with versions 0 to 3; version 3 puts three days in the place of one file."""
    put(lake, {"a": [1]})
    put(lake, {"b": [1]})
    put(lake, {"a": [2], "b": [], "c": [3]})
    return Path(lake.path("days"))


CUTS = [
    ("to nothing", lambda data: b"", "is empty"),
    ("to zeros", lambda data: b"\0" * len(data), "is empty"),
    ("to its metadata", lambda data: data.split(b"\n")[0] + b"\n", "is cut short"),
    ("in the middle", lambda data: data[: len(data) // 2], "is cut short"),
    ("by its last line", lambda data: data.rsplit(b"\n", 1)[0], "is cut short"),
    ("by one byte", lambda data: data[:-1], "is cut short"),
    ("to something else", lambda data: b"[]\n", "is damaged"),
]


class TestNewestEntry:
    @pytest.mark.parametrize(("name", "cut", "words"), CUTS, ids=[name for name, _, _ in CUTS])
    def test_cut_short_is_refused_with_the_file(
        self, lake: Lake, days: Path, name: str, cut: object, words: str
    ) -> None:
        assert callable(cut)
        entry = log.entry_of(days, 3)
        entry.write_bytes(cut(entry.read_bytes()))
        for act in (lambda: lake.open("days"), lambda: put(lake, {"d": [4]}), lambda: lake.read("days", 3)):
            with pytest.raises(DataRefused, match=r"'days' under .* damaged: .*0003\.json") as caught:
                act()
            assert words in str(caught.value)
        assert not log.entry_of(days, 4).exists()
        assert content(lake, 2) == {"a": [1], "b": [1]}  # earlier versions read as before

    def test_the_advice_leads_back_to_a_table_that_works(self, lake: Lake, days: Path) -> None:
        entry = log.entry_of(days, 3)
        entry.write_bytes(b"")
        with pytest.raises(DataRefused, match="move that file away and run the command again"):
            lake.open("days")
        entry.unlink()
        assert content(lake) == {"a": [1], "b": [1]}
        assert put(lake, {"a": [2], "b": [], "c": [3]}) == 3
        assert content(lake) == {"a": [2], "c": [3]}

    def test_a_checkpoint_of_it_goes_with_it(self, lake: Lake, days: Path) -> None:
        """Else it would stand in for the entry, and the log would have a gap that no vacuum can judge."""
        lake.open("days").create_checkpoint()
        log.entry_of(days, 3).write_bytes(b"")
        names = f"{3:020d}.checkpoint.parquet and _last_checkpoint"
        with pytest.raises(DataRefused, match=f"move that file away with {names} beside it"):
            lake.open("days")
        for name in (f"{3:020d}.json", f"{3:020d}.checkpoint.parquet", "_last_checkpoint"):
            (days / "_delta_log" / name).unlink()
        assert put(lake, {"a": [2], "b": [], "c": [3]}) == 3
        assert [e.version for e in log.history(days)] == [0, 1, 2, 3]

    def test_every_line_boundary_of_every_entry_counts(self, days: Path) -> None:
        for version in range(4):
            entry = log.entry_of(days, version)
            lines = entry.read_bytes().rstrip(b"\n").split(b"\n")
            assert log.flaw(entry) is None
            for kept in range(len(lines)):
                entry.write_bytes(b"\n".join(lines[:kept]) + b"\n")
                assert log.flaw(entry), (version, kept)
            entry.write_bytes(b"\n".join(lines))

    def test_entries_of_other_writers_are_read_as_they_are(self, lake: Lake, days: Path) -> None:
        DeltaTable(days).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        assert lake.version("days") == 5  # VACUUM START and VACUUM END
        log.entry_of(days, 6).write_text('{"add":' + json.dumps(_add("day=z/p.parquet")) + "}")
        assert lake.version("days") == 6


def _add(path: str) -> dict[str, object]:
    return {"path": path, "partitionValues": {"day": "z"}, "size": 1, "modificationTime": 1, "dataChange": True}


class TestOlderEntries:
    def test_a_damaged_one_is_named(self, lake: Lake, days: Path) -> None:
        log.entry_of(days, 2).write_text("{")
        with pytest.raises(DataRefused, match=r"its log entry .*0002\.json is cut short; restore it"):
            lake.open("days")

    def test_a_missing_one_is_named(self, lake: Lake, days: Path) -> None:
        log.entry_of(days, 1).unlink()
        with pytest.raises(DataRefused, match="damaged"):
            lake.open("days")


class TestCheckpoints:
    @pytest.fixture
    def checkpointed(self, lake: Lake, days: Path) -> Path:
        DeltaTable(days).create_checkpoint()
        put(lake, {"d": [4]})
        return days / "_delta_log"

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_damaged_one_is_refused_until_it_is_repaired(self, lake: Lake, checkpointed: Path, share: float) -> None:
        before = {v: lake.files("days", v) for v in range(5)}
        path = checkpointed / f"{3:020d}.checkpoint.parquet"
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(DataRefused, match=r"checkpoint .* unreadable.*`logs2rec compact`"):
            lake.open("days")
        assert repair(lake, "days") == [path.name, "_last_checkpoint"]
        assert repair(lake, "days") == []
        assert {v: lake.files("days", v) for v in range(5)} == before
        assert put(lake, {"e": [5]}) == 5

    @pytest.mark.parametrize("pointer", [b"", b'{"version":3', b'{"version":99,"size":1}', b"[]", b"{}"])
    def test_a_damaged_pointer(self, lake: Lake, checkpointed: Path, pointer: bytes) -> None:
        (checkpointed / "_last_checkpoint").write_bytes(pointer)
        assert repair(lake, "days") == ["_last_checkpoint"]
        assert content(lake) == {"a": [2], "c": [3], "d": [4]}

    def test_what_entries_do_not_cover_is_not_removed(self, lake: Lake, checkpointed: Path) -> None:
        path = checkpointed / f"{3:020d}.checkpoint.parquet"
        path.write_bytes(b"")
        (checkpointed / f"{1:020d}.json").unlink()
        with pytest.raises(DataRefused, match=r"cannot stand in for it \(entries are missing\)"):
            repair(lake, "days")
        assert path.exists()

    def test_they_come_every_ten_commits_and_are_synced(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        monkeypatch.setattr(log, "sync", lambda path: synced.append(path.name))
        for n in range(1, 21):
            put(lake, {"a": [n]})
        assert log.checkpoints(lake.path("days")) == [9, 19]
        assert {f"{n:020d}.checkpoint.parquet" for n in (9, 19)} | {"_last_checkpoint"} <= set(synced)


class TestHistory:
    def test_it_is_what_deltalake_says(self, lake: Lake, days: Path) -> None:
        live: set[str] = set()
        for entry in log.history(days):
            live = (live - entry.removed) | entry.added
            actions = pa.table(DeltaTable(days, version=entry.version).get_add_actions())
            assert live == set(actions["path"].to_pylist())
        assert entry.version == 3

    def test_names_are_decoded(self, days: Path) -> None:
        log.entry_of(days, 4).write_text('{"add":' + json.dumps(_add("day=a%20b/p.parquet")) + "}")
        assert [e.added for e in log.history(days)][4] == {"day=a b/p.parquet"}

    def test_an_incomplete_log_is_an_error(self, days: Path) -> None:
        log.entry_of(days, 1).unlink()
        with pytest.raises(ValueError, match="entries are missing"):
            list(log.history(days))

    def test_what_is_a_table(self, tmp_path: Path, days: Path) -> None:
        assert log.is_table(days)
        assert not log.is_table(tmp_path / "none")
        folder = tmp_path / "half"
        (folder / "_delta_log").mkdir(parents=True)
        (folder / "_delta_log" / "_commit_x.json.tmp").touch()
        assert not log.is_table(folder)
