"""The daily report: one self-contained HTML page, readable on a phone, offline, and years later.

Nothing is fetched: no script, no font, no image, and a content policy that forbids them. All text is
escaped. Intervals are rows of tables whose geometry is in percent, so they fit any width while the text
keeps its size; trends over epochs are evaluate.publish.plots. Figures stand beside both, and `<data value=...>`
carries each unrounded.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from evaluate.decision.gate import Decision
from evaluate.decision.repeated import Spread
from evaluate.decision.statistics import Interval
from evaluate.publish.numerals import number, places
from evaluate.publish.plots import STYLE, Trend, trend
from infra.disk import sync
from infra.errors import UsageError


@dataclass(frozen=True)
class Section:
    """A table under a heading. Cells are text, numbers, a Spread (with two decimals), booleans or None; the first
    column names the row."""

    title: str
    explanation: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Intervals:
    """Intervals on one common scale; `reference` draws a line to read them against (0, -margin)."""

    title: str
    explanation: str
    rows: Sequence[tuple[str, Interval]]
    reference: float | None = None


@dataclass(frozen=True)
class Report:
    """Everything on the page, in this order.

    decisions: by registered model name. lineage: table -> (version, rows). configuration: anything
    that is JSON.
    """

    title: str
    run_date: str
    decisions: Mapping[str, Decision]
    sections: Sequence[Section] = ()
    intervals: Sequence[Intervals] = ()
    trends: Sequence[Trend] = ()
    lineage: Mapping[str, tuple[int | str, int]] = field(default_factory=dict)
    configuration: Any = None


def write_report(path: str | Path, report: Report) -> None:
    """Write the page atomically (temporary file, fsync, rename): readers see the old page or the new.

    Makes the folder if need be. UsageError if the path cannot be written, a table's row is not as wide
    as its header, or a plot's line has not one finite value per epoch.
    """
    write_text(Path(path), render(report))


def write_text(path: Path, text: str) -> None:
    """Write a file as `write_report` does. UsageError if the path cannot be written."""
    # Ids from a log may hold lone surrogates, which UTF-8 has no bytes for.
    data = text.encode("utf-8", "backslashreplace")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise UsageError(f"{path}: the report cannot be written ({error.strerror}); choose another path") from None


def render(report: Report) -> str:
    """The page as text. UsageError as `write_report`."""
    parts = [_decisions(report.decisions)]
    parts += [interval_plots(group, f"intervals-{i}") for i, group in enumerate(report.intervals)]
    parts += [table_section(section, f"table-{i}") for i, section in enumerate(report.sections)]
    parts += [trend(plots, f"trend-{i}") for i, plots in enumerate(report.trends)]
    if report.lineage:
        rows = [(table, str(version), count) for table, (version, count) in report.lineage.items()]
        about = "The Delta versions this run was computed from; the same versions give the same report."
        parts.append(table_section(Section("Lineage", about, ("table", "version", "rows"), rows), "lineage"))
    if report.configuration is not None:
        parts.append(folded("Configuration", report.configuration))
    return page(report.title, "Run date", report.run_date, parts)


def folded(summary: str, content: Any) -> str:
    """Anything that is JSON, under a line that opens it."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return f"<section><details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details></section>"


def page(title: str, date_name: str, date: str, sections: Sequence[str]) -> str:
    """The document around its sections' HTML."""
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · {escape(date)}</title>
<style>{_STYLE}{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(date_name)} <time>{escape(date)}</time></p></header>
<main>
{body}
</main>
</body>
</html>
"""


def _decisions(decisions: Mapping[str, Decision]) -> str:
    cards = []
    for name, decision in decisions.items():
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
        verdict = escape(decision.verdict.value)
        cards.append(
            f'<article class="decision {verdict}"><h3><span class="verdict">{verdict}</span> {escape(name)}</h3>'
            f"<ul>{reasons}</ul></article>"
        )
    content = "\n".join(cards) or "<p>No decision was made in this run.</p>"
    return f'<section aria-labelledby="decisions"><h2 id="decisions">Decisions</h2>\n{content}\n</section>'


def table_section(section: Section, anchor: str) -> str:
    """A table's HTML. UsageError for a row that is not as wide as the header."""
    for position, row in enumerate(section.rows):
        if len(row) != len(section.columns):
            raise UsageError(
                f"report section {section.title!r}: row {position} has {len(row)} cells, "
                f"but there are {len(section.columns)} columns"
            )
    numeric = [all(_is_number(row[i]) for row in section.rows) for i in range(len(section.columns))]
    head = "".join(
        f'<th scope="col"{_right(number)}>{escape(name)}</th>'
        for name, number in zip(section.columns, numeric, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{_cell(row[0])}</th>'
        + "".join(f"<td{_right(number)}>{_cell(cell)}</td>" for cell, number in zip(row[1:], numeric[1:], strict=True))
        + "</tr>"
        for row in section.rows
    )
    return _table(section.title, section.explanation, anchor, head, body)


def interval_plots(group: Intervals, anchor: str) -> str:
    """Their HTML, each interval drawn and in figures."""
    scale = _scale(group)
    head = '<td></td><th scope="col" class="plot">' + _scale_ends(scale) + "</th>"
    head += "".join(f'<th scope="col" class="number">{name}</th>' for name in ("low", "estimate", "high"))
    body = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th><td class="plot">{_plot(interval, scale, group.reference)}</td>'
        + "".join(f'<td class="number">{_cell(v)}</td>' for v in (interval.low, interval.estimate, interval.high))
        + "</tr>"
        for label, interval in group.rows
    )
    explanation = group.explanation
    if group.reference is not None:
        explanation = f"{explanation} Dashed line: {number(group.reference)}.".lstrip()
    return _table(group.title, explanation, anchor, head, body, kind="intervals")


