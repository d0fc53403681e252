"""What the study's page draws, from plans and made-up cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluate.publish.plots import Trend
from pipelines import study_plan, study_plots
from pipelines.study_plan import Row, Table
from tests.evaluate.publish.test_report import Page
from tests.pipelines.test_published_split import written
from tests.pipelines.test_replicate import drawn
from tests.pipelines.test_study import NO_SPLIT, carried_out, planned

STOPS = {f"after {n}": {"evaluation.stop_after": n} for n in (31, 8)}
ROWS = [
    {"name": "dimerec", "model": "dimerec", "inference": {**STOPS, "one pass": {"evaluation.steps": 0}}},
    {"name": "sasrec", "model": "sasrec"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("split"), **drawn())


def resolved(folder: Path, rows: list[dict[str, Any]], **table: Any) -> list[Table]:
    path = planned(folder, folder, tables=[{"title": "Steps", "data": "small", "rows": rows, **table}])
    return study_plan.resolve(path, study_plan.read(path), {"small": NO_SPLIT})


class TestSpheres:
    def test_rows_on_a_sphere_show_their_walks(self, tmp_path: Path, data: Path) -> None:
        wide = {"name": "as printed", "model": "dimerec-literal", "set": {"config.width": 512}}
        rows = [{"name": "dimerec", "model": "dimerec"}, wide]
        tables = [{"title": "Spheres", "data": "small", "rows": rows}]
        found = carried_out(planned(tmp_path, data, tables=tables), tmp_path / "out", page_only=True)
        plain, ours, printed = found.study["plots"]
        lines = dict(plain["lines"])
        assert min(lines["as printed"]) < -0.9
        assert lines["ours"] == sorted(lines["ours"], reverse=True)
        assert dict(ours["lines"])["as it is trained"][0] < 0.3
        assert [name for name, _ in printed["lines"]] == ["as it is trained"]
        assert "D = 512" in printed["title"]
        assert "Corruption on the sphere" in Page((tmp_path / "out" / "study.html").read_text()).text


class TestAlongTheSteps:
    def drawn(self, folder: Path, figures: dict[str, list[float]]) -> list[Trend]:
        def measured(row: Row) -> list[dict[str, Any]]:
            values = enumerate(figures.get(row.name, []))
            return [{"seed": s, "figures": {"all_items": {"hr_at_50": v}} if v >= 0 else {}} for s, v in values]

        tables = resolved(folder, ROWS, columns=["all_items/hr_at_50"], compare=["all_items/hr_at_50"])
        return [plot for plot in study_plots.plots(tables, measured) if "reverse steps" in plot.title]

    def test_the_mean_of_the_seeds_in_percent_in_the_order_of_the_steps(self, tmp_path: Path) -> None:
        figures = {"dimerec": [0.5, 0.4, 0.9], "after 8": [0.1, 0.3], "after 31": [0.2, 0.3], "one pass": [0.9],
                   "sasrec": [0.4]}  # fmt: skip
        (plot,) = self.drawn(tmp_path, figures)
        assert plot.title == "Along the reverse steps: dimerec"
        assert (plot.axis, plot.epochs) == ("step", [8, 31, 32])
        ((name, values),) = plot.lines
        assert name == "all_items/hr_at_50"
        assert values == pytest.approx([20, 25, 45])  # of the two seeds that all have

    def test_nothing_of_rows_that_were_not_measured(self, tmp_path: Path) -> None:
        assert self.drawn(tmp_path, {"dimerec": [0.5], "one pass": [0.9]}) == []
        (plot,) = self.drawn(tmp_path, {"dimerec": [0.5], "after 8": [0.9]})
        assert plot.epochs == [8, 32]
        assert self.drawn(tmp_path, {"dimerec": [0.5], "after 8": [-1]}) == [], "a cell without the figure"


class TestLosses:
    def test_of_the_last_stage(self) -> None:
        pretrained = {"epoch": 1, "loss": 9.0, "loss_ce": 9.0}
        last = [{"epoch": e, "loss": 3 / e, "loss_gem": 1 / e, "loss_ssm": 2 / e} for e in (2, 4)]
        past = [pretrained, *last]
        plot = study_plots._terms("row", {"figures": {"losses": past}, "seed": 3})
        assert plot is not None
        assert plot.title == "Losses in training: row, seed 3"
        assert (plot.epochs, plot.lines) == ([2, 4], [("gem", [0.5, 0.25]), ("ssm", [1.0, 0.5])])
        assert study_plots._terms("counted", {"figures": {"losses": []}, "seed": 3}) is None
        assert study_plots._terms("older", {"figures": {}, "seed": 3}) is None
