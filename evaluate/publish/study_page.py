"""The page of a study: its tables, what was compared, and in words what a trained model's own inference adds.

In the daily report's style: one self-contained file, nothing fetched, figures unrounded in `<data value=...>`. What
was not measured yet is said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from evaluate.decision.repeated import Comparison, Spread
from evaluate.decision.statistics import Interval
from evaluate.publish.numerals import number
from evaluate.publish.plots import Trend, trend
from evaluate.publish.report import Intervals, Section, folded, interval_plots, page, table_section

ALPHA = 0.05
"""An adjusted p-value below it is called a difference."""

_SETS = {
    "all_items": "all items",
    "history_removed": "history removed",
    "valid": "validation",
    "lists": "of lists",
    "table": "item table",
}
_METRICS = {"auc": "AUC", "uauc": "UAUC", "auc_area": "area under AUC", "uauc_area": "area under UAUC"}


@dataclass(frozen=True)
class StudyRow:
    """One model: figures by "set/metric" in their columns' units, over the seeds that were run."""

    name: str
    seeds: int
    figures: Mapping[str, Spread | None]
    train_seconds: Spread | None
    users_per_second: Spread | None
    peak_memory_gib: float | None
    kl_gaussian: Spread | None
    """Of the item table, nats (train.embedding_health); None of a model without one."""


@dataclass(frozen=True)
class Contrast:
    """A row against another by one column's figure, in its unit; None where one of them was not run."""

    row: str
    against: str
    column: str
    same_model: bool
    """The two are one trained model, evaluated in two ways."""
    comparison: Comparison | None
    adjusted_p: float | None
    """Holm's, over all comparisons of the table; None where the test is not defined."""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.comparison is None:
            return "not run yet"
        if self.adjusted_p is None:
            return "not defined"
        if self.adjusted_p >= ALPHA:
            return "no difference shown"
        return "higher" if self.comparison.difference.estimate > 0 else "lower"


@dataclass(frozen=True)
class StudyTable:
    """Models on one split, and their comparisons."""

    title: str
    about: str
    seeds: int
    """Of the plan."""
    columns: Sequence[str]
    """"set/metric", as in the rows' figures."""
    rows: Sequence[StudyRow]
    contrasts: Sequence[Contrast]


@dataclass(frozen=True)
class Study:
    """Everything on the page."""

    title: str
    date: str
    protocol: Sequence[str]
    tables: Sequence[StudyTable]
    plan: Any
    plots: Sequence[Trend] = ()


def render(study: Study) -> str:
    """The page as text."""
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in study.protocol)
    parts = [f'<section aria-labelledby="protocol"><h2 id="protocol">Protocol</h2>\n<ul>{lines}</ul></section>']
    for place, table in enumerate(study.tables):
        parts.append(table_section(_results(table), f"results-{place}"))
        if (differences := _differences(table)).rows:
            parts.append(interval_plots(differences, f"differences-{place}"))
        if table.contrasts:
            parts.append(table_section(_tests(table), f"tests-{place}"))
            parts += _findings(table, f"findings-{place}")
    parts += [trend(plots, f"plots-{place}") for place, plots in enumerate(study.plots)]
    return page(study.title, "Written", study.date, [*parts, folded("Plan", study.plan)])


def _results(table: StudyTable) -> Section:
    heads = ["model", "seeds", *map(column_name, table.columns), "training, s", "scored, users/s", "memory, GiB"]
    # Ranking models have no table that every user is compared with.
    with_table = any(row.kl_gaussian is not None for row in table.rows)
    if with_table:
        heads.append("KL of item table")
    rows = []
    for row in table.rows:
        memory = None if row.peak_memory_gib is None else Spread(row.peak_memory_gib, None)
        cost = [row.train_seconds, row.users_per_second, memory, *([row.kl_gaussian] if with_table else [])]
        rows.append([row.name, f"{row.seeds} of {table.seeds}", *(row.figures.get(c) for c in table.columns), *cost])
    about = (
        f"{table.about} In percent but for figures of lists, losses and calibration; mean ± standard deviation over "
        "seeds. Validation is that by which weights were selected. Training seconds and memory are "
        "those of the trained model, whichever way it is evaluated: the largest sum over the training workers, or for "
        "a counted model that of the study's own process."
    )
    if with_table:
        about += " KL of item table: nats between its rows and a round Gaussian; it grows as a table collapses."
    return Section(table.title, about, heads, rows)


