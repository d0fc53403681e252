"""Plots are read back as XML: where the points lie, what the axes say, that text stays text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.publish.plots import STYLE, Trend, trend
from infra.errors import UsageError

HOSTILE = """</text></svg><script>alert("1")</script>&amp; "q" 'r'"""


def drawn(*lines, epochs=(1, 2, 3), marked=0, text="plain") -> ElementTree.Element:
    named = [(f"{text} {i}", values) for i, values in enumerate(lines)]
    return ElementTree.fromstring(trend(Trend(text, text, epochs, named, marked), "trend-0"))


def points(page: ElementTree.Element) -> list[list[tuple[float, float]]]:
    found = [p.attrib["points"] for p in page.iter("polyline")]
    return [[tuple(float(v) for v in pair.split(",")) for pair in line.split()] for line in found]


def texts(page: ElementTree.Element, kind: str) -> list[str]:
    return [t.text for t in page.iter("text") if t.get("class") == kind]


def test_one_figure_per_line_on_common_epochs():
    page = drawn((0.0, 0.5, 1.0), (2.0, 2.0, 4.0))
    first, second = points(page)
    # The frame is 52 .. 288 by 148 .. 30, and values begin at 0 at its foot.
    assert first == [(52, 148), (170, 89), (288, 30)]
    assert second == [(52, 89), (170, 89), (288, 30)]
    assert len(list(page.iter("figure"))) == len(list(page.iter("svg"))) == 2


def test_axes_have_names_and_figures():
    page = drawn((0.0, 0.5, 0.25), epochs=(5, 10, 25))
    assert texts(page, "name") == ["plain 0"]
    assert texts(page, "end") == ["0", "0.250", "0.500"]
    assert texts(page, "middle") == ["5", "10", "15", "20", "25", "epoch"]
    assert [float(d.attrib["value"]) for d in page.iter("data")] == [0.0, 0.25]


def test_another_axis():
    steps = ElementTree.fromstring(trend(Trend("t", "a", (0, 9), [("cosine", (1.0, 0.0))], axis="step <t>"), "trend-0"))
    assert texts(steps, "middle")[-1] == "step <t>"
    assert "".join(steps.find(".//figcaption").itertext()) == "1.0000 at step <t> 0, 0.0000 at step <t> 9"
    assert steps.find(".//svg").attrib["aria-label"] == "cosine over step <t>s 0 to 9"


def test_values_below_zero_go_below_it():
    (line,) = points(drawn((-0.25, 0.0, 0.75)))
    assert [y for _, y in line] == [148, 118.5, 30]
    assert texts(drawn((-0.25, 0.0, 0.75)), "end")[0] == "−0.25"


def test_the_marked_epoch():
    page = drawn((1.0, 3.0, 2.0), marked=2)
    (line,) = [shape for shape in page.iter("line") if shape.get("class") == "reference"]
    assert line.attrib["x1"] == line.attrib["x2"] == "170.0"
    assert "".join(page.find(".//figcaption").itertext()) == "1.0000 at epoch 1, 3.0000 at epoch 2, 2.0000 at epoch 3"
    assert not [s for s in drawn((1.0, 3.0, 2.0), marked=7).iter("line") if s.get("class") == "reference"]


def test_one_validation_is_a_dot_in_the_middle():
    page = drawn((0.0,), epochs=(4,))
    assert [(c.attrib["cx"], c.attrib["cy"]) for c in page.iter("circle")] == [("170.0", "148.0")]
    assert len(list(page.iter("data"))) == 1


def test_many_points_are_a_line_alone():
    page = drawn(tuple(float(i) for i in range(256)), epochs=range(256))
    assert len(points(page)[0]) == 256
    assert not list(page.iter("circle"))


def test_text_stays_text():
    page = drawn((1.0, 2.0, 3.0), text=HOSTILE)
    assert page.find("h2").text == page.find("p").text == HOSTILE
    assert texts(page, "name") == [f"{HOSTILE} 0"]
    assert page.find(".//svg").attrib["aria-label"].startswith(HOSTILE)
    assert [e.tag for e in page.iter()] == [e.tag for e in drawn((1.0, 2.0, 3.0)).iter()]


def test_colours_are_the_pages_own():
    """Which it has in light and in dark."""
    assert not re.search(r"#[0-9a-f]{3}", STYLE)
    page = drawn((1.0, 2.0, 3.0))
    assert not {"style", "fill", "stroke", "href", "src"} & {name for e in page.iter() for name in e.attrib}


@pytest.mark.parametrize(
    ("epochs", "values"), [((1, 2), (1.0,)), ((), ()), ((1, 2), (1.0, math.nan)), ((1,), (math.inf,))]
)
def test_a_line_that_cannot_be_drawn_is_named(epochs, values):
    with pytest.raises(UsageError, match=r"plot 'plain': line 'plain 0' needs one finite value for each of \d epochs"):
        drawn(values, epochs=epochs)


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=20),
    st.integers(1, 10_000),
    st.integers(1, 500),
)
def test_every_point_is_within_the_frame(values, first, step):
    page = drawn(values, epochs=range(first, first + step * len(values), step))
    assert all(52 <= x <= 288 and 30 <= y <= 148 for x, y in points(page)[0])
    assert 2 <= len(texts(page, "middle")) <= 8
    assert all(len(text) <= 9 for text in texts(page, "end"))


class TestOneFrame:
    def test_lines_share_the_axis_from_the_least_to_the_largest(self) -> None:
        lines = [("first", (70.0, 60.0)), (HOSTILE, (80.0, 50.0))]
        page = ElementTree.fromstring(trend(Trend("t", "e", [0, 50], lines, axis="percent", frame="AUC"), "a"))
        assert len(page.findall(".//figure")) == 1
        assert texts(page, "name") == ["AUC"]
        assert texts(page, "end") == ["50.0", "65.0", "80.0"]
        heights = [[float(p.split(",")[1]) for p in line.attrib["points"].split()] for line in page.iter("polyline")]
        assert heights[1] == [30.0, 148.0]
        assert heights[0] == pytest.approx([30 + 118 / 3, 30 + 118 * 2 / 3], abs=0.1)
        assert len({g.attrib["class"] for g in page.iter("g")}) == 2
        keys = [" ".join("".join(key.itertext()).split()) for key in page.iter("li")]
        assert keys == [
            "first: 70.0000 at percent 0, 60.0000 at percent 50",
            f"{HOSTILE}: 80.0000 at percent 0, 50.0000 at percent 50",
        ]

    def test_the_ninth_line_has_the_first_ones_colour_and_is_dashed(self) -> None:
        lines = [(f"{n}", (1.0, float(n))) for n in range(10)]
        page = ElementTree.fromstring(trend(Trend("t", "e", [0, 50], lines, frame="AUC"), "a"))
        looks = [g.attrib["class"] for g in page.iter("g")]
        assert len(set(looks)) == 10
        assert looks[8:] == ["line-0 dashed", "line-1 dashed"]
