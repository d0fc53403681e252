"""What the ledger keeps from vacuum, what it gives up, and the two commands over a workspace without Spark."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.errors import DataRefused
from infra.lake import Lake
from infra.ledger import Ledger, Published
from infra.lock import WorkspaceLock
from infra.maintenance import OLDER_THAN_HOURS
from pipelines.cli import app
from pipelines.maintenance import KEEP_DAYS, pinned
from tests.infra.test_commit import content, put, written
from tests.pipelines.commands import logs2rec, small_recipe

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RECENT = NOW - timedelta(days=30)


def row(
    unit: str,
    key: str,
    outputs: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    *,
    date: str = "d1",
    days_ago: float = 100,
    report: Mapping[str, Any] | None = None,
) -> Published:
    published = NOW - timedelta(days=days_ago)
    return Published(key, unit, date, inputs or {}, "c", "v", outputs, report or {}, 0.0, "r", published)


def pins(*rows: Published) -> dict[str, set[int]]:
    return dict(pinned(sorted(rows, key=lambda r: r.published_at), RECENT))


class TestPinned:
    def test_the_newest_of_each_unit_and_date_with_what_it_was_made_from(self) -> None:
        found = pins(
            row("events", "e1", {"events": 1, "quarantine": 1}, {"files": "f", "previous": None}, days_ago=99),
            row("events", "e2", {"events": 2, "quarantine": 2}, {"files": "g", "previous": None}, days_ago=98),
            row("vocabularies", "v", {"items": 7}, {"events": 2}, days_ago=97),
        )
        assert found == {"events": {2}, "quarantine": {2}, "items": {7}}

    def test_each_date_has_its_own(self) -> None:
        found = pins(row("sequences", "s1", {"sequences": 1}), row("sequences", "s2", {"sequences": 2}, date="d2"))
        assert found == {"sequences": {1, 2}}

    @pytest.mark.parametrize(("days_ago", "kept"), [(29, {1, 2}), (31, {2})])
    def test_what_was_published_lately(self, days_ago: float, kept: set[int]) -> None:
        found = pins(
            row("events", "old", {"events": 1}, days_ago=days_ago), row("events", "new", {"events": 2}, days_ago=1)
        )
        assert found == {"events": kept}

    def test_histories_are_kept_for_the_next_day_only(self) -> None:
        found = pins(
            row("histories", "h1", {"histories": 1}, date="d1", days_ago=90),
            row("sequences", "s1", {"sequences": 1}, {"histories": 1}, date="d1", days_ago=90),
            row("histories", "h2", {"histories": 2}, date="d2", days_ago=20),
            row("sequences", "s2", {"sequences": 2}, {"histories": 2}, date="d2", days_ago=20),
        )
        assert found == {"histories": {2}, "sequences": {1, 2}}
        alone = row("histories", "h1", {"histories": 1}, date="d1", days_ago=90)
        assert pins(alone) == {"histories": {1}}

    def test_all_that_a_registered_model_was_trained_on_however_old(self) -> None:
        old = [
            row("events", "e", {"events": 1}, days_ago=100),
            row("sequences", "s", {"sequences": 3}, {"events": 1, "items": 2}, days_ago=99),
            row("train:retrieval:adrec", "t", {"artifact": "a"}, {"sequences": 3, "items": 2}, days_ago=98),
            row("evaluate:retrieval", "v", {"folder": "f"}, {"sequences": 4, "adrec": "t"}, days_ago=97),
        ]
        registered = row(
            "register:retrieval",
            "g",
            {"version": "1"},
            {"evaluation": "v", "store": "m"},
            days_ago=96,
            report={"data": {"versions": {"item_features": 5}, "arrival": "d1", "day": "d1"}},
        )
        newer = [
            row(r.unit, f"{r.key}2", {t: 90 for t, v in r.outputs.items() if isinstance(v, int)}, days_ago=2)
            for r in old
        ]
        again = row(
            "register:retrieval",
            "g2",
            {"version": "2"},
            {"evaluation": "v2"},
            days_ago=1,
            report={"data": {"versions": {}}},
        )
        found = pins(*old, registered, *newer, again)
        assert found["sequences"] == {3, 4, 90}
        assert (found["items"], found["item_features"], found["events"]) == ({2}, {5}, {1, 90})
        assert pins(*old, *newer)["sequences"] == {90}  # without the registration

    def test_rows_are_reached_through_keys_and_nested_inputs(self) -> None:
        found = pins(
            row("events", "e1", {"events": 1}, {"previous": None}, date="d1", days_ago=90),
            row("events", "x1", {"events": 8}, {"previous": None}, date="d1", days_ago=80),
            row("events", "e2", {"events": 2}, {"tables": {"previous": "e1", "items": 4}}, date="d2", days_ago=70),
        )
        assert found == {"events": {1, 2, 8}, "items": {4}}

    def test_what_an_output_was_made_again_for_is_not_needed(self) -> None:
        made_again = row("events", "e2", {"events": 2}, {"rebuilt": {"of": "e1", "run": "r"}}, days_ago=70)
        assert pins(row("events", "e1", {"events": 1}), made_again) == {"events": {2}}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three publications of one unit and date, an orphan and an unpublished version, all two days old."""
    lake = Lake(tmp_path / "workspace" / "lake")
    ledger = Ledger(lake)
    for number in (1, 2, 3):
        version = put(lake, {"a": [number]})
        ledger.publish(
            unit="days",
            date="d1",
            inputs={"file": str(number)},
            config={},
            outputs={"days": version},
            report={},
            seconds=0.0,
            run_id="r",
        )
    assert put(lake, {"a": [4]}) == 4
    written(lake, "a", 9)
    old = time.time() - 48 * 3600
    for path in Path(lake.path("days")).rglob("*.parquet"):
        os.utime(path, (old, old))
    return tmp_path


