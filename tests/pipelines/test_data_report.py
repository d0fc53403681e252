"""The data report of the simulator's log: duckdb's own counts, what is skipped, and what a failure stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pyspark.sql import SparkSession

from featurize.simulate import simulate
from infra.errors import UsageError
from pipelines import data_report, data_stages
from pipelines.context import Context
from pipelines.data import Data
from pipelines.data_report import UNIT, DataReport
from pipelines.event_stages import events
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from tests.evaluate.publish.test_report import Page
from tests.pipelines.commands import small_recipe

DAYS = [f"2026-01-0{d}" for d in range(1, 5)]
#: What differs between two workspaces that hold the same data.
OWN = ("key", "inputs", "outputs", "published_at", "run_id", "snapshots")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "raw"
    simulate(folder, users=60, items=30, days=4, seed=11)
    return folder


def open_at(folder: Path, raw: Path, **options: Any) -> Context:
    folder.mkdir(exist_ok=True)
    return Context(*open_recipe(small_recipe(folder, data=str(raw))), Progress(1), **options)


def built(folder: Path, raw: Path, **options: Any) -> tuple[Context, Data, list[DataReport]]:
    with open_at(folder, raw, **options) as ctx:
        data = events(ctx)
        return ctx, data, data_report.build(ctx, data)


def status(ctx: Context) -> list[str]:
    return [s.status for s in ctx.steps if s.unit == UNIT]


@pytest.fixture(scope="module")
def once(
    spark: SparkSession, raw: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Context, Data, list[DataReport]]:
    folder = tmp_path_factory.mktemp("once")
    return folder, *built(folder, raw)


def test_the_counts_are_duckdb_s(once: tuple[Path, Context, Data, list[DataReport]]) -> None:
    _, ctx, data, reports = once
    log = ctx.lake.read("events", data.versions["events"])
    refused = ctx.lake.read("quarantine", data.versions["quarantine"])
    for report in reports:
        c = report.content
        day = {"day": c["arrival"]}
        query = """
            SELECT count(*), count(DISTINCT "user"), count(DISTINCT item), avg(label),
                count(DISTINCT "user") FILTER ("user" NOT IN (SELECT "user" FROM log WHERE arrival < $day)),
                count(DISTINCT item) FILTER (item NOT IN (SELECT item FROM log WHERE arrival < $day))
            FROM log WHERE arrival = $day"""
        row = duckdb.execute(query, day).fetchone()
        assert row == tuple(c[k] for k in ("events", "users", "items", "label_rate", "new_users", "new_items"))
        by_reason = duckdb.execute(
            "SELECT reason, count(*) FROM refused WHERE arrival = $day GROUP BY 1", day
        ).fetchall()
        assert dict(by_reason) == c["reasons"]
        assert c["rows"] == c["events"] + c["duplicates"] + c["quarantined"]
        for field in (f for f in c["fields"] if f["source"] == "events"):
            query = f'SELECT count(*) FILTER ("{field["column"]}" IS NULL) FROM log WHERE arrival = $day'
            assert duckdb.execute(query, day).fetchone() == (field["missing"],)
        days = duckdb.execute("SELECT ds, count(*) FROM log WHERE arrival = $day GROUP BY 1 ORDER BY 1", day).fetchall()
        assert days == [(d["ds"], d["events"]) for d in c["event_days"]]
    assert log.num_rows == sum(r.content["events"] for r in reports)
    assert refused.num_rows == sum(r.content["quarantined"] for r in reports)


def test_every_field_of_the_contract_is_there(once: tuple[Path, Context, Data, list[DataReport]]) -> None:
    _, ctx, _, reports = once
    last = reports[-1].content
    assert [f["column"] for f in last["fields"]] == ["type", *(f"f_{f.name}" for f in ctx.contract.fields)]
    assert [f["psi"] is not None for f in last["fields"]].count(True) == len(ctx.contract.fields_from("log")) + 1
    assert reports[0].content["previous"] is None
    assert all(f["psi"] is None for f in reports[0].content["fields"])
    assert [h["arrival"] for h in last["history"]] == DAYS


def test_the_page_shows_the_figures_of_the_json(once: tuple[Path, Context, Data, list[DataReport]]) -> None:
    for report in once[3]:
        stored = json.loads(report.page.with_name("data.json").read_bytes())
        assert stored == report.content
        page = Page(report.page.read_text(encoding="utf-8"))
        shown = {stored[c] for c in data_report.COUNTED} | {f["psi"] for f in stored["fields"] if f["psi"] is not None}
        assert shown <= page.figures
        assert all(w in page.text for w in stored["warnings"])


def test_day_by_day_equals_all_at_once(
    spark: SparkSession, raw: Path, tmp_path: Path, once: tuple[Path, Context, Data, list[DataReport]]
) -> None:
    """But for the side files: each day's snapshot is one that the whole run at once did not take."""
    for day in (DAYS[1], DAYS[3]):
        ctx, _, reports = built(tmp_path, raw, last=day)
    assert status(ctx) == ["skipped", "skipped", "published", "published"]
    for ours, theirs in zip(reports, once[3], strict=True):
        a, b = ({k: v for k, v in r.content.items() if k not in OWN} for r in (ours, theirs))
        for report in (a, b):
            report["fields"] = [f for f in report["fields"] if f["source"] == "events"]
        assert a == b