def _differences(table: StudyTable) -> Intervals:
    rows = [(_label(c), c.comparison.difference) for c in table.contrasts if c.comparison is not None]
    about = (
        "The first's figure minus the second's, in percentage points (of lists, losses and calibration as it is), with "
        "its 95 % interval (paired bootstrap over users, each user's value averaged over the seeds that both have). "
        "The users vary, the trained models do not: the spread over seeds stands above."
    )
    return Intervals(f"{table.title}: differences", about, rows, 0.0)


def _tests(table: StudyTable) -> Section:
    rows = []
    for c in table.contrasts:
        found = c.comparison
        figures = [found.seeds, found.users, *_percents(found.relative), found.p] if found else [None] * 6
        rows.append([_label(c), *figures, c.adjusted_p, c.verdict])
    about = (
        "Of these differences: two-sided sign-flip permutation test over users, and Holm's "
        f"correction over the {sum(c.adjusted_p is not None for c in table.contrasts)} tests of this table. "
        f"A corrected p below {ALPHA} is called a difference. Relative: in percent of the second's figure."
    )
    heads = ["comparison", "seeds", "users", "relative, %", "from", "to", "p", "p, corrected", "verdict"]
    return Section(f"{table.title}: tests", about, heads, rows)


def _percents(interval: Interval) -> list[float | None]:
    values = (interval.estimate, interval.low, interval.high)
    return [100 * value if math.isfinite(value) else None for value in values]


def _findings(table: StudyTable, anchor: str) -> list[str]:
    """A sentence for each pair of evaluations of one trained model: what the process adds, even if that is nothing."""
    same = [c for c in table.contrasts if c.same_model]
    if not same:
        return []
    title = escape(f"{table.title}: the same trained model, evaluated otherwise")
    lines = "".join(f"<li>{escape(_sentence(c))}</li>" for c in same)
    return [f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{title}</h2>\n<ul>{lines}</ul></section>']


def _sentence(contrast: Contrast) -> str:
    found = contrast.comparison
    if found is None:
        return f"{_label(contrast)}: not run yet."
    if contrast.adjusted_p is None:
        return f"{_label(contrast)}: not defined, no user is left."
    difference, points = found.difference, "" if unit(contrast.column) == 1 else " points"
    return (
        f"{_label(contrast)}: {_signed(difference.estimate)}{points} (95 % interval "
        f"{_signed(difference.low)} to {_signed(difference.high)}, corrected p {number(contrast.adjusted_p)}): "
        f"{contrast.verdict}."
    )


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _label(contrast: Contrast) -> str:
    return f"{contrast.row} against {contrast.against}, {column_name(contrast.column)}"


def unit(column: str) -> float:
    """What figures of a column are shown times: percent, but figures of lists, losses and calibration as they are.

    >>> unit("all_items/hr_at_20"), unit("lists/gini")
    (100.0, 1.0)
    """
    name, _, metric = column.partition("/")
    return 1.0 if name == "lists" or metric == "log_loss" or metric.startswith("calibration") else 100.0


def column_name(name: str) -> str:
    """ "set/metric" as a heading.

    >>> column_name("history_removed/ndcg_at_20")
    'NDCG@20, history removed'
    >>> column_name("at_random_50/auc"), column_name("as_planted/log_loss")
    ('AUC, at random, 50 % removed', 'log loss, as planted')
    """
    of, _, metric = name.partition("/")
    return f"{_metric(metric)}, {_SETS.get(of) or _scenario(of)}"


def _metric(name: str) -> str:
    measure, at, cutoff = name.partition("_at_")
    return f"{measure.upper()}@{cutoff}" if at else _METRICS.get(name, name.replace("_", " "))


def _scenario(name: str) -> str:
    """A set that is named for what is missing in it."""
    pattern, _, percent = name.rpartition("_")
    words = pattern if percent.isdigit() else name
    return words.replace("_", " ") + (f", {percent} % removed" if percent.isdigit() else "")