def _table(title: str, explanation: str, anchor: str, head: str, body: str, kind: str = "plain") -> str:
    return (
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(title)}</h2>\n'
        f'<div class="scroll" role="region" aria-labelledby="{anchor}" tabindex="0"><table class="{kind}">\n'
        f"<caption>{escape(explanation)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></section>"
    )


def _scale(group: Intervals) -> tuple[float, float]:
    """The ends of the common scale: all finite figures and the reference, with 4 % air on either side."""
    figures = [v for _, i in group.rows for v in (i.low, i.estimate, i.high)]
    figures += [] if group.reference is None else [group.reference]
    finite = [v for v in figures if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    air = (high - low) * 0.04 or abs(high) * 0.04 or 1.0
    return low - air, high + air


def _scale_ends(scale: tuple[float, float]) -> str:
    return f'<span class="ends"><span>{number(scale[0])}</span><span>{number(scale[1])}</span></span>'


def _plot(interval: Interval, scale: tuple[float, float], reference: float | None) -> str:
    """One interval as inline SVG; an infinite end runs to the edge, an undefined one is said in words."""
    if math.isnan(interval.low) or math.isnan(interval.high) or math.isnan(interval.estimate):
        return "not defined"

    def x(value: float) -> str:
        share = (min(max(value, scale[0]), scale[1]) - scale[0]) / (scale[1] - scale[0])
        return f"{100 * share:.2f}%"

    shapes = ""
    if reference is not None:
        shapes += f'<line class="reference" x1="{x(reference)}" x2="{x(reference)}" y1="0" y2="100%"/>'
    shapes += f'<line class="range" x1="{x(interval.low)}" x2="{x(interval.high)}" y1="50%" y2="50%"/>'
    shapes += f'<circle cx="{x(interval.estimate)}" cy="50%" r="4.5"/>'
    spoken = f"{number(interval.estimate)}, from {number(interval.low)} to {number(interval.high)}"
    return f'<svg role="img" aria-label="{escape(spoken)}" width="100%" height="22">{shapes}</svg>'


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, Spread) or (isinstance(value, Real) and not isinstance(value, bool))


def _right(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, Spread):
        decimals = places(value.mean)
        shown = f'<data value="{value.mean!r}">{value.mean:,.{decimals}f}</data>'
        if value.deviation is not None:
            shown += f' ± <data value="{value.deviation!r}">{value.deviation:,.{decimals}f}</data>'
        return shown.replace(">-", ">−")
    if isinstance(value, Real):
        return f'<data value="{value!s}">{number(value)}</data>'
    return escape(str(value))


#: Light and dark, from a phone's width up. On a phone an interval stacks: label, plot, figures.
_STYLE = """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #1c2024; --soft: #5d656e; --rule: #d9dde1;
  --accent: #1f5fa8; --good: #1d6b3a; --wait: #855400; --bad: #a3262a;
  --line-0: #0063a3; --line-1: #c14f00; --line-2: #00795a; --line-3: #a8417f;
  --line-4: #8a6400; --line-5: #2b8fbf; --line-6: #7350b8; --line-7: #6b6b6b; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #a3abb3; --rule: #353b42;
    --accent: #7db4f0; --good: #7fd09a; --wait: #e6b655; --bad: #f2908f;
    --line-0: #6cb4f5; --line-1: #ff9a5c; --line-2: #4fd0a6; --line-3: #f29ac9;
    --line-4: #e6c35a; --line-5: #a8dcff; --line-6: #b79cf0; --line-7: #b5b5b5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.25rem 0 .25rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: 1rem; }
header p { margin: .25rem 0 0; color: var(--soft); }
.decision { margin: .75rem 0 0; padding: .75rem 1rem; background: var(--card); border: 1px solid var(--rule);
  border-left: .3rem solid var(--tone); border-radius: .4rem; }
.decision ul { margin: .4rem 0 0; padding-left: 1.1rem; }
.promote { --tone: var(--good); }
.hold { --tone: var(--wait); }
.reject { --tone: var(--bad); }
.verdict { margin-right: .4rem; color: var(--tone); font-size: .8rem; letter-spacing: .06em;
  text-transform: uppercase; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .925rem; overflow-wrap: normal; }
caption { position: sticky; left: 0; margin-bottom: .5rem; max-width: min(44rem, calc(100vw - 2rem));
  color: var(--soft); text-align: left; overflow-wrap: anywhere; }
th, td { padding: .4rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: middle; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tbody th { min-width: 9rem; font-weight: 500; }
th:first-child { position: sticky; left: 0; z-index: 1; padding-left: 0; max-width: 16rem; background: var(--page); }
.intervals th:first-child { width: 16rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.plot { width: 45%; min-width: 8rem; }
.ends { display: flex; justify-content: space-between; font-weight: 400; font-variant-numeric: tabular-nums; }
svg { display: block; }
.range { stroke: var(--accent); stroke-width: 2.5; stroke-linecap: round; }
.reference { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 3 3; }
circle { fill: var(--accent); }
details { margin-top: 2.25rem; }
summary { font-size: 1.15rem; font-weight: 700; cursor: pointer; }
pre { padding: .75rem 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: .4rem; font-size: .85rem; }
@media (max-width: 40rem) {
  th, td { padding: .4rem; }
  th:first-child { max-width: 8.5rem; }
  .intervals tr { display: grid; grid-template-columns: repeat(3, 1fr); border-bottom: 1px solid var(--rule); }
  .intervals th, .intervals td { border: 0; padding: .2rem 0; }
  .intervals th:first-child, .intervals .plot { grid-column: 1 / -1; width: auto; max-width: none; }
  .intervals thead td { display: none; }
}
"""
