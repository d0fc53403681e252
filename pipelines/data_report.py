"""The data report: for which arrivals it is published, what each stands on, and where its files lie.

It is computed from published tables only, so whoever runs it sees the same figures. In a run it must not
stand in the way of training: `attempt` prints an error and goes on, `build` raises it.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from featurize import profile, profile_rows
from featurize.data_warnings import warnings
from featurize.profile_rows import EVENTS
from featurize.sketch import TOP_VALUES
from infra.ledger import Published, key_of
from infra.tables import PROFILES
from pipelines.context import Context, Step
from pipelines.data import Data
from pipelines.known_arrivals import KnownArrivals

UNIT = "data_report"
CONFIG = {"format": 1, "top_values": TOP_VALUES}
"""Part of the ledger's key: raise `format` when a figure's meaning changes."""
BATCH = 31
"""Arrivals counted in one set of Spark jobs."""
HISTORY = 30
"""Arrivals that a report looks back on."""
COUNTED = (*profile.ACCOUNT, "users", "items", "new_users", "new_items", "label_rate")

_TEXT = ("arrival", "largest drift")
_WIDTH = 140  # columns of the table: cut in the middle it would not be one


@dataclass(frozen=True)
class DataReport:
    """One arrival's report, as in its data.json, and its page."""

    content: Mapping[str, Any]
    page: Path


def attempt(ctx: Context, data: Data) -> None:
    """`build`, of whose failure a run only tells: on stderr, and as a step with the status `failed`."""
    try:
        build(ctx, data)
    except Exception as error:
        traceback.print_exc()
        words = f"{type(error).__name__}: {error}"
        ctx.progress.console.print(f"{UNIT} failed ({words}); the run goes on without it", markup=False)
        ctx.steps.append(Step(UNIT, data.arrivals[-1], "failed", {}, {"error": words}, 0.0))


def outcome(ctx: Context) -> dict[str, Any] | None:
    """What became of the last arrival's report in this command; None when it was not asked for."""
    step = next((s for s in reversed(ctx.steps) if s.unit == UNIT), None)
    if step is None:
        return None
    if step.status == "failed":
        return {"page": None, "warnings": [], "error": step.report["error"]}
    return {"page": str(_folder(ctx, step.date) / "data.html"), "warnings": step.report["warnings"], "error": None}


def build(ctx: Context, data: Data) -> list[DataReport]:
    """Publish the report of every arrival that has none; returns those from --from on, their files written."""
    published = _publish(ctx, data)
    pairs = zip(published, [None, *published[:-1]], strict=True)
    return [_files(ctx, row, before) for row, before in pairs if ctx.first is None or row.date >= ctx.first]


def _publish(ctx: Context, data: Data) -> list[Published]:
    """Each arrival's report is chained to the one before it, as its events are."""
    events = _event_rows(ctx, data)
    snapshots = profile.snapshots(ctx.lake, ctx.contract, data.versions, data.arrivals)
    batch = _Batch(ctx, data)
    rows: list[Published] = []
    for arrival in data.arrivals:
        before = rows[-1] if rows else None
        inputs = {
            "events": events[arrival].key,
            "snapshots": snapshots[arrival],
            "previous": before.key if before is not None else None,
        }
        found = ctx.ledger.find(key_of(UNIT, arrival, inputs, CONFIG))
        if found is None or ctx.first is None or arrival >= ctx.first:
            found = ctx.publish(UNIT, arrival, inputs, CONFIG, partial(batch.work, arrival, before))
        rows.append(found)
    return rows


def _event_rows(ctx: Context, data: Data) -> dict[str, Published]:
    """The ledger's row of each arrival's events: the one this command stands on, or the one it left as it is."""
    mine = {s.date: dict(s.outputs) for s in ctx.steps if s.unit == EVENTS}
    rows = {r.date: r for r in ctx.ledger.rows() if r.unit == EVENTS and dict(r.outputs) == mine.get(r.date)}
    known = KnownArrivals(ctx)
    for arrival in data.arrivals:
        if arrival not in rows and (row := known.newest(arrival)) is not None:
            rows[arrival] = row
    return rows