def vacuum(folder: Path, *options: str) -> Any:
    done = logs2rec("vacuum", "--config", small_recipe(folder), *options, "--json")
    assert done.code == 0, done.stderr
    return done


class TestVacuum:
    def test_dry_run_then_apply_then_the_work_is_done_again(self, workspace: Path) -> None:
        lake = Lake(workspace / "workspace" / "lake")
        days = vacuum(workspace).json["tables"]["days"]  # the commits are of now: only the orphan is old enough
        assert {reason: kind["files"] for reason, kind in days["kinds"].items()} == {
            "orphan": 1,
            "old version": 0,
            "temporary": 0,
        }
        wanted = ("--older-than", "0", "--keep-days", "0")
        dry = vacuum(workspace, *wanted)
        assert days["before"]["files"] == 5
        assert days["before"]["versions"] == 5
        assert "Nothing was removed; --apply removes these files." in dry.stdout
        assert (dry.json["applied"], dry.json["tables"]["days"]["unreadable_versions"]) == (False, [1, 2])
        assert [w["date"] for w in dry.json["withdrawn"]] == ["d1", "d1"]
        assert content(lake, 1) == {"a": [1]}
        assert len(Ledger(lake).rows()) == 3

        done = vacuum(workspace, *wanted, "--apply").json["tables"]["days"]
        assert (done["removed_files"], done["removed_bytes"]) == (3, done["bytes"])
        assert (content(lake, 3), content(lake, 4)) == ({"a": [3]}, {"a": [4]})  # published, and newest
        with pytest.raises(DataRefused, match="it was vacuumed"):
            lake.read("days", 1)
        ledger = Ledger(lake)
        assert [r.outputs for r in ledger.rows()] == [{"days": 3}, {}]
        assert len(ledger.everything()) == 4

        again = {"unit": "days", "date": "d1", "inputs": {"file": "1"}, "config": {}}
        more = {"report": {}, "seconds": 0.0, "run_id": "r"}
        row = ledger.publish(**again, outputs={"days": put(lake, {"a": [1]})}, **more)  # type: ignore[arg-type]
        assert Ledger(lake).find(row.key) == row
        assert ledger.publish(**again, outputs={"days": 99}, **more) == row  # type: ignore[arg-type]
        assert vacuum(workspace, *wanted).json["withdrawn"][0]["key"] != row.key

    def test_without_a_ledger_only_orphans_go(self, workspace: Path) -> None:
        lake = Lake(workspace / "workspace" / "lake")
        Path(lake.path("runs")).rename(workspace / "elsewhere")
        done = vacuum(workspace, "--older-than", "0", "--keep-days", "0", "--apply").json["tables"]["days"]
        assert (done["removed_files"], done["unreadable_versions"]) == (1, [])
        assert content(lake, 1) == {"a": [1]}

    def test_nothing_is_removed_when_one_table_cannot_be_judged(self, workspace: Path) -> None:
        lake = Lake(workspace / "workspace" / "lake")
        (Path(lake.path("runs")) / "_delta_log" / f"{1:020d}.json").write_text("{")
        recipe = small_recipe(workspace)
        before = sorted(p.name for p in lake.root.rglob("*"))
        done = logs2rec("vacuum", "--config", recipe, "--older-than", "0", "--apply", "--json")
        assert (done.code, done.json["kind"]) == (3, "DataRefused")
        assert sorted(p.name for p in lake.root.rglob("*")) == before

    def test_beside_a_command_at_work_it_is_refused(self, workspace: Path) -> None:
        lock = WorkspaceLock(workspace / "workspace")
        lock.hold("run x")
        recipe = small_recipe(workspace)
        for command in (["vacuum", "--apply"], ["compact"]):
            done = logs2rec(*command, "--config", recipe, "--json")
            assert (done.code, "run x" in done.json["error"]) == (2, True)
        assert logs2rec("vacuum", "--config", recipe).code == 0  # looking is free
        lock.release()

    def test_an_empty_workspace(self, tmp_path: Path) -> None:
        assert vacuum(tmp_path).json == {"applied": False, "tables": {}, "withdrawn": []}
        assert not (tmp_path / "workspace").exists()


def test_compact(workspace: Path) -> None:
    lake = Lake(workspace / "workspace" / "lake")
    before = Ledger(lake).rows()
    lake.open("days").create_checkpoint()
    (Path(lake.path("days")) / "_delta_log" / f"{4:020d}.checkpoint.parquet").write_bytes(b"")
    done = logs2rec("compact", "--config", small_recipe(workspace), "--json")
    assert done.code == 0, done.stderr
    assert done.json == {
        "records": {"runs": {"rows": 3, "before": 3, "after": 1}},
        "repaired": {"days": [f"{4:020d}.checkpoint.parquet", "_last_checkpoint"]},
        "checkpoints": [],
    }
    assert "runs: 3 rows in 1 file(s), 3 before" in done.stdout
    assert Ledger(lake).rows() == before
    assert content(lake) == {"a": [4]}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("vacuum", {"--config", "--apply", "--older-than", "--keep-days", "--set", "--json"}),
        ("compact", {"--config", "--set", "--json"}),
    ],
)
def test_options_are_a_promise(command: str, options: set[str]) -> None:
    found = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert {o for p in found for o in p.opts if o.startswith("--")} == options


def test_the_command_line_says_the_defaults() -> None:
    """Written out there, because the command line imports nothing before a command is chosen."""
    defaults = {p.name: p.default for p in typer.main.get_command(app).commands["vacuum"].params}  # type: ignore[attr-defined]
    assert (defaults["older_than"], defaults["keep_days"]) == (OLDER_THAN_HOURS, KEEP_DAYS)
