"""The stage `histories`: its row in the ledger is what the next day builds on, and sequences name its version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from featurize.simulate import simulate
from infra.errors import UsageError
from pipelines.context import Context
from pipelines.data import Data
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from tests.pipelines.commands import small_recipe

DAYS = [f"2026-01-0{d}" for d in range(1, 7)]


def data_run(folder: Path, workspace: str, until: str | None = None, **options: Any) -> tuple[Context, Data]:
    recipe = small_recipe(folder, workspace=str(folder / workspace))
    with Context(*open_recipe(recipe), Progress(1), **options) as ctx:
        return ctx, run_data(ctx, until=until)


def step(ctx: Context, unit: str) -> Any:
    return next(s for s in ctx.steps if s.unit == unit)


def sequences_of(ctx: Context, data: Data, day: str) -> list[str]:
    rows = ctx.lake.read("sequences", data.versions["sequences"], {"as_of": day}).to_pylist()
    return [repr(r) for r in rows]


@pytest.mark.slow
def test_days_build_on_each_other_and_a_rebuild_agrees(spark: SparkSession, tmp_path: Path) -> None:
    simulate(tmp_path / "raw", users=40, items=25, days=6, seed=9)
    first, _ = data_run(tmp_path, "w", until="sequences", last=DAYS[4])
    assert step(first, "histories").report["full"]
    with pytest.raises(UsageError, match="logs2rec stage"):
        data_run(tmp_path, "w", until="sequences", last=DAYS[5], only="sequences")
    day, data = data_run(tmp_path, "w", until="sequences", last=DAYS[5])
    made = step(day, "histories")
    assert not made.report["full"]
    assert DAYS[5] in made.report["built"]
    rows = {(r.unit, r.date): r for r in day.ledger.rows()}
    assert rows["sequences", DAYS[5]].inputs["histories"] == rows["histories", DAYS[5]].outputs["histories"]
    assert data.versions["histories"] == made.outputs["histories"]

    again, _ = data_run(tmp_path, "w", until="sequences", last=DAYS[5])
    assert {s.status for s in again.steps} == {"skipped"}
    for stage in ("histories", "sequences"):
        rebuilt, remade = data_run(tmp_path, "w", until=stage, last=DAYS[5], only=stage, rebuild=True)
    assert step(rebuilt, "sequences").status == "published"
    assert step(rebuilt, "histories").report["full"]
    assert sequences_of(rebuilt, remade, DAYS[5]) == sequences_of(day, data, DAYS[5]), "in the same order, too"

    earlier, _ = data_run(tmp_path, "w", until="sequences", last=DAYS[3])
    alone, older = data_run(tmp_path, "alone", until="sequences", last=DAYS[3])
    assert sequences_of(earlier, data_run(tmp_path, "w", until="sequences", last=DAYS[3])[1], DAYS[3]) == sequences_of(
        alone, older, DAYS[3]
    )
