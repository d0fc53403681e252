"""The data page, read back with the standard library's HTML parser and compared with the JSON beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluate.publish.data_page import render, write_data_report
from infra.errors import UsageError
from tests.evaluate.publish.test_report import Page

HOSTILE = """</td></table><script>alert("1")</script><img src=x onerror='a'>&amp;"""


def column(column: str, drift: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    sketch = {"kind": "categorical", "rows": 10, "missing": 1, "distinct": 3, "values": [["a", 6]], "other": 3}
    return {
        "source": "events",
        "column": column,
        "kind": "categorical",
        "rows": 10,
        "missing": 1,
        "psi": drift["psi"] if drift else None,
        "level": drift["level"] if drift else None,
        "sketch": {**sketch, "edges": [], "counts": [], "mean": None, "std": None},
        "drift": drift,
        "missing_rate": 0.1,
        "missing_rate_before": 0.25 if drift else None,
        **more,
    }


def report(text: str = "plain", before: bool = True) -> dict[str, Any]:
    counts = {
        "rows": 1234,
        "events": 1200,
        "duplicates": 21,
        "quarantined": 13,
        "late": 7,
        "users": 301,
        "items": 99,
        "new_users": 17,
        "new_items": 3,
        "label_rate": 0.3125,
    }
    drift = {
        "bins": [f"a {text}", "", "(missing)"],
        "reference": [700, 40, 260],
        "current": [600, 350, 251],
        "psi": 0.58125,
        "chance": 0.0271,
        "level": "large",
    }
    past = {**counts, "arrival": "2026-05-03", "rows": 1101, "events": 1077}
    return {
        "name": f"demo {text}",
        "arrival": "2026-05-04",
        **counts,
        "previous": "2026-05-03" if before else None,
        "reasons": {f"bad_time {text}": 13},
        "labelled": 1200,
        "positive": 375,
        "events_per_user": {"min": 1, "p50": 4, "max": 44, "mean": 3.98671},
        "event_days": [
            {
                "ds": "2026-05-04",
                "late": False,
                "events": 1193,
                "labelled": 1193,
                "positive": 374,
                "events_so_far": 5193,
            }
        ],
        "snapshots": {},
        "warnings": [f"Rows fell {text}."] if before else [],
        "history": [*([past] if before else []), {**counts, "arrival": "2026-05-04"}],
        "max_bad_share": 0.05,
        "fields": [column("type", None), column("f_device", drift if before else None)],
        "key": f"0123 {text}",
        "inputs": {"events": "k1"},
        "outputs": {"profiles": 4},
        "published_at": "2026-05-05T00:00:00+00:00",
        "run_id": "r1",
        "code_version": "v1",
    }


def test_the_figures_are_those_of_the_json() -> None:
    page = Page(render(report()))
    assert {1234, 1200, 21, 13, 7, 301, 99, 17, 3, 0.3125, 1101, 1077, 5193, 1193, 44, 3.98671} <= page.figures
    assert {0.58125, 0.0271, 0.1, 0.25, 700, 40, 260, 600, 350, 251, 374 / 1193, 13 / 1234} <= page.figures
    for shown in [
        "1,234",
        "31.25%",
        "0.5813",
        "Rows fell plain.",
        "bad_time plain",
        "a plain",
        "(empty list)",
        "large",
    ]:
        assert shown in page.text
    assert "compared with arrival 2026-05-03" in page.text


def test_a_first_arrival_has_nothing_to_compare_with() -> None:
    page = Page(render(report(before=False)))
    assert "the first arrival: no comparison" in page.text
    assert "Nothing stands out." in page.text
    assert "there is nothing to compare them with" in page.text
    assert {6, 3, 1} <= page.figures  # its own bins


def test_an_arrival_without_events() -> None:
    empty = {**report(), "rows": 0, "events": 0, "event_days": [], "events_per_user": None, "label_rate": None}
    empty["history"] = [{**h, "events": 0} for h in empty["history"]]
    assert "–" in Page(render(empty)).text


def test_hostile_text_stays_text_everywhere() -> None:
    plain, hostile = Page(render(report())), Page(render(report(HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(a) for _, a in hostile.tags] == [sorted(a) for _, a in plain.tags]
    assert hostile.text.count(HOSTILE) == plain.text.count("plain") - 1  # in the lineage its quotes are escaped
    assert "script" not in {tag for tag, _ in hostile.tags}


def test_nothing_is_fetched() -> None:
    page = Page(render(report()))
    assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in page.tags}
    assert not [a for _, a in page.tags if {"src", "href", "onclick"} & set(a)]
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in render(report())
    assert "@import" not in render(report())


def test_anchors_are_unique() -> None:
    ids = [a["id"] for _, a in Page(render(report())).tags if "id" in a]
    assert len(ids) == len(set(ids)) > 5


def test_both_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    write_data_report(tmp_path / "new" / "day", report())
    write_data_report(tmp_path / "new" / "day", report("again \udc80"))
    assert sorted(p.name for p in (tmp_path / "new" / "day").iterdir()) == ["data.html", "data.json"]
    stored = json.loads((tmp_path / "new" / "day" / "data.json").read_bytes())
    assert stored == report("again \udc80")
    assert "demo again" in (tmp_path / "new" / "day" / "data.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_data_report(tmp_path / "file" / "day", report())
