"""The page is read back with the standard library's HTML parser, never compared with its own text."""

from __future__ import annotations

import json
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.decision.gate import Decision, Verdict
from evaluate.decision.statistics import Interval
from evaluate.publish.plots import Trend
from evaluate.publish.report import Intervals, Report, Section, render, write_report
from infra.errors import UsageError

HOSTILE = """</td></table><script>alert("1")</script><img src=x onerror='a'>&amp; "q" 'r'"""
VOID = {"meta", "line", "circle", "br", "img", "link"}


class Page(HTMLParser):
    """What a browser would see: balanced tags, their attributes, the text, the figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> set[float]:
        return {float(attributes["value"] or "nan") for attributes in self.all("data")}


def full_report(text: str = "plain") -> Report:
    return Report(
        title=f"Daily {text}",
        run_date="2026-05-04",
        decisions={f"a.retrieval {text}": Decision(Verdict.HOLD, (f"reason {text}", "4 users, min_users is 5"))},
        sections=[
            Section(
                f"Accuracy {text}",
                f"history removed {text}",
                ["model", "HR@10", f"column {text}", "rows"],
                [[f"adrec {text}", 0.186612345, True, 1234567], [text, np.float32(0.5), None, np.int64(-42)]],
            )
        ],
        intervals=[
            Intervals(
                f"Difference {text}", f"over users {text}", [(f"label {text}", Interval(-0.031, 0.0127, 0.0625))], -0.02
            )
        ],
        trends=[Trend(f"Health {text}", f"collapse {text}", (1, 2), [(f"isotropy {text}", (0.75, 0.3125))], 1)],
        lineage={f"events {text}": (17, 100_000), "sequences": ("3f9a", 2814)},
        configuration={"model": {"name": text, "layers": [1, 2]}},
    )


def test_every_figure_and_text_is_on_the_page() -> None:
    page = Page(render(full_report()))
    assert {0.75, 0.3125} <= page.figures
    assert "Health plain" in page.text
    assert "collapse plain" in page.text
    assert "isotropy plain" in page.text
    assert {0.186612345, 1234567, 0.5, -42, -0.031, 0.0127, 0.0625, 100_000, 2814} <= page.figures
    for shown in ["0.1866", "1,234,567", "−42", "−0.0310", "0.0127", "0.0625", "−0.0200", "17", "3f9a", "100,000"]:
        assert shown in page.text
    for shown in ["2026-05-04", "a.retrieval plain", "hold", "reason plain", "4 users, min_users is 5", "yes", "–"]:
        assert shown in page.text
    for shown in ["history removed plain", "column plain", "over users plain", "label plain", "events plain"]:
        assert shown in page.text


def test_the_configuration_folds_and_is_whole() -> None:
    page = Page(render(full_report()))
    assert len(page.all("details")) == 1
    shown = page.text[page.text.index("{") : page.text.rindex("}") + 1]
    assert json.loads(shown) == {"model": {"name": "plain", "layers": [1, 2]}}


def test_hostile_text_stays_text_everywhere() -> None:
    plain, hostile = Page(render(full_report())), Page(render(full_report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(a) for _, a in hostile.tags] == [sorted(a) for _, a in plain.tags]
    # As often as the plain word; inside the JSON its double quotes carry a backslash.
    assert hostile.text.count(HOSTILE) == plain.text.count("plain") - 1
    assert HOSTILE.replace('"', '\\"') in hostile.text


PLAIN_TAGS = len(Page(render(full_report())).tags)


@settings(max_examples=40)
@given(text=st.text(alphabet=st.sampled_from("<>&\"'/=!-#;a \n\0"), max_size=30))
def test_no_text_adds_a_tag(text: str) -> None:
    assert len(Page(render(full_report(text))).tags) == PLAIN_TAGS


def test_nothing_is_fetched() -> None:
    source = render(full_report())
    page = Page(source)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "style", "onload"}
    assert not any(loading & set(attributes) for _, attributes in page.tags)
    for loader in ("http:", "https:", "//", "url(", "@import", "@font-face"):
        assert loader not in source
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_tables_say_what_they_are() -> None:
    page = Page(render(full_report()))
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert {a.get("scope") for a in page.all("th")} == {"col", "row"}
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} == set(identifiers)
    assert "prefers-color-scheme: dark" in render(full_report())
    assert any(a.get("name") == "viewport" for a in page.all("meta"))


def positions(group: Intervals) -> list[dict[str, float]]:
    """Per drawn interval: where its ends, its point and the reference are, in percent of the width."""
    page = Page(render(Report("t", "d", {}, intervals=[group])))
    plots: list[dict[str, float]] = []
    for tag, a in page.tags:
        if tag == "svg":
            plots.append({})
        elif tag == "line" and a["class"] == "range":
            plots[-1] |= {"low": float(a["x1"].rstrip("%")), "high": float(a["x2"].rstrip("%"))}
        elif tag == "line":
            plots[-1]["reference"] = float(a["x1"].rstrip("%"))
        elif tag == "circle":
            plots[-1]["estimate"] = float(a["cx"].rstrip("%"))
    return plots


def test_intervals_share_one_linear_scale() -> None:
    # From -1 to 1 with 4 % of 2 as air on both sides: value v stands at (v + 1.08) / 2.16.
    group = Intervals("t", "", [("a", Interval(-1, 0, 0.5)), ("b", Interval(0, 0.5, 1))], reference=-0.5)
    first, second = positions(group)
    assert first == pytest.approx({"low": 3.70, "estimate": 50, "high": 73.15, "reference": 26.85}, abs=0.01)
    assert second == pytest.approx({"low": 50, "estimate": 73.15, "high": 96.30, "reference": 26.85}, abs=0.01)


def test_infinite_ends_run_to_the_edge_and_undefined_ones_are_said() -> None:
    undefined = Interval(math.nan, math.nan, math.nan)
    group = Intervals("t", "", [("open", Interval(-math.inf, 0.5, math.inf)), ("none", undefined)])
    (plot,) = positions(group)
    assert plot == pytest.approx({"low": 0, "estimate": 50, "high": 100})
    assert Page(render(Report("t", "d", {}, intervals=[group]))).text.count("not defined") == 4


def test_an_empty_report_is_a_page_that_says_so() -> None:
    assert "No decision" in Page(render(Report("t", "2026-05-04", {}))).text


def test_a_row_of_another_width_is_refused() -> None:
    section = Section("Accuracy", "", ["model", "HR@10"], [["adrec", 0.1], ["sasrec"]])
    with pytest.raises(UsageError, match=r"'Accuracy': row 1 has 1 cells, but there are 2 columns"):
        render(Report("t", "d", {}, sections=[section]))


def test_written_whole_and_readable(tmp_path: Path) -> None:
    target = tmp_path / "2026-05-04" / "report.html"
    write_report(target, full_report("\ud800 lone surrogate"))
    assert "lone surrogate" in Page(target.read_text(encoding="utf-8")).text
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def test_who_has_the_old_page_open_reads_it_to_the_end(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with target.open() as reader:
        write_report(target, full_report())
        assert reader.read() == "old"
    assert "Daily plain" in target.read_text(encoding="utf-8")


def test_a_failed_write_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UsageError, match=r"report\.html: the report cannot be written \(No space left"):
        write_report(target, full_report())
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/report"):
        write_report(tmp_path / "file" / "report.html", full_report())
