"""A study of ranking models on the samples of a workspace: the plan's own rules, real trainings, and the curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from infra.cluster import RaySettings, cluster
from infra.errors import ConfigError
from pipelines import planted_samples, study_plan, study_plots
from pipelines.study_plan import Row, Table
from tests.pipelines.commands import RECIPES
from tests.pipelines.test_planted_samples import workspace
from tests.pipelines.test_study import carried_out

SMALL = {
    "config.base.embedding_width": 2, "config.base.hidden": [4], "config.hidden": 3, "training.epochs": 2,
    "training.batch_size": 16, "training.workers": 1, "evaluation.missingness.rates": [0.3, 0.5],
}  # fmt: skip
PLAIN = {name.replace("base.", ""): value for name, value in SMALL.items() if name != "config.hidden"} | {
    "config.hidden": [4]
}
ROWS = [
    {"name": "robust", "model": "asymdiffrec", "set": SMALL, "compare_to": "base"},
    {"name": "base", "model": "dnn", "set": PLAIN},
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=1, object_store_mb=100)):
        yield


def planned(folder: Path, samples: Path, rows: list[dict[str, Any]] | None = None, **table: Any) -> Path:
    """A plan file with one table."""
    plan = {
        "kind": "impressions", "data": {"small": str(samples)}, "seeds": [3, 4],
        "tables": [{"title": "Ranked", "data": "small", "rows": rows or ROWS, **table}],
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


def resolved(plan: Path, samples: Path) -> list[Table]:
    read = study_plan.read(plan)
    return study_plan.resolve(plan, read, dict.fromkeys(read.data, planted_samples.read(samples)))


@pytest.mark.usefixtures("ray_cluster")
def test_models_are_trained_and_compared_user_by_user(tmp_path: Path, samples: Path) -> None:
    columns = ["as_planted/auc", "as_planted/log_loss", "at_random_50/uauc", "at_random/auc_area", "valid/log_loss"]
    tested = ["as_planted/auc", "as_planted/uauc", "at_random/auc_area"]
    plan, out = planned(tmp_path, samples, columns=columns, compare=tested), tmp_path / "out"
    first = carried_out(plan, out)
    assert first.measured == [f"small: {row}, seed {seed}" for seed in (3, 4) for row in ("robust", "base")]
    table = first.study["tables"][0]
    assert "60 train, 60 valid, 60 test samples, 12 users tested" in table["about"]

    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*/cell.json"))]
    mine = [cell for cell in cells if cell["model"] == "asymdiffrec"]
    assert sorted(cell["parts"]["planting"]["seed"] for cell in mine) == [3, 4]
    robust, base = table["rows"]
    for column in ("as_planted/auc", "at_random/auc_area"):
        name, metric = column.split("/")
        assert robust["figures"][column]["mean"] == pytest.approx(
            100 * np.mean([cell["figures"][name][metric] for cell in mine])
        )
    assert robust["figures"]["as_planted/log_loss"]["mean"] < 10, "a loss is shown as it is"
    assert robust["figures"]["valid/log_loss"]["mean"] == pytest.approx(
        np.mean([cell["figures"]["valid"]["log_loss"] for cell in mine])
    )

    auc, uauc, area = table["contrasts"]
    assert [c["column"] for c in (auc, uauc, area)] == tested
    found = auc["comparison"]
    difference = robust["figures"]["as_planted/auc"]["mean"] - base["figures"]["as_planted/auc"]["mean"]
    assert found["difference"]["estimate"] == pytest.approx(difference), "by users, and the same as over all samples"
    assert found["relative"]["estimate"] == pytest.approx(difference / base["figures"]["as_planted/auc"]["mean"])
    users = pq.read_table(next(iter((out / "cells").iterdir())) / "users.parquet")
    assert users["as_planted/uauc"].null_count == 12 - uauc["comparison"]["users"], "users with one class have none"

    drawn = {plot["title"]: plot for plot in first.study["plots"]}
    curve = drawn["Ranked: AUC, at random"]
    assert (curve["epochs"], [name for name, _ in curve["lines"]]) == ([0, 30, 50], ["robust", "base"])
    assert curve["lines"][0][1][0] == pytest.approx(robust["figures"]["as_planted/auc"]["mean"])
    assert not any("by day" in title for title in drawn), "three days are too few"
    assert carried_out(plan, out).measured == []


class TestPlan:
    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (
                {"columns": ["all_items/hr_at_20"]},
                r"tables\.0\.columns: 'all_items/hr_at_20' is not measured of impres",
            ),
            ({"compare": ["as_planted/log_loss"]}, r"tables\.0\.compare: 'as_planted/log_loss' is not measured"),
            ({"columns": ["at_random_40/auc"]}, r"rows\.0: at_random_40/auc is not measured on these samples; .*_50"),
            ({"columns": ["by_day_50/auc"]}, r"by_day_50/auc is not measured on these samples"),
            ({"columns": ["without_colour/auc"]}, r"without_colour/auc is not measured.*without_price"),
            ({"columns": ["as_planted/hr_at_3"]}, r"rows\.0: evaluation\.ks has to hold 3"),
        ],
    )
    def test_a_column_that_is_not_measured(
        self, tmp_path: Path, samples: Path, table: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            resolved(planned(tmp_path, samples, **table), samples)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"model": "sasrec"}, r"ranked\.yaml has no section 'sasrec'; it has dnn"),
            ({"set": {"planting.seed": 1}}, r"rows\.0\.set: planting\.seed comes from the plan's seeds"),
            ({"set": {"planting.rate": 1}}, r"rows\.0: planting\.rate"),
            ({"inference": {"x": {"planting.rate": 0.1}}}, r"planting\.rate decides the training"),
        ],
    )
    def test_a_wrong_row(self, tmp_path: Path, samples: Path, row: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            resolved(planned(tmp_path, samples, [{"name": "mine", "model": "dnn", **row}]), samples)

    def test_categories_are_of_items(self, tmp_path: Path, samples: Path) -> None:
        plan = planned(tmp_path, samples)
        plan.write_text(plan.read_text() + f"categories: {{small: {samples}}}\n")
        with pytest.raises(ConfigError, match="categories: are of lists of items"):
            study_plan.read(plan)

    def test_without_scenarios_nothing_is_drawn(self, tmp_path: Path, samples: Path) -> None:
        rows = [{"name": "bare", "model": "dnn", "set": {"evaluation.missingness": None}}]
        tables = resolved(planned(tmp_path, samples, rows), samples)
        assert tables[0].rows[0].cells[0].seed == 3
        assert study_plots.plots(tables, lambda row: []) == []

    def test_the_shipped_plan(self, samples: Path) -> None:
        tables = resolved(RECIPES / "asymdiffrec.yaml", samples)
        configs = {row.name: row.cells[0].trained["config"] for row in tables[0].rows}
        assert "drop_power" not in configs["feature dropout, T of N"], "cells from before the setting keep their names"
        assert configs["feature dropout, small T"]["drop_power"] == 2
        assert configs["AsymDiffRec"]["drop_power"] == 2
        keys = [(table.data, row.cells[0].key) for table in tables for row in table.rows]
        assert len(keys) - len(set(keys)) == 2, "the shipped settings are in two tables, with and without 30 % planted"


class TestCurves:
    def test_only_rows_with_every_rate(self, tmp_path: Path, samples: Path) -> None:
        def measured(row: Row) -> list[dict[str, Any]]:
            values = {"as_planted": 0.8, "at_random_30": 0.7, "at_random_50": 0.6}
            if row.name == "base":
                del values["at_random_30"]
            return [{"figures": {name: {"auc": value + seed} for name, value in values.items()}} for seed in (0, 0.1)]

        (plot,) = study_plots.plots(resolved(planned(tmp_path, samples), samples), measured)
        assert plot.title == "Ranked: AUC, at random"
        assert plot.frame is not None
        ((name, values),) = plot.lines
        assert (name, values) == ("robust", pytest.approx([85, 75, 65]))
