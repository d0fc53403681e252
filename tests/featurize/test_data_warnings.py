"""Each sentence, and the quiet just short of it, from figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from featurize.data_warnings import warnings


def field(column: str = "f_device", rows: int = 1000, missing: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "source": "events",
        "column": column,
        "rows": rows,
        "missing": missing,
        "psi": None,
        "level": None,
        "drift": None,
        **more,
    }


def figures(**more: Any) -> dict[str, Any]:
    calm = {"rows": 1000, "events": 990, "quarantined": 5, "new_users": 3, "new_items": 1}
    return {**calm, "labelled": 990, "positive": 400, "fields": [], **more}


def test_a_day_like_the_one_before_is_quiet() -> None:
    assert warnings(figures(fields=[field()]), figures(fields=[field()]), 0.05) == []


@pytest.mark.parametrize(
    ("now", "then", "words"),
    [
        ({"rows": 500}, {}, "Rows fell from 1,000 to 500, 50% of the arrival before."),
        ({"rows": 501}, {}, None),
        ({"rows": 2000}, {}, "Rows rose from 1,000 to 2,000, 2.0 times the arrival before."),
        ({"rows": 1999}, {}, None),
        ({"events": 300}, {}, "Events fell from 990 to 300, 30% of the arrival before."),
        ({"events": 0, "labelled": 0, "positive": 0, "new_users": 0}, {}, "There are no events."),
        ({"quarantined": 26}, {}, "2.60% of the rows are quarantined; a batch with more than 5.00%"),
        ({"quarantined": 25}, {}, None),
        ({"new_users": 0}, {}, "There are no new users."),
        ({"new_items": 0}, {}, "There are no new items."),
        ({"positive": 0}, {}, "Every label is 0."),
        ({"positive": 990}, {}, "Every label is 1."),
        ({"labelled": 0, "positive": 0}, {}, None),
    ],
)
def test_counts(now: dict[str, Any], then: dict[str, Any], words: str | None) -> None:
    found = warnings(figures(**now), figures(**then), 0.05)
    assert len(found) == (words is not None)
    assert words is None or found[0].startswith(words)


def test_the_first_arrival_is_not_told_that_everything_is_new() -> None:
    assert warnings(figures(new_users=0, rows=10, events=10), None, 0.05) == [
        "50.00% of the rows are quarantined; a batch with more than 5.00% (rules.max_bad_share) is refused."
    ]


@pytest.mark.parametrize(
    ("now", "then", "words"),
    [
        (150, 99, "Field device is missing in 15.0% of the rows; the arrival before it was 9.9%."),
        (148, 99, None),
        (40, 100, "Field device is missing in 4.0% of the rows; the arrival before it was 10.0%."),
        (1000, 100, "Field device is missing everywhere."),
        (1000, 1000, None),
    ],
)
def test_missing_rates(now: int, then: int, words: str | None) -> None:
    found = warnings(figures(fields=[field(missing=now)]), figures(fields=[field(missing=then)]), 0.05)
    assert found == ([words] if words else [])


def test_a_jump_within_chance_is_quiet() -> None:
    # 3 of 20 against 1 of 20: ten points apart, but z = 0.1 / sqrt(0.1 * 0.9 * 0.1) = 1.05
    now, then = (figures(fields=[field(rows=20, missing=m)]) for m in (3, 1))
    assert warnings(now, then, 0.05) == []


def test_drift_and_where_the_field_is_from() -> None:
    drifted = [
        field(psi=0.31, level="large"),
        field("f_tags", source="items", psi=0.4, level="large"),
        field("f_calm", psi=0.2, level="moderate"),
        field("f_few", psi=3.0, level="unclear"),
    ]
    assert warnings(figures(fields=drifted), figures(), 0.05) == [
        "Field device has another distribution than the arrival before: population stability index 0.31 "
        "(large from 0.25 on).",
        "Field tags (side file of the items) has another distribution than the arrival before: population stability "
        "index 0.40 (large from 0.25 on).",
    ]


def test_an_event_type_that_is_gone() -> None:
    drift = {
        "bins": ["view", "buy", "rare", "(other)", "(missing)"],
        "reference": [890, 100, 9, 20, 0],
        "current": [999, 0, 0, 0, 0],
    }
    found = warnings(figures(fields=[field("type", drift=drift)]), figures(), 0.05)
    assert found == ["There is no event of type buy any more; the arrival before had 100."]
