"""The data report's files: data.json, and the same figures as a self-contained HTML page.

As on the daily report nothing is fetched (no script, font or image; a content policy forbids them), all
text is escaped, and `<data value=...>` carries each figure unrounded. Charts are inline SVG beside the
figures they draw.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from featurize.drift import PSI_LARGE, PSI_MODERATE
from infra.disk import sync
from infra.errors import UsageError

Report = Mapping[str, Any]

_COUNTS = {
    "rows": "rows",
    "events": "events",
    "duplicates": "duplicates",
    "quarantined": "quarantined",
    "late": "late (counted in events)",
    "users": "users",
    "items": "items",
    "new_users": "users never seen before",
    "new_items": "items never seen before",
    "label_rate": "share of labels that are 1",
}
_SHARES = {"label_rate"}
_SPREAD = ("min", "p10", "p50", "p90", "p99", "max", "mean")


def write_data_report(folder: Path, report: Report) -> None:
    """Write data.json, then data.html, each atomically (temporary file, fsync, rename).

    UsageError when the folder cannot be written.
    """
    text = json.dumps(report, ensure_ascii=False, indent=1, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (("data.json", text), ("data.html", render(report))):
            _replace(folder / name, content.encode("utf-8", "backslashreplace"))
        sync(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: the data report cannot be written ({error.strerror}); mend that or choose another workspace"
        ) from None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def render(report: Report) -> str:
    """The page as text."""
    parts = [_warnings(report), _counts(report), _history(report), _reasons(report), _days(report), _spread(report)]
    parts += [_fields(report), *(_distribution(f) for f in report["fields"]), _lineage(report)]
    body = "\n".join(parts)
    title = f"{escape(report['name'])}: data of {escape(report['arrival'])}"
    before = report["previous"]
    compared = f"compared with arrival <time>{escape(before)}</time>" if before else "the first arrival: no comparison"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>Arrival <time>{escape(report["arrival"])}</time>, {compared}</p></header>
<main>
{body}
</main>
</body>
</html>
"""


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in report["warnings"])
    content = f'<ul class="warnings">{items}</ul>' if items else "<p>Nothing stands out.</p>"
    return f'<section aria-labelledby="warnings"><h2 id="warnings">Warnings</h2>\n{content}</section>'


def _counts(report: Report) -> str:
    then = report["history"][-2] if len(report["history"]) > 1 else {}
    rows = []
    for name, words in _COUNTS.items():
        shape = _share if name in _SHARES else _number
        rows.append([escape(words), shape(report[name]), shape(then.get(name))])
    about = "Per arrival. rows = events + duplicates + quarantined."
    return _table("counts", "Rows, users and items", about, ["figure", "this arrival", "the one before"], rows)


def _history(report: Report) -> str:
    past = report["history"]
    highest = max((h["events"] for h in past), default=0) or 1
    rows = [
        [escape(h["arrival"]), _bar(h["events"] / highest), _number(h["events"]), _number(h["quarantined"])]
        for h in past
    ]
    heads = ["arrival", "", "events", "quarantined"]
    return _table("history", "Arrivals so far", f"Per arrival, the last {len(past)}.", heads, rows)


def _reasons(report: Report) -> str:
    rows = [
        [escape(reason), _number(n), _share(n / report["rows"] if report["rows"] else None)]
        for reason, n in report["reasons"].items()
    ]
    about = f"Per arrival. A batch with more than {report['max_bad_share']:.2%} refused rows is refused whole."
    return _table("reasons", "Quarantine by reason", about, ["reason", "rows", "share of rows"], rows)


def _days(report: Report) -> str:
    rows = []
    for day in report["event_days"]:
        rate = day["positive"] / day["labelled"] if day["labelled"] else None
        late = "late" if day["late"] else ""
        rows.append([escape(day["ds"]), _number(day["events"]), late, _number(day["events_so_far"]), _share(rate)])
    about = "Per event day (UTC) of this arrival's events; so far: with those of all arrivals up to this one."
    heads = ["event day", "events", "", "events so far", "share of labels that are 1"]
    return _table("days", "Event days", about, heads, rows)


def _spread(report: Report) -> str:
    spread = report["events_per_user"] or {}
    rows = [[name, _number(spread[name])] for name in _SPREAD if name in spread]
    about = "Per arrival, over its users; p90: nine of ten users have at most so many events."
    return _table("spread", "Events per user", about, ["", "events"], rows)


def _fields(report: Report) -> str:
    rows = []
    for f in report["fields"]:
        drift, distinct = f["drift"], f["sketch"]["distinct"]
        level = f'<span class="{escape(f["level"])}">{escape(f["level"])}</span>' if f["level"] else "–"
        rows.append(
            [
                escape(_name(f)),
                escape(f["source"]),
                escape(f["kind"]),
                _number(f["rows"]),
                _share(f["missing_rate"]),
                _share(f["missing_rate_before"]),
                _number(distinct),
                _psi_bar(f["psi"]),
                _number(f["psi"]),
                _number(drift["chance"] if drift else None),
                level,
            ]
        )
    about = (
        "Log fields (events) per arrival, side fields per snapshot of their file. Drift: population stability index "
        f"against the arrival before; moderate from {PSI_MODERATE}, large from {PSI_LARGE} on (the lines), unclear "
        "where chance alone makes it as large with so few rows."
    )
    heads = ["field", "source", "kind", "rows", "missing", "before", "values", "", "drift", "by chance", "level"]
    return _table("fields", "Fields", about, heads, rows)