class _Batch:
    """Counts the arrivals that are asked for, and up to BATCH that follow (none of them is published either)."""

    def __init__(self, ctx: Context, data: Data) -> None:
        self.ctx, self.data = ctx, data
        self.measured: dict[str, profile.Measured] = {}

    def work(self, arrival: str, before: Published | None) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """(outputs, report) of one arrival."""
        if arrival not in self.measured:
            self._measure(arrival, before)
        measured = self.measured[arrival]
        figures = measured.figures[arrival]
        lake = self.ctx.lake
        now = {**figures, "fields": profile_rows.fields(lake, measured.versions[PROFILES.name], arrival)}
        then, history = None, []
        if before is not None:
            old = profile_rows.fields(lake, before.version(PROFILES.name), before.date)
            then, history = {**before.report, "fields": old}, before.report["history"]
        report = {
            **figures,
            "previous": before.date if before is not None else None,
            "warnings": warnings(now, then, self.ctx.contract.rules.max_bad_share),
            "history": [*history, {"arrival": arrival, **{c: figures[c] for c in COUNTED}}][-HISTORY:],
        }
        return measured.versions, report

    def _measure(self, arrival: str, before: Published | None) -> None:
        position = self.data.arrivals.index(arrival)
        arrivals = self.data.arrivals[position : position + BATCH]
        start = None
        if before is not None:
            versions = {t: int(v) for t, v in before.outputs.items()}
            snapshots = before.report["snapshots"]
            start = profile.Before(before.date, self.data.arrivals[:position], versions, snapshots)
        metadata = self.ctx.metadata(UNIT, {t: self.data.versions[t] for t in sorted(self.data.versions)})
        spark, lake, contract = self.ctx.spark(), self.ctx.lake, self.ctx.contract
        measured = profile.measure(spark, lake, contract, self.data.versions, arrivals, start, metadata)
        self.measured |= dict.fromkeys(arrivals, measured)


def _folder(ctx: Context, arrival: str) -> Path:
    return ctx.workspace / "reports" / arrival


def _files(ctx: Context, row: Published, before: Published | None) -> DataReport:
    """data.json and data.html as the ledger says; what is there already is left as it is."""
    from evaluate.publish.data_page import write_data_report

    folder = _folder(ctx, row.date)
    content = _known(folder, row.key)
    if content is None:
        content = _content(ctx, row, before)
        write_data_report(folder, content)
    return DataReport(content, folder / "data.html")


def _known(folder: Path, key: str) -> dict[str, Any] | None:
    """The report in the folder, if it is the one with that key and its page is there."""
    try:
        content: dict[str, Any] = json.loads((folder / "data.json").read_bytes())
        return content if content["key"] == key and (folder / "data.html").is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(ctx: Context, row: Published, before: Published | None) -> dict[str, Any]:
    """The whole report: the ledger's figures with those of the columns."""
    fields = profile_rows.fields(ctx.lake, row.version(PROFILES.name), row.date)
    old: list[dict[str, Any]] = []
    if before is not None:
        old = profile_rows.fields(ctx.lake, before.version(PROFILES.name), before.date)
    earlier = {(f["source"], f["column"]): _rate(f) for f in old}
    for field in fields:
        del field["arrival"], field["position"]
        field["missing_rate"] = _rate(field)
        field["missing_rate_before"] = earlier.get((field["source"], field["column"]))
    return {
        "name": ctx.recipe.name,
        "arrival": row.date,
        **row.report,
        "max_bad_share": ctx.contract.rules.max_bad_share,
        "fields": fields,
        "key": row.key,
        "inputs": dict(row.inputs),
        "outputs": dict(row.outputs),
        "published_at": row.published_at.isoformat(timespec="seconds"),
        "run_id": row.run_id,
        "code_version": row.code_version,
    }


def _rate(field: Mapping[str, Any]) -> float | None:
    return field["missing"] / field["rows"] if field["rows"] else None


def show(reports: Sequence[DataReport]) -> None:
    """A short table, the last arrival's warnings, and where its page is."""
    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, _WIDTH))
    if not reports:
        console.print("There is no arrival from --from on.")
        return
    heads = ("arrival", *(c for c in COUNTED if c not in ("users", "items", "label_rate")), "largest drift", "warnings")
    table = Table(title="Data report", title_justify="left", box=SIMPLE)
    for head in heads:
        table.add_column(head.replace("_", " "), no_wrap=True, justify="left" if head in _TEXT else "right")
    for report in reports:
        c = report.content
        table.add_row(c["arrival"], *(f"{c[h]:,}" for h in heads[1:-2]), _largest(c), str(len(c["warnings"])))
    console.print(table)
    for sentence in reports[-1].content["warnings"]:
        console.print(f"  {sentence}", markup=False)
    console.print(f"Page: {reports[-1].page}", markup=False)


def _largest(content: Mapping[str, Any]) -> str:
    """The column with the largest index, and its level."""
    compared = [f for f in content["fields"] if f["psi"] is not None]
    if not compared:
        return "-"
    worst = max(compared, key=lambda f: f["psi"])
    return f"{worst['column'].removeprefix('f_')} {worst['psi']:.3f} {worst['level']}"
