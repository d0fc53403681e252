"""What a person reads at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.data import COUNTS
from pipelines.run import Outcome

_SHOWN = {
    "retrieval": (
        "history_removed/hr_at_20",
        "history_removed/ndcg_at_20",
        "all_items/hr_at_20",
        "all_items/ndcg_at_20",
        "catalogue_coverage",
        "category_count",
        "targets_unseen_share",
    ),
    "ranking": ("auc", "uauc", "log_loss"),
}


def show(outcome: Outcome, truth: Mapping[str, Any] | None = None) -> None:
    """Print tables, metrics, versions, aliases and the report's path."""
    console = Console(highlight=False, soft_wrap=True)
    if outcome.idle:
        console.print("Everything was already published: no work was done.")
    console.print(f"Run date {outcome.day}, run {outcome.run_id}")
    console.print(_tables(outcome))
    _rows(console, outcome, truth)
    for model in outcome.models:
        console.print(_metrics(model))
        alias = model.get("alias", "not decided")
        console.print(f"{model['name']} version {model['version']}: {alias}", markup=False)
        for reason in model.get("reasons", []):
            console.print(f"  {model.get('verdict')}: {reason}", markup=False)
    if outcome.report:
        console.print(f"Report: {outcome.report}", markup=False)
    if (data := outcome.data_report) is not None:
        console.print(f"Data report: {data['page'] or data['error']} ({len(data['warnings'])} warnings)", markup=False)


def _tables(outcome: Outcome) -> Table:
    table = Table("table", "version", "rows", title="Tables", title_justify="left")
    for name, entry in outcome.tables.items():
        table.add_row(name, str(entry["version"]), f"{entry['rows']:,}")
    return table


def _rows(console: Console, outcome: Outcome, truth: Mapping[str, Any] | None) -> None:
    accounts = [s["report"] for s in outcome.stages if s["unit"] == "events"]
    found = {c: sum(a[c] for a in accounts) for c in COUNTS}
    console.print("Rows: " + ", ".join(f"{c} {n:,}" for c, n in found.items()), markup=False)
    if truth is not None:
        planted = {
            **{c: truth[c] for c in COUNTS if c != "quarantined"},
            "quarantined": sum(truth["quarantined"].values()),
        }
        same = all(planted[c] == found[c] for c in COUNTS)
        console.print(f"Planted by the simulator: {'found exactly' if same else f'DIFFERENT: {planted}'}", markup=False)


def _metrics(model: Mapping[str, Any]) -> Table:
    labels = list(model["metrics"])
    heads = [f"{m} (candidate)" if m == model["candidate"] else m for m in labels]
    table = Table("metric", *heads, title=f"{model['name']}, test split, {model['split']}", title_justify="left")
    for metric in _SHOWN[model["role"]]:
        if metric in model["metrics"][model["candidate"]]:
            table.add_row(metric, *(f"{model['metrics'][m][metric]:.4f}" for m in labels))
    return table
