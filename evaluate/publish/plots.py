"""Line plots over epochs, steps or rates as inline SVG: no script, nothing fetched, all text escaped.

A plot is drawn in units of its own and scales as a whole. Colours are read in light and dark. Plots side by side have
axes of values that begin at 0 (below it where a value is negative), so that heights compare; lines in one frame share
an axis from the least value to the largest, so that they can be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from evaluate.publish.numerals import number
from infra.errors import UsageError

_WIDTH, _HEIGHT = 300, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 288, 30, 148  # the frame within
_COLOURS = 8  # the page's --line-0 ...
_TICKS = 4  # steps of the epochs' axis at most


@dataclass(frozen=True)
class Trend:
    """Small plots under a heading, one per line, over common ascending epochs; `marked` is pointed out (-1: none).

    `axis`: what the epochs are, if something else. `frame`: the name of one plot that has all lines; None: one each.
    """

    title: str
    explanation: str
    epochs: Sequence[int]
    lines: Sequence[tuple[str, Sequence[float]]]
    marked: int = -1
    axis: str = "epoch"
    frame: str | None = None


def trend(plots: Trend, anchor: str) -> str:
    """The section's HTML. UsageError if a line does not have one finite value per epoch, or there is no epoch."""
    for name, values in plots.lines:
        if not plots.epochs or len(values) != len(plots.epochs) or not all(map(math.isfinite, values)):
            raise UsageError(
                f"report plot {plots.title!r}: line {name!r} needs one finite value for each of "
                f"{len(plots.epochs)} epochs (at least 1), and has {len(values)} values"
            )
    if plots.frame is None:
        figures = "\n".join(_figure(name, values, plots) for name, values in plots.lines)
    else:
        figures = _shared(plots.frame, plots)
    return (
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(plots.title)}</h2>\n'
        f'<p class="about">{escape(plots.explanation)}</p>\n<div class="trends">\n{figures}\n</div></section>'
    )


def _figure(name: str, values: Sequence[float], plots: Trend) -> str:
    """One plot, and its ends in words."""
    span = _span((0.0, *values))
    drawn = _axes(name, span, plots.epochs, plots.axis) + _mark(plots) + _line(values, plots.epochs, span)
    return f'<figure class="trend">{_svg(name, drawn, plots)}<figcaption>{_ends(values, plots)}</figcaption></figure>'


def _shared(name: str, plots: Trend) -> str:
    """All lines in one plot, each with its colour and words below."""
    span = _span([value for _, values in plots.lines for value in values])
    lines = [f'<g class="{_look(n)}">{_line(v, plots.epochs, span)}</g>' for n, (_, v) in enumerate(plots.lines)]
    drawn = _axes(name, span, plots.epochs, plots.axis) + "".join(lines)
    keys = "".join(
        f'<li><svg class="key {_look(n)}" aria-hidden="true" viewBox="0 0 24 8"><path class="line" '
        f'd="M0 4H24"/></svg> {escape(label)}: {_ends(values, plots)}</li>'
        for n, (label, values) in enumerate(plots.lines)
    )
    return f'<figure class="trend">{_svg(name, drawn, plots)}</figure>\n<ul class="keys">{keys}</ul>'


def _look(number: int) -> str:
    """A line's colour; from the ninth on they come again, dashed."""
    return f"line-{number % _COLOURS}" + (" dashed" if number >= _COLOURS else "")


def _svg(name: str, drawn: str, plots: Trend) -> str:
    spoken = f"{name} over {plots.axis}s {plots.epochs[0]} to {plots.epochs[-1]}"
    return f'<svg role="img" aria-label="{escape(spoken)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{drawn}</svg>'


def _ends(values: Sequence[float], plots: Trend) -> str:
    """In words where a line begins, stands at the marked epoch, and ends."""
    found = dict(zip(plots.epochs, values, strict=True))
    shown = sorted({plots.epochs[0], plots.epochs[-1], *({plots.marked} & found.keys())})
    return ", ".join(
        f"<data value={_quoted(found[e])}>{number(found[e])}</data> at {escape(plots.axis)} {e:,}" for e in shown
    )