def test_nothing_is_done_twice_and_a_lost_file_comes_back(
    raw: Path, once: tuple[Path, Context, Data, list[DataReport]]
) -> None:
    folder, _, _, reports = once
    page, text = reports[1].page, reports[1].page.with_name("data.json").read_bytes()
    html, stamp = page.read_bytes(), reports[0].page.stat().st_mtime_ns
    page.unlink()
    damaged = reports[2].page.with_name("data.json")
    whole = damaged.read_bytes()
    damaged.write_text("{")
    ctx, _, again = built(folder, raw)
    assert status(ctx) == ["skipped"] * 4
    assert ctx._spark is None  # it was never started
    assert page.read_bytes() == html
    assert page.with_name("data.json").read_bytes() == text
    assert damaged.read_bytes() == whole
    assert reports[0].page.stat().st_mtime_ns == stamp  # what was there is left alone
    assert [r.content for r in again] == [r.content for r in reports]


def test_from_chooses_what_is_shown(raw: Path, once: tuple[Path, Context, Data, list[DataReport]]) -> None:
    ctx, _, reports = built(once[0], raw, first=DAYS[2])
    assert [r.content["arrival"] for r in reports] == DAYS[2:]
    assert status(ctx) == ["skipped", "skipped"]


class ReachedError(Exception):
    """The stage after the report was reached."""


def test_a_failure_does_not_stop_the_run_but_is_told(
    raw: Path,
    once: tuple[Path, Context, Data, list[DataReport]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of ink")

    def go_on(*_: Any) -> None:
        raise ReachedError

    monkeypatch.setattr(data_report, "_publish", fail)
    monkeypatch.setattr(data_stages, "build_vocabularies", go_on)
    with open_at(once[0], raw) as ctx:
        with pytest.raises(ReachedError):
            data_stages.run_data(ctx)
        found = data_report.outcome(ctx)
    assert found == {"page": None, "warnings": [], "error": "RuntimeError: out of ink"}
    printed = capsys.readouterr().err
    assert "RuntimeError: out of ink" in printed
    assert "Traceback" in printed
    with open_at(once[0], raw, only=UNIT) as ctx, pytest.raises(RuntimeError, match="out of ink"):
        data_report.build(ctx, events(ctx))


def test_one_stage_makes_no_report(
    raw: Path, once: tuple[Path, Context, Data, list[DataReport]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any) -> None:
        raise AssertionError("the data report was asked for")

    monkeypatch.setattr(data_report, "build", called)
    with open_at(once[0], raw, only="events") as ctx:
        data_stages.run_data(ctx, until="events")
    assert data_report.outcome(ctx) is None


def test_the_report_ingests_nothing(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="logs2rec stage events"):
        built(tmp_path, raw, only=UNIT)


def test_the_table_a_person_reads(
    once: tuple[Path, Context, Data, list[DataReport]], capsys: pytest.CaptureFixture[str]
) -> None:
    data_report.show(once[3])
    lines = capsys.readouterr().out.splitlines()
    for report in once[3]:
        c = report.content
        line = next(text for text in lines if c["arrival"] in text and "Page" not in text)
        assert f"{c['rows']:,}" in line.split()
        assert str(c["new_users"]) in line.split()
    assert lines[-1].endswith("data.html")
    data_report.show([])
    assert "no arrival" in capsys.readouterr().out
