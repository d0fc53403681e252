"""pipelines/backfill.py: day by day what `run --to` makes, skipped where published, going on after a failure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from featurize import samples
from featurize.simulate import simulate
from infra.errors import DataRefused, UsageError
from pipelines import backfill as module
from pipelines.backfill import backfill
from pipelines.context import Context, Step
from pipelines.data import Data
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from tests.pipelines.commands import small_recipe

DAYS = [f"2026-01-0{d}" for d in range(1, 6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    simulate(tmp_path / "raw", users=40, items=25, days=5, seed=9)
    return tmp_path


def opened(folder: Path, workspace: str = "w", **options: Any) -> Context:
    recipe = small_recipe(folder, workspace=str(folder / workspace), retrieval=None)
    return Context(*open_recipe(recipe), Progress(1), **options)


def fill(
    folder: Path, first: str, last: str, stage: str | None, workspace: str = "w", **options: Any
) -> list[tuple[str, str, str]]:
    """(day, unit, status) in the order told, side files and the data report apart."""
    told: list[tuple[str, str, str]] = []

    def tell(day: str, steps: Sequence[Step]) -> None:
        assert {s.date for s in steps} <= {day}
        told.extend((day, s.unit, s.status) for s in steps if s.unit not in ("events:sides", "data_report"))

    with opened(folder, workspace, **options) as ctx:
        backfill(ctx, first, last, stage, tell)
    return told


def samples_of(folder: Path, workspace: str, day: str) -> Counter[str]:
    with opened(folder, workspace) as ctx:
        row = next(r for r in reversed(ctx.ledger.rows()) if (r.unit, r.date) == ("samples", day))
        return Counter(map(repr, ctx.lake.read("samples", row.version("samples"), {"as_of": day}).to_pylist()))


@pytest.mark.slow
def test_days_one_after_the_other_as_run_makes_them(spark: SparkSession, folder: Path) -> None:
    told = fill(folder, DAYS[2], DAYS[4], "samples")
    assert {(d, s) for d, u, s in told if u == "samples"} == {(d, "published") for d in DAYS[2:]}
    assert [d for d, _, _ in told] == sorted(d for d, _, _ in told)
    assert {u.partition(":")[0] for _, u, _ in told}.isdisjoint({"sequences", "train"})
    with opened(folder, "daily", last=DAYS[3]) as ctx:
        run_data(ctx)
    assert samples_of(folder, "w", DAYS[3]) == samples_of(folder, "daily", DAYS[3])
    again = fill(folder, DAYS[2], DAYS[4], "samples")
    assert {s for _, _, s in again} == {"skipped"}
    assert {d for d, _, _ in again} == set(DAYS[2:])


@pytest.mark.slow
def test_it_goes_on_where_it_failed(spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples.build

    def dying(*arguments: Any) -> Any:
        if DAYS[3] in arguments:
            raise DataRefused("the disk is full")
        return whole(*arguments)

    monkeypatch.setattr(samples, "build", dying)
    with pytest.raises(DataRefused, match=f"backfill of {DAYS[3]}: the disk is full"):
        fill(folder, DAYS[2], DAYS[4], "samples")
    monkeypatch.undo()
    told = [(d, s) for d, u, s in fill(folder, DAYS[2], DAYS[4], "samples") if u == "samples"]
    assert told == [(DAYS[2], "skipped"), (DAYS[3], "published"), (DAYS[4], "published")]


@pytest.mark.slow
def test_rebuild_makes_the_days_again_and_nothing_before_them(spark: SparkSession, folder: Path) -> None:
    fill(folder, DAYS[2], DAYS[4], "samples")
    before = {d: samples_of(folder, "w", d) for d in DAYS[2:]}
    only = fill(folder, DAYS[3], DAYS[4], "samples", rebuild=True)
    assert [(d, u, s) for d, u, s in only if s == "published"] == [
        (d, "samples", "published") for d in (DAYS[3], DAYS[4])
    ]
    everything = fill(folder, DAYS[3], DAYS[4], "events", rebuild=True)
    assert everything == [(d, "events", "published") for d in (DAYS[3], DAYS[4])]
    with opened(folder) as ctx:
        runs = Counter((r.unit, r.date) for r in ctx.ledger.rows())
    assert [runs["events", d] for d in DAYS] == [1, 1, 1, 2, 2]
    told = fill(folder, DAYS[2], DAYS[4], "samples")
    assert [(d, s) for d, u, s in told if u == "samples"] == [
        (DAYS[2], "skipped"),
        (DAYS[3], "published"),  # on top of the events that were made again
        (DAYS[4], "published"),
    ]
    assert {d: samples_of(folder, "w", d) for d in DAYS[2:]} == before


def test_a_model_stage_trains_after_all_the_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str | None, str | None]] = []

    def data(ctx: Context, until: str | None = None) -> Data:
        calls.append(("data", ctx.last, until))
        return Data({}, (str(ctx.last),), str(ctx.last))

    monkeypatch.setattr(module, "run_data", data)
    monkeypatch.setattr(module, "run_models", lambda ctx, found: calls.append(("models", found.day, ctx.only)))
    fill(folder, DAYS[3], DAYS[4], "evaluate")
    assert calls == [
        ("data", DAYS[3], None),
        ("data", DAYS[4], None),
        *(("models", day, stage) for day in DAYS[3:] for stage in ("train", "evaluate")),
    ]
    calls.clear()
    fill(folder, DAYS[4], DAYS[4], None)
    assert calls == [("data", DAYS[4], None)]


@pytest.mark.parametrize(
    ("first", "last", "stage", "rebuild", "kind", "words"),
    [
        ("2030-01-01", "2030-01-09", None, False, DataRefused, "no arrival between 2030-01-01 and 2030-01-09"),
        (DAYS[0], DAYS[1], "train", True, UsageError, "--rebuild is for data stages"),
    ],
)
def test_refusals(
    folder: Path, first: str, last: str, stage: str | None, rebuild: bool, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        fill(folder, first, last, stage, rebuild=rebuild)


def test_a_log_without_days(folder: Path) -> None:
    with opened(folder) as ctx:
        source = ctx.contract.source.model_copy(update={"path": "events"})
        ctx.contract = ctx.contract.model_copy(update={"source": source})
        with pytest.raises(UsageError, match=r"backfill: the contract 'simulator' has no \{date\}"):
            backfill(ctx, DAYS[0], DAYS[1], None, lambda *_: None)
