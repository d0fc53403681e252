"""The day's report: decisions, figures with intervals, the account of the rows, lineage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from evaluate.decision.gate import Decision
from evaluate.decision.statistics import mean_interval
from evaluate.publish.plots import Trend
from evaluate.publish.report import Intervals, Report, Section
from evaluate.settings import MissingnessSettings
from pipelines import comparison_report
from pipelines.context import Context
from pipelines.data import COUNTS, Data
from pipelines.missingness_report import curves, in_table, without_fields
from pipelines.roles import Role, roles


def build(
    ctx: Context,
    data: Data,
    decisions: Mapping[str, Decision],
    models: list[dict[str, Any]],
    tables: Mapping[str, Mapping[str, int]],
) -> Report:
    """Everything on the page comes from the ledger and the evaluation's files."""
    found = {r.name: r for r in roles(ctx.recipe)}
    folders = {s.unit: str(s.outputs["folder"]) for s in ctx.steps if s.unit.startswith("evaluate:")}
    parts = [(model, found[model["role"]], folders[f"evaluate:{model['role']}"]) for model in models]
    return Report(
        title=f"logs2rec: {ctx.recipe.name}",
        run_date=data.day,
        decisions=decisions,
        sections=[
            *(section for m in models for section in comparison_report.beside(ctx, m)),
            *(comparison_report.slices(ctx, *part) for part in parts),
            *(_metrics(ctx, m) for m in models),
            *_robustness(ctx, models),
            _accounts(ctx),
            _missing(ctx),
            _units(ctx),
        ],
        intervals=[
            *(_intervals(ctx, role, folder) for _, role, folder in parts),
            *(plot for m, role, _ in parts for plot in comparison_report.differences(ctx, m, role)),
        ],
        trends=[
            *(plot for m, asked in _tried(ctx, models) for plot in curves(m, asked)),
            *(plot for m in models for plot in health_trends(ctx, m, found[m["role"]])),
        ],
        lineage={t: (v["version"], v["rows"]) for t, v in tables.items()},
        configuration={"recipe": ctx.recipe.model_dump(mode="json"), "contract": ctx.contract.model_dump(mode="json")},
    )


def _metrics(ctx: Context, model: Mapping[str, Any]) -> Section:
    labels = list(model["metrics"])
    rows = [
        [metric, *(_figure(metric, model["metrics"][m][metric]) for m in labels)]
        for metric in model["metrics"][labels[0]]
        if model["role"] == "retrieval" or in_table(metric)
    ]
    about = (
        "Whole catalogue, one target per user, means over users; all_items ranks every item, history_removed leaves "
        "out what the user has had (and users whose target is among it)."
        if model["role"] == "retrieval"
        else "Observed labels. uauc: mean of the AUC of each user that has both labels."
    )
    split = split_of(ctx, str(model["role"]))
    started = "".join(_started(ctx, f"train:{model['role']}:{label}", label) for label in labels)
    return Section(
        f"{model['name']}: version {model['version']}", f"Split: {split}. {about}{started}", ["metric", *labels], rows
    )


def _tried(ctx: Context, models: list[dict[str, Any]]) -> list[tuple[dict[str, Any], MissingnessSettings]]:
    """The ranking models that were also measured with fields removed, and how."""
    asked = ctx.recipe.ranking.evaluation.missingness if ctx.recipe.ranking else None
    return [(model, asked) for model in models if model["role"] == "ranking" and asked is not None]


def _robustness(ctx: Context, models: list[dict[str, Any]]) -> list[Section]:
    rates: Mapping[str, float] = next((s.report["missing_rates"] for s in ctx.steps if s.unit == "samples"), {})
    return [without_fields(model, [*rates]) for model, asked in _tried(ctx, models) if asked.fields]