def _quoted(value: float) -> str:
    return f'"{value!r}"'


def _axes(name: str, span: tuple[float, float], epochs: Sequence[int], axis: str) -> str:
    """The plot's name above, ticks with their grid lines, and what runs along the bottom."""
    low, high = span
    shapes = _text(_LEFT, 18, name, "name")
    for value in (low, (low + high) / 2, high):
        y = _y(value, span)
        shapes += f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/>'
        shapes += _text(_LEFT - 6, float(y) + 4, _short(value, high - low), "end")
    for epoch in _epoch_ticks(epochs):
        x = _x(epoch, epochs)
        shapes += f'<line class="tick" x1="{x}" x2="{x}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
        shapes += _text(float(x), _BOTTOM + 18, f"{epoch:,}", "middle")
    return shapes + _text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, axis, "middle")


def _line(values: Sequence[float], epochs: Sequence[int], span: tuple[float, float]) -> str:
    """The line; few points also as dots, without which a lone one would not be seen."""
    points = [(_x(epoch, epochs), _y(value, span)) for epoch, value in zip(epochs, values, strict=True)]
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x, y in points) if len(points) <= 30 else ""
    return f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in points)}"/>{dots}'


def _mark(plots: Trend) -> str:
    if plots.marked not in plots.epochs:
        return ""
    x = _x(plots.marked, plots.epochs)
    return f'<line class="reference" x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}"/>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """(low, high) of an axis that holds them."""
    low, high = min(values), max(values)
    return low, high if high > low else low + 1.0


def _y(value: float, span: tuple[float, float]) -> str:
    low, high = span
    return f"{_BOTTOM - (_BOTTOM - _TOP) * (value / (high - low) - low / (high - low)):.1f}"


def _x(epoch: int, epochs: Sequence[int]) -> str:
    """In the middle if there is one epoch only."""
    first, last = epochs[0], epochs[-1]
    share = (epoch - first) / (last - first) if last > first else 0.5
    return f"{_LEFT + (_RIGHT - _LEFT) * share:.1f}"


def _epoch_ticks(epochs: Sequence[int]) -> list[int]:
    """First and last epoch, and round ones between that leave them room."""
    first, last = epochs[0], epochs[-1]
    least = (last - first) / _TICKS
    steps = (f * 10**power for power in range(12) for f in (1, 2, 5))
    step = next(s for s in steps if s >= least)
    between = range(-(-first // step) * step, last, step)
    return sorted({first, last, *(e for e in between if e - first > step / 2 and last - e > step / 2)})


def _short(value: float, span: float) -> str:
    """A tick's value in three digits or so of the axis's span."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(span))
    shown = f"{value:,.{max(0, digits)}f}" if -3 <= digits <= 5 else f"{value:.2e}"
    return shown.replace("-", "−")


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


#: Part of the page's style.
STYLE = """
.about { margin: 0 0 .5rem; max-width: 44rem; color: var(--soft); font-size: .925rem; }
.trends { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: 1rem; }
.trend { margin: 0; padding: .5rem; background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; }
.trend svg { width: 100%; height: auto; overflow: visible; }
.trend text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.trend .name { fill: var(--ink); font-weight: 600; }
.trend .end { text-anchor: end; }
.trend .middle { text-anchor: middle; }
.trend figcaption { color: var(--soft); font-size: .85rem; }
.grid { stroke: var(--rule); }
.tick { stroke: var(--soft); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.dashed .line { stroke-dasharray: 5 4; }
.keys { margin: 0; padding: 0; list-style: none; font-size: .85rem; }
.key { display: inline-block; width: 1.5rem; height: .5rem; }
.line-0 { --accent: var(--line-0); }
.line-1 { --accent: var(--line-1); }
.line-2 { --accent: var(--line-2); }
.line-3 { --accent: var(--line-3); }
.line-4 { --accent: var(--line-4); }
.line-5 { --accent: var(--line-5); }
.line-6 { --accent: var(--line-6); }
.line-7 { --accent: var(--line-7); }
"""