def _distribution(f: Report) -> str:
    """One field's bins on both days; of a field without a comparison its own."""
    drift, sketch = f["drift"], f["sketch"]
    if drift is not None:
        bins, now, then = drift["bins"], drift["current"], drift["reference"]
        about = "Counts and shares in the bins of the arrival before (upper bar: this arrival)."
    else:
        bins, now, then = _own_bins(sketch)
        about = "Counts and shares; there is nothing to compare them with."
    total, total_then = sum(now) or 1, sum(then) or 1
    rows = [
        [
            escape(name) if name else "(empty list)",
            _bar(a / total, b / total_then if drift is not None else None),
            _number(a),
            _share(a / total),
            *([_number(b), _share(b / total_then)] if drift is not None else []),
        ]
        for name, a, b in zip(bins, now, then, strict=True)
    ]
    heads = ["value", "", "this arrival", "share", *(["before", "share"] if drift is not None else [])]
    title = f"{_name(f)} ({f['source']})"
    anchor = f"field-{f['source']}-{f['column']}"
    return f"<details><summary>{escape(title)}</summary>{_grid(anchor, about, heads, rows)}</details>"


def _own_bins(sketch: Report) -> tuple[Sequence[str], Sequence[int], Sequence[int]]:
    from featurize.profile_rows import sketch_of

    own = sketch_of({"sketch": sketch})
    return own.bins, own.tally, own.tally


def _lineage(report: Report) -> str:
    known = {k: report[k] for k in ("key", "inputs", "outputs", "run_id", "code_version", "published_at")}
    text = escape(json.dumps(known, indent=2, ensure_ascii=False, sort_keys=True))
    return f"<details><summary>Lineage</summary><pre>{text}</pre></details>"


def _name(field: Report) -> str:
    return "event type" if field["column"] == "type" else str(field["column"]).removeprefix("f_")


def _table(anchor: str, title: str, about: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    grid = _grid(anchor, about, heads, rows)
    return f'<section aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{escape(title)}</h2>\n{grid}</section>'


def _grid(anchor: str, about: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `heads` are text, the cells of `rows` are HTML; columns with figures are set flush right."""
    right = [' class="number"' if any(row[i].startswith("<data") for row in rows) else "" for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{side}>{escape(h)}</th>' if h else "<td></td>" for h, side in zip(heads, right, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(row[1:], right[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(anchor)}" tabindex="0"><table id="{escape(anchor)}">'
        f"<caption>{escape(about)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _bar(share: float, other: float | None = None) -> str:
    """A bar of `share` of the width; below it a thinner one of `other`."""
    bars = f'<rect class="now" y="2" width="{100 * share:.2f}%" height="8"/>'
    if other is not None:
        bars += f'<rect class="then" y="12" width="{100 * other:.2f}%" height="4"/>'
    return f'<svg aria-hidden="true" width="100%" height="18">{bars}</svg>'


def _psi_bar(psi: float | None) -> str:
    """The index on a scale that ends at twice PSI_LARGE, with a line at either threshold."""
    if psi is None:
        return ""
    end = 2 * PSI_LARGE
    lines = "".join(
        f'<line x1="{100 * t / end:.0f}%" x2="{100 * t / end:.0f}%" y1="0" y2="18"/>' for t in (PSI_MODERATE, PSI_LARGE)
    )
    bar = f'<rect class="now" y="5" width="{100 * min(psi / end, 1):.2f}%" height="8"/>'
    return f'<svg aria-hidden="true" width="100%" height="18">{bar}{lines}</svg>'


def _number(value: float | None) -> str:
    """Whole numbers in full, others with four digits."""
    if value is None:
        return "–"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f'<data value="{value}">{shown.replace("-", "−")}</data>'


def _share(value: float | None) -> str:
    return "–" if value is None else f'<data value="{value}">{value:.2%}</data>'


#: The daily report's colours and type; bars are drawn in percent of their cell.
_STYLE = """
:root { --page: #fbfbfa; --card: #ffffff; --ink: #1c2024; --soft: #5d656e; --rule: #d9dde1;
  --accent: #1f5fa8; --wait: #855400; --bad: #a3262a; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #a3abb3; --rule: #353b42;
    --accent: #7db4f0; --wait: #e6b655; --bad: #f2908f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.25rem 0 .25rem; font-size: 1.15rem; }
header p { margin: .25rem 0 0; color: var(--soft); }
.warnings { margin: .75rem 0 0; padding: .75rem 1rem .75rem 2rem; background: var(--card);
  border: 1px solid var(--rule); border-left: .3rem solid var(--wait); border-radius: .4rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .925rem; overflow-wrap: normal; }
caption { margin-bottom: .5rem; max-width: 44rem; color: var(--soft); text-align: left; overflow-wrap: anywhere; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: middle; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
td:has(svg) { width: 25%; min-width: 6rem; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { min-width: 6rem; max-width: 20rem; font-weight: 500; overflow-wrap: anywhere; }
th:first-child { padding-left: 0; }
.number { text-align: right; }
svg { display: block; }
.now { fill: var(--accent); }
.then { fill: var(--soft); }
line { stroke: var(--soft); stroke-dasharray: 3 3; }
.moderate { color: var(--wait); }
.large { color: var(--bad); font-weight: 600; }
.unclear { color: var(--soft); }
details { margin-top: .75rem; }
summary { font-weight: 600; cursor: pointer; }
section + details { margin-top: 1.5rem; }
pre { padding: .75rem 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: .4rem; font-size: .85rem; }
"""