def _started(ctx: Context, unit: str, label: str) -> str:
    """What a model that asked for the champion's weights started from; nothing of a fresh one."""
    report = next((s.report for s in ctx.steps if s.unit == unit), {})
    if "started_from" not in report:
        return ""
    champion = report["started_from"]
    if champion is None:
        return f" {label} started fresh: there was no champion of an earlier day."
    return f" {label} started from version {champion['version']} of {champion['run_date']}."


def split_of(ctx: Context, role: str) -> str:
    """The split behind a role's figures, in words."""
    if role == "ranking":
        return ctx.recipe.samples.split
    leave_one_out = "leave_one_out (for comparison with papers, not for decisions on traffic)"
    return leave_one_out if ctx.recipe.sequences.split == "leave_one_out" else ctx.recipe.sequences.split


def _figure(metric: str, value: float) -> float | int:
    """Counts as whole numbers."""
    return int(value) if metric in ("users", "targets_in_history", "impressions") else value


def _intervals(ctx: Context, role: Role, folder: str) -> Intervals:
    table = pq.read_table(ctx.workspace / folder / "per_user.parquet", filters=[("slice", "=", "")])
    rows = []
    for run in role.models:
        values = table.filter(pc.equal(table["model"], run.label))["value"].to_numpy()
        rows.append((run.label, mean_interval(values, role.gate.seed)))
    rows += comparison_report.champion_interval(ctx, role)
    about = "Mean over users with its 95 % bootstrap interval over users."
    return Intervals(f"{ctx.recipe.name}.{role.name}: {role.gate.metric}", about, rows)


_HEALTH = {
    "embedding_variance": "variance",
    "embedding_mean_cosine": "mean cosine",
    "embedding_isotropy": "isotropy",
    "embedding_kl_gaussian": "KL to a round Gaussian, nats",
}


def health_trends(ctx: Context, model: Mapping[str, Any], role: Role) -> list[Trend]:
    """How the item table of each model that learns one was spread at its validations; of a model of an older program
    nothing is known."""
    about = (
        "Of the item table at each validation. A mean cosine that climbs towards 1, or an isotropy (smallest over "
        "largest spread of a direction) that falls towards 0 while the KL climbs, is a collapse: items lie in few "
        "directions and are hard to tell apart. Dashed line: the epoch whose weights were kept."
    )
    trends = []
    for run in role.models:
        report = next((s.report for s in ctx.steps if s.unit == f"train:{role.name}:{run.label}"), {})
        if past := report.get("validations", []):
            metric = next(name for name in past[0] if name.startswith("valid_"))
            names = {**_HEALTH, metric: metric.removeprefix("valid_").replace("_", "@").upper() + ", validation"}
            lines = [(words, [entry[name] for entry in past]) for name, words in names.items()]
            epochs = [entry["epoch"] for entry in past]
            trends.append(
                Trend(f"Embedding health: {model['name']}, {run.label}", about, epochs, lines, report["best_epoch"])
            )
    return trends


def _accounts(ctx: Context) -> Section:
    rows = []
    for step in ctx.steps:
        if step.unit == "events":
            reasons = ", ".join(f"{r} {n}" for r, n in step.report["reasons"].items()) or "none"
            rows.append([step.date, *(step.report[c] for c in COUNTS), reasons])
    about = "rows = events + duplicates + quarantined, per arrival; late ones are events of an earlier day."
    return Section("Rows", about, ["arrival", *COUNTS, "quarantine reasons"], rows)


def _missing(ctx: Context) -> Section:
    rates: Mapping[str, float] = next((s.report["missing_rates"] for s in ctx.steps if s.unit == "samples"), {})
    return Section(
        "Missing features",
        "Share of the training samples in which the field is absent or null in the log.",
        ["field", "missing"],
        [[field, rate] for field, rate in rates.items()],
    )


def _units(ctx: Context) -> Section:
    rows = [[s.unit, s.date, s.status, s.seconds] for s in ctx.steps]
    return Section("Stages", "What this run did.", ["unit", "date", "status", "seconds"], rows)
