"""The daily run: every stage that is not published yet, in order, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from evaluate.decision.gate import Decision
from pipelines.context import Context
from pipelines.daily_report import build, split_of
from pipelines.data import Data
from pipelines.data_report import outcome as data_report
from pipelines.data_stages import run_data
from pipelines.model_stages import run_models
from pipelines.roles import roles

DATA_STAGES = ("events", "vocabularies", "histories", "sequences", "samples")
STAGES = (*DATA_STAGES, "train", "evaluate", "register", "promote")


@dataclass(frozen=True)
class Outcome:
    """What a run did and where things stand; `as_json` is the command's last line under --json."""

    day: str
    run_id: str
    stages: list[dict[str, Any]]
    tables: dict[str, dict[str, int]]
    models: list[dict[str, Any]]
    report: str | None
    data_report: dict[str, Any] | None = None
    """The last arrival's data report: its page, warnings, and the error that kept it from being written."""

    @property
    def held(self) -> list[str]:
        """Registered names whose candidate is not the champion."""
        return [m["name"] for m in self.models if m.get("alias") == "challenger"]

    @property
    def idle(self) -> bool:
        """Nothing was left to do."""
        return all(s["status"] == "skipped" for s in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "nothing_to_do": self.idle, "held": self.held}


def run(ctx: Context) -> Outcome:
    """Carry out the run, or the one stage that `ctx.only` names."""
    data = run_data(ctx, until=ctx.only if ctx.only in DATA_STAGES else None)
    ctx.stop_spark()
    decisions = {} if ctx.only in DATA_STAGES else run_models(ctx, data)
    models = _models(ctx, decisions)
    tables = _tables(ctx, data)
    report = _report(ctx, data, decisions, models, tables) if decisions else None
    return Outcome(data.day, ctx.run_id, _stages(ctx), tables, models, report, data_report(ctx))


def _stages(ctx: Context) -> list[dict[str, Any]]:
    """Every unit of the run: what it published, and the rows of the tables among that."""
    rows: dict[tuple[str, int], int] = {}
    out = []
    for step in ctx.steps:
        versions = {t: int(v) for t, v in step.outputs.items() if isinstance(v, int)}
        for table, version in versions.items():
            if (table, version) not in rows:
                rows[table, version] = ctx.lake.dataset(table, version).count_rows()
        out.append({**asdict(step), "versions": versions, "rows": {t: rows[t, v] for t, v in versions.items()}})
    return out


def _tables(ctx: Context, data: Data) -> dict[str, dict[str, int]]:
    """table -> its pinned version and the rows in it."""
    return {
        table: {"version": version, "rows": ctx.lake.dataset(table, version).count_rows()}
        for table, version in sorted(data.versions.items())
    }


def _models(ctx: Context, decisions: dict[str, Decision]) -> list[dict[str, Any]]:
    """Per registered name: version, alias, decision, and the metrics of candidate and baselines."""
    steps = {s.unit: s for s in ctx.steps}
    out = []
    for role in roles(ctx.recipe):
        registered, evaluated = steps.get(f"register:{role.name}"), steps.get(f"evaluate:{role.name}")
        if registered is None or evaluated is None:
            continue
        name, version = registered.report["name"], str(registered.outputs["version"])
        decision = decisions.get(name)
        model = {
            "name": name,
            "role": role.name,
            "split": split_of(ctx, role.name),
            "candidate": role.candidate.label,
            "version": version,
            "mlflow_run_id": registered.report["run_id"],
            "metrics": {run.label: evaluated.report["metrics"][run.label] for run in role.models},
        }
        if decision is not None:
            model |= {"verdict": decision.verdict.value, "reasons": list(decision.reasons)}
            model["alias"] = _alias(ctx, name, version)
        out.append(model)
    return out


def _alias(ctx: Context, name: str, version: str) -> str:
    """champion, or challenger when the gate held it or somebody rolled it back since."""
    from evaluate.publish.registry import CHAMPION

    return "champion" if ctx.store().alias(name, CHAMPION) == version else "challenger"


def _report(
    ctx: Context,
    data: Data,
    decisions: dict[str, Decision],
    models: list[dict[str, Any]],
    tables: dict[str, dict[str, int]],
) -> str:
    """The day's page; written again only when something was done."""
    from evaluate.publish.report import write_report

    path = ctx.workspace / "reports" / data.day / "report.html"
    if path.exists() and all(s.status == "skipped" for s in ctx.steps):
        return str(path)
    write_report(path, build(ctx, data, decisions, models, tables))
    for model in models:
        ctx.store().attach(model["mlflow_run_id"], path)
    return str(path)
