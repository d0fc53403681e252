"""What the day's report shows of ranking models with fields removed (evaluate/missingness.py): curves, and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evaluate.missingness import scenario
from evaluate.publish.plots import Trend
from evaluate.publish.report import Section
from evaluate.settings import MissingnessSettings, Pattern

_ABOUT: dict[Pattern, str] = {
    "at_random": "each cell by itself",
    "by_activity": "the fewer impressions a user has, the more",
    "by_day": "fields for whole days, each field on its own",
}
_NAMES = {"auc": "AUC", "uauc": "UAUC"}


def in_table(metric: str) -> bool:
    """Whether a figure belongs to a model's main table: not one of a scenario's, but an area."""
    return "/" not in metric or metric.endswith("_area")


def curves(model: Mapping[str, Any], asked: MissingnessSettings) -> list[Trend]:
    """Of each pattern: AUC and UAUC of every model from the log as it is to the highest rate."""
    found = []
    for pattern in asked.patterns:
        lines: list[tuple[str, list[float]]] = []
        for name, words in _NAMES.items():
            for label, metrics in model["metrics"].items():
                names = [name, *(f"{scenario(pattern, rate)}/{name}" for rate in asked.rates)]
                values = [metrics.get(name) for name in names]
                # Absent: too few days for by_day; none or NaN: no user has both classes.
                if all(value is not None and math.isfinite(value) for value in values):
                    lines.append((f"{words}, {label}", values))
        if not lines:
            continue
        found.append(
            Trend(
                f"Missing fields: {model['name']}, {pattern}",
                f"Share of the cells (fields of samples) that is removed, in percent, beside what the log misses: "
                f"{_ABOUT[pattern]}.",
                [0, *(round(100 * rate) for rate in asked.rates)],
                lines,
                axis="percent",
            )
        )
    return found


def without_fields(model: Mapping[str, Any], fields: list[str]) -> Section:
    """AUC of every model without each field."""
    labels = list(model["metrics"])
    rows: list[list[Any]] = [["(as logged)", *(model["metrics"][label]["auc"] for label in labels)]]
    rows += [[name, *(model["metrics"][label][f"without_{name}/auc"] for label in labels)] for name in fields]
    return Section(f"Without a field: {model['name']}", "AUC, observed labels.", ["field", *labels], rows)
