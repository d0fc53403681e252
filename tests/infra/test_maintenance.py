"""Vacuum of one table: what goes, what stays whatever happens, and what is refused."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import log, maintenance
from infra.commit import astray, commit
from infra.errors import DataRefused, EnvironmentProblem
from infra.lake import Lake
from infra.maintenance import Plan, Reason, plan, remove, size, tables
from tests.infra.test_commit import DAYS, content, put, written

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets time pass: now, as the vacuum sees it, is that many hours later."""
    real = time.time

    def ahead(hours: float) -> None:
        monkeypatch.setattr(maintenance.time, "time", lambda: real() + hours * HOUR)

    return ahead


def paths(found: Plan, reason: Reason) -> set[str]:
    return {w.path for w in found.waste if w.reason is reason}


def files(lake: Lake, version: int) -> set[str]:
    return {path.removeprefix(f"{lake.path('days')}/") for path in lake.files("days", version)}


@pytest.fixture
def days(lake: Lake) -> Lake:
    """Versions 1 to 4: a and b; another a; another a; c."""
    put(lake, {"a": [1], "b": [1]})
    put(lake, {"a": [2]})
    put(lake, {"a": [3]})
    put(lake, {"c": [4]})
    return lake


class TestOldVersions:
    def test_what_nobody_keeps_goes_and_the_rest_reads_as_before(self, days: Lake, clock: Any) -> None:
        clock(25)
        before = {v: content(days, v) for v in (1, 4)}
        found = plan(days, "days", {1}, 24)
        assert paths(found, Reason.OLD_VERSION) == files(days, 2) - files(days, 1) - files(days, 4)
        assert (found.lost, found.newest) == ((2,), 4)
        assert content(days, 2) == {"a": [2], "b": [1]}  # a plan removes nothing
        assert remove(days, found) == (1, found.waste[0].bytes)
        assert {v: content(days, v) for v in (1, 4)} == before
        with pytest.raises(DataRefused, match=r"version 2: a data file is gone .* it was vacuumed"):
            days.read("days", 2)
        assert plan(days, "days", {1}, 24).waste == ()
        assert days.version("days") == 4  # no version that nobody published

    def test_with_nothing_pinned_the_newest_stays(self, days: Lake, clock: Any) -> None:
        clock(25)
        found = plan(days, "days", set(), 24)
        assert found.lost == (1, 2)
        remove(days, found)
        assert content(days, 4) == {"a": [3], "b": [1], "c": [4]}
        assert content(days, 3) == {"a": [3], "b": [1]}  # every file of it is the newest version's too

    def test_what_was_the_newest_within_the_time_stays(self, days: Lake, clock: Any) -> None:
        assert plan(days, "days", set(), 24).waste == ()
        clock(23.9)
        assert plan(days, "days", set(), 24).waste == ()
        clock(24.1)
        assert len(plan(days, "days", set(), 24).waste) == 2

    def test_so_do_its_files_however_old(self, days: Lake) -> None:
        """A version of last week that was superseded a minute ago may be what a reader has open."""
        old = time.time() - 100 * HOUR
        for path in Path(days.path("days")).rglob("*.parquet"):
            os.utime(path, (old, old))
        assert plan(days, "days", set(), 24).waste == ()

    def test_every_version_can_be_kept(self, days: Lake, clock: Any) -> None:
        clock(25)
        assert plan(days, "days", None, 24).waste == ()

    def test_a_file_that_a_later_commit_put_back_stays(self, days: Lake, clock: Any) -> None:
        """What infra.commit.astray does on behalf of a published version."""
        clock(25)
        found = plan(days, "days", set(), 24)
        back, moved = astray(days, DAYS, 1, "day", ["a"])
        assert commit(days, DAYS, back, replace={"day": moved}, metadata={}) == 5
        remove(days, found)
        assert content(days) == {"a": [1], "b": [1], "c": [4]}

    @pytest.mark.parametrize("version", [5, -1])
    def test_a_version_that_was_never_written_is_refused(self, days: Lake, version: int) -> None:
        with pytest.raises(DataRefused, match=f"names version {version}, the newest is 4"):
            plan(days, "days", {1, version}, 0)

    def test_after_checkpoints_it_is_the_same(self, lake: Lake, clock: Any) -> None:
        for n in range(23):
            put(lake, {"a": [n]})
        assert log.checkpoints(lake.path("days")) == [9, 19]
        clock(25)
        remove(lake, plan(lake, "days", {5, 15}, 24))
        assert [content(lake, v) for v in (5, 15, 23)] == [{"a": [4]}, {"a": [14]}, {"a": [22]}]
        assert len(list(Path(lake.path("days")).rglob("part-*.parquet"))) == 3
        assert log.checkpoints(lake.path("days")) == [9, 19]

    @settings(max_examples=10, deadline=None)
    @given(
        st.lists(
            st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), max_size=2), min_size=1), min_size=1
        ),
        st.sets(st.integers(0, 3)),
    )
    def test_any_kept_versions_read_as_before_and_nothing_else_is_left(
        self, commits: list[dict[str, list[int]]], keep: set[int]
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            lake = Lake(folder)
            for rows in commits[:4]:
                newest = put(lake, rows)
            keep = {v for v in keep if v <= newest}
            before = {v: content(lake, v) for v in {*keep, newest}}
            remove(lake, plan(lake, "days", keep, -1))  # an hour ahead of now: everything is old enough
            assert {v: content(lake, v) for v in before} == before
            left = {p.relative_to(lake.path("days")).as_posix() for p in Path(lake.path("days")).rglob("part-*")}
            assert left == set().union(*(files(lake, v) for v in before))


class TestOrphans:
    def test_they_go_when_they_are_old_enough(self, days: Lake) -> None:
        orphan, young = written(days, "a", 7), written(days, "b", 8)
        old = time.time() - 25 * HOUR
        os.utime(Path(days.path("days")) / orphan.path, (old, old))
        found = plan(days, "days", None, 24)
        assert paths(found, Reason.ORPHAN) == {orphan.path}
        assert found.total(Reason.ORPHAN) == (1, orphan.size)
        assert found.lost == ()
        before = content(days)
        assert remove(days, found) == (1, orphan.size)
        assert content(days) == before
        assert (Path(days.path("days")) / young.path).is_file()

    def test_one_that_is_committed_after_the_plan_stays(self, days: Lake) -> None:
        late, orphan = written(days, "a", 7), written(days, "a", 8)
        found = plan(days, "days", None, -1)
        assert paths(found, Reason.ORPHAN) == {late.path, orphan.path}
        commit(days, DAYS, [late], replace={"day": ["a"]}, metadata={})
        assert remove(days, found) == (1, orphan.size)
        assert content(days) == {"a": [7], "b": [1], "c": [4]}

    def test_half_written_files_of_the_log_and_of_tasks(self, days: Lake) -> None:
        root = Path(days.path("days"))
        half = [
            root / "_delta_log" / "_commit_0f.json.tmp",
            root / "_delta_log" / f"{3:020d}.checkpoint.parquet#1",
            root / "day=a" / "part-0.parquet#2",
        ]
        for path in half:
            path.write_bytes(b"x")
        days.open("days").create_checkpoint()
        found = plan(days, "days", None, -1)
        assert paths(found, Reason.TEMPORARY) == {p.relative_to(root).as_posix() for p in half}
        kept = sorted(os.listdir(root / "_delta_log"))
        remove(days, found)
        assert sorted(os.listdir(root / "_delta_log")) == [n for n in kept if "#" not in n and "tmp" not in n]

    def test_what_is_not_ours_stays(self, days: Lake, tmp_path: Path) -> None:
        root = Path(days.path("days"))
        (tmp_path / "elsewhere.parquet").write_bytes(b"x")
        (root / "link.parquet").symlink_to(tmp_path / "elsewhere.parquet")
        for name in ("notes.txt", "_hidden.parquet", ".dot.parquet", "_side/p.parquet", "day=a/.part.parquet.crc"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(b"x")
        assert plan(days, "days", None, -1).waste == ()

    def test_a_folder_that_cannot_be_written(self, days: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        written(days, "a", 7)
        found = plan(days, "days", None, -1)

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(EnvironmentProblem, match=r"cannot be removed \(Permission denied\)"):
            remove(days, found)


class TestRefusals:
    def test_an_incomplete_log(self, days: Lake) -> None:
        days.open("days").create_checkpoint()
        log.entry_of(days.path("days"), 2).unlink()
        assert content(days) == {"a": [3], "b": [1], "c": [4]}  # the checkpoint stands in for readers
        with pytest.raises(DataRefused, match="its log is not complete"):
            plan(days, "days", set(), -1)

    def test_an_entry_cut_short(self, days: Lake) -> None:
        log.entry_of(days.path("days"), 4).write_bytes(b"")
        with pytest.raises(DataRefused, match="is empty"):
            plan(days, "days", set(), -1)

    def test_what_deltalake_reads_otherwise(self, days: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Lake, "files", lambda *_: [f"{days.path('days')}/day=a/other.parquet"])
        with pytest.raises(DataRefused, match="disagree about version 4"):
            plan(days, "days", set(), -1)


def test_sizes_are_those_of_the_folder(days: Lake) -> None:
    orphan = written(days, "z", 1)
    found = size(days, "days")
    sizes = [p.stat().st_size for p in Path(days.path("days")).glob("day=*/*.parquet")]
    assert (found.files, found.bytes, found.versions) == (6, sum(sizes), 5)
    assert orphan.size in sizes


def test_tables_are_the_folders_with_a_log(days: Lake) -> None:
    (days.root / "no_table").mkdir()
    assert tables(days) == ["days"]
    assert tables(Lake(days.root / "nowhere")) == []


def test_another_engine_reads_the_kept_versions(days: Lake) -> None:
    remove(days, plan(days, "days", {1}, -1))
    for version, rows in ((1, [("a", 1), ("b", 1)]), (4, [("a", 3), ("b", 1), ("c", 4)])):
        frame = pl.read_delta(days.path("days"), version=version).select("day", "x")
        assert sorted(frame.rows()) == rows
