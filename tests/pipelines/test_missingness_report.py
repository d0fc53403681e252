"""What the daily report shows of figures with fields removed."""

from __future__ import annotations

from evaluate.publish.plots import trend
from evaluate.settings import MissingnessSettings
from pipelines.missingness_report import curves, in_table, without_fields

ASKED = MissingnessSettings(rates=(0.25, 0.5), patterns=("by_day",))
FIGURES = {
    "auc": 0.8, "uauc": 0.7, "by_day_25/auc": 0.75, "by_day_50/auc": 0.6, "by_day_25/uauc": 0.65, "by_day_50/uauc": 0.5,
    "by_day/auc_area": 0.7, "without_price/auc": 0.78,
}  # fmt: skip
MODEL = {"name": "shop.ranking", "metrics": {"asymdiffrec": FIGURES, "dnn": {**FIGURES, "auc": 0.82, "uauc": None}}}


def test_a_curve_of_each_model_from_the_log_as_it_is() -> None:
    (plot,) = curves(MODEL, ASKED)
    assert plot.title == "Missing fields: shop.ranking, by_day"
    assert plot.epochs == [0, 25, 50]
    assert plot.lines == [
        ("AUC, asymdiffrec", [0.8, 0.75, 0.6]),
        ("AUC, dnn", [0.82, 0.75, 0.6]),
        ("UAUC, asymdiffrec", [0.7, 0.65, 0.5]),  # the other has none: no user with both labels
    ]
    assert "at percent 50" in trend(plot, "x")


def test_the_table_without_each_field_begins_with_the_log_as_it_is() -> None:
    section = without_fields(MODEL, ["price"])
    assert section.columns == ["field", "asymdiffrec", "dnn"]
    assert section.rows == [["(as logged)", 0.8, 0.82], ["price", 0.78, 0.78]]


def test_the_main_table_has_the_areas_and_no_scenario() -> None:
    assert [name for name in FIGURES if in_table(name)] == ["auc", "uauc", "by_day/auc_area"]
