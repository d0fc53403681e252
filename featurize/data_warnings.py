"""What a person should look at in a day's data, in plain sentences: a pure function of the report's figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featurize.drift import PSI_LARGE, Z_999, Level

FELL_BY_HALF = 0.5
"""Rows or events at most this share of the arrival before, or at least its inverse, are worth a word."""
MISSING_JUMP = 0.05
"""A missing rate that moved by at least five points (and by more than chance) is worth a word."""
QUARANTINE_NEAR = 0.5
"""A quarantined share above this part of rules.max_bad_share is worth a word: above all of it, nothing is ingested."""

Figures = Mapping[str, Any]


def warnings(figures: Figures, before: Figures | None, max_bad_share: float) -> list[str]:
    """The sentences, the gravest kind first; `before` holds the figures of the arrival before, None for the first.

    Both have the figures of featurize.profile and `fields`, its rows of the table `profiles`.
    """
    return [
        *_sizes(figures, before),
        *_quarantine(figures, max_bad_share),
        *_keys(figures, before),
        *_labels(figures),
        *_missing(figures["fields"], before["fields"] if before is not None else ()),
        *_drift(figures["fields"]),
        *_vanished(figures["fields"]),
    ]


def _sizes(figures: Figures, before: Figures | None) -> Iterator[str]:
    for what in ("rows", "events"):
        now = figures[what]
        if not now:
            yield f"There are no {what}."
        elif before is not None and (then := before[what]):
            if now <= FELL_BY_HALF * then:
                yield f"{what.capitalize()} fell from {then:,} to {now:,}, {now / then:.0%} of the arrival before."
            elif now * FELL_BY_HALF >= then:
                yield f"{what.capitalize()} rose from {then:,} to {now:,}, {now / then:.1f} times the arrival before."


def _quarantine(figures: Figures, max_bad_share: float) -> Iterator[str]:
    rows, bad = figures["rows"], figures["quarantined"]
    if rows and bad > QUARANTINE_NEAR * max_bad_share * rows:
        yield (
            f"{bad / rows:.2%} of the rows are quarantined; a batch with more than {max_bad_share:.2%} "
            "(rules.max_bad_share) is refused."
        )


def _keys(figures: Figures, before: Figures | None) -> Iterator[str]:
    for key in ("users", "items"):
        if before is not None and figures["events"] and not figures[f"new_{key}"]:
            yield f"There are no new {key}."


def _labels(figures: Figures) -> Iterator[str]:
    if figures["labelled"] and figures["positive"] in (0, figures["labelled"]):
        yield f"Every label is {int(figures['positive'] > 0)}."


def _missing(fields: Sequence[Figures], before: Sequence[Figures]) -> Iterator[str]:
    earlier = {(f["source"], f["column"]): f for f in before}
    for f in fields:
        old = earlier.get((f["source"], f["column"]))
        if f["rows"] and f["missing"] == f["rows"]:
            if old is None or old["missing"] < old["rows"]:
                yield f"{_name(f)} is missing everywhere."
        elif old is not None and _jumped(f, old):
            now, then = f["missing"] / f["rows"], old["missing"] / old["rows"]
            yield f"{_name(f)} is missing in {now:.1%} of the rows; the arrival before it was {then:.1%}."


def _jumped(now: Figures, then: Figures) -> bool:
    """The two shares differ by MISSING_JUMP and by more than two samples of one share do (z test, one in 1000)."""
    n, m = now["rows"], then["rows"]
    if not n or not m:
        return False
    apart = abs(now["missing"] / n - then["missing"] / m)
    pooled = (now["missing"] + then["missing"]) / (n + m)
    return apart >= MISSING_JUMP and apart > Z_999 * math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def _drift(fields: Sequence[Figures]) -> Iterator[str]:
    for f in fields:
        if f["level"] == Level.LARGE:
            yield (
                f"{_name(f)} has another distribution than the arrival before: population stability index "
                f"{f['psi']:.2f} (large from {PSI_LARGE} on)."
            )


def _vanished(fields: Sequence[Figures]) -> Iterator[str]:
    """Event types of at least one percent of the events that are gone."""
    for f in fields:
        if f["column"] == "type" and f["drift"] is not None:
            drift = f["drift"]
            total, types = sum(drift["reference"]), len(drift["bins"]) - 2  # the last two: others, missing
            for name, then, now in list(zip(drift["bins"], drift["reference"], drift["current"], strict=True))[:types]:
                if then >= 0.01 * total and not now:
                    yield f"There is no event of type {name} any more; the arrival before had {then:,}."


def _name(field: Figures) -> str:
    if field["column"] == "type":
        return "The event type"
    where = "" if field["source"] == "events" else f" (side file of the {field['source']})"
    return f"Field {field['column'].removeprefix('f_')}{where}"
