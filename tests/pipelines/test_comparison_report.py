"""What the ledger says of a comparison becomes sections of the day's page."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from evaluate.decision.statistics import Interval
from pipelines import comparison_report

SLICE = {"slice": "history: 1 to 4", "users": 60, "candidate": 0.1, "champion": 0.2, "relative": [-0.7, -0.5, None],
         "p": 0.01}  # fmt: skip
COMPARED = {
    "champion": "3",
    "champion_metrics": {"history_removed/ndcg_at_20": 0.2, "gini": 0.9},
    "champion_interval": [0.1, 0.2, 0.3],
    "relative": [-0.1, 0.05, 0.2],
    "slices": [SLICE, {**SLICE, "slice": "history: 0 (cold)", "relative": [None, None, None], "p": None}],
    "common_catalogue": {
        "items": 40, "candidate": {"common_catalogue/mrr": 0.3}, "champion": {"common_catalogue/mrr": 0.4},
    },
}  # fmt: skip
MODEL = {
    "name": "shop.retrieval", "role": "retrieval", "version": "5", "candidate": "adrec",
    "metrics": {"adrec": {"gini": 0.8, "history_removed/ndcg_at_20": 0.25, "quality/covered": 1.0}},
}  # fmt: skip
ROLE: Any = SimpleNamespace(
    name="retrieval", gate=SimpleNamespace(metric="history_removed/ndcg_at_20", margin=0.02, min_slice_users=50)
)


def context(compared: dict[str, Any]) -> Any:
    return SimpleNamespace(steps=[SimpleNamespace(unit="promote:retrieval", report={"compared": compared})])


def test_champion_and_candidate_side_by_side() -> None:
    figures, common = comparison_report.beside(context(COMPARED), MODEL)
    assert figures.columns == ["metric", "version 5 (candidate)", "version 3 (champion)"]
    assert figures.rows == [["history_removed/ndcg_at_20", 0.25, 0.2], ["gini", 0.8, 0.9]]
    assert common.rows == [["common_catalogue/mrr", 0.3, 0.4]]
    assert "40 items" in common.explanation


def test_slices_and_their_differences() -> None:
    table = comparison_report.slices(context(COMPARED), MODEL, ROLE, "nowhere")
    assert table.rows[0] == ["history: 1 to 4", 60, 0.1, 0.2, -0.7, -0.5, None, 0.01]
    (plot,) = comparison_report.differences(context(COMPARED), MODEL, ROLE)
    assert plot.reference == -0.02
    assert plot.rows[0] == ("all users", Interval(-0.1, 0.05, 0.2))
    assert str(plot.rows[2][1]) == str(comparison_report._interval([None, None, None]))


def test_the_champions_mean() -> None:
    assert comparison_report.champion_interval(context(COMPARED), ROLE) == [
        ("champion, version 3", Interval(0.1, 0.2, 0.3))
    ]


@pytest.mark.parametrize("of_the_day", [{}, {"relative": None}])
def test_without_a_champion_there_is_nothing_beside(of_the_day: dict[str, Any]) -> None:
    ctx = context(of_the_day)
    assert comparison_report.beside(ctx, MODEL) == []
    assert comparison_report.differences(ctx, MODEL, ROLE) == []
    assert comparison_report.champion_interval(ctx, ROLE) == []
