"""The page of a study, read back as a browser would."""

from __future__ import annotations

import pytest

from evaluate.decision.repeated import Comparison, Spread
from evaluate.decision.statistics import Interval
from evaluate.publish.study_page import Contrast, Study, StudyRow, StudyTable, render
from tests.evaluate.publish.test_report import HOSTILE, Page

COLUMNS = ("all_items/ndcg_at_20", "history_removed/ndcg_at_20")


def compared(estimate: float, p: float) -> Comparison:
    relative = Interval((estimate - 1) / 50, estimate / 50, (estimate + 1) / 50)
    return Comparison(Interval(estimate - 1, estimate, estimate + 1), p, 938, 3, relative)


def study(text: str = "plain") -> Study:
    figures = {COLUMNS[0]: Spread(8.2412, 0.3125), COLUMNS[1]: None}
    rows = [
        StudyRow(f"adrec {text}", 3, figures, Spread(876.5, 4.25), Spread(49.5, None), 6.875, Spread(87.25, 2.5)),
        StudyRow(f"one pass {text}", 1, figures, None, None, None, None),
        StudyRow("dreamrec", 0, {}, None, None, None, None),
    ]
    contrasts = [
        Contrast(f"adrec {text}", f"one pass {text}", COLUMNS[0], True, compared(-0.0125, 0.5), 1.0),
        Contrast(f"adrec {text}", "sasrec", COLUMNS[1], False, compared(2.5, 0.0002), 0.0006),
        Contrast("mlp", "sasrec", "lists/category_count", False, compared(-2.5, 0.0003), 0.0009),
        Contrast("dreamrec", "dreamrec, 4 steps", COLUMNS[0], True, None, None),
        Contrast("nobody", "sasrec", COLUMNS[1], True, compared(float("nan"), float("nan")), None),
    ]
    table = StudyTable(f"Table {text}", f"about {text}", 3, COLUMNS, rows, contrasts)
    return Study(f"Study {text}", "2026-05-04", [f"protocol {text}"], [table], {"seeds": [0], "name": text})


def test_figures_are_there_shown_and_unrounded() -> None:
    page = Page(render(study()))
    assert {8.2412, 0.3125, 876.5, 6.875, 87.25, 2.5, -0.0125, 0.0002, 0.0006, 938, 3} <= page.figures
    for shown in (
        "8.24 ± 0.31",
        "876.50 ± 4.25",
        "49.50",
        "3 of 3",
        "1 of 3",
        "0 of 3",
        "not run yet",
        "–",
        "2026-05-04",
    ):
        assert shown in page.text
    assert "NDCG@20, history removed" in page.text
    assert "over the 3 tests of this table" in page.text
    assert "protocol plain" in page.text


@pytest.mark.parametrize(
    ("contrast", "verdict"),
    zip(
        study().tables[0].contrasts,
        ["no difference shown", "higher", "lower", "not run yet", "not defined"],
        strict=True,
    ),
)
def test_verdicts(contrast: Contrast, verdict: str) -> None:
    assert contrast.verdict == verdict


def test_what_one_trained_model_gains_is_said_in_words() -> None:
    text = Page(render(study())).text
    assert (
        "adrec plain against one pass plain, NDCG@20, all items: −0.01 points (95 % interval −1.01 to +0.99, "
        "corrected p 1.0000): no difference shown."
    ) in text
    assert "dreamrec against dreamrec, 4 steps, NDCG@20, all items: not run yet." in text
    assert "nobody against sasrec, NDCG@20, history removed: not defined, no user is left." in text
    assert "mlp against sasrec, category count, of lists" in text
    assert "mlp against sasrec, category count, of lists: −" not in text  # not the same model: in the tables alone


def test_hostile_text_stays_text() -> None:
    plain, hostile = Page(render(study())), Page(render(study(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count("plain") - 1  # in the plan's JSON its quotes are escaped


def test_nothing_is_fetched() -> None:
    source = render(study())
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in Page(source).tags}
    assert "default-src 'none'" in source
