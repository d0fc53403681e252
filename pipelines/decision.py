"""The gate's decision on a registered version, from the figures that are stored of it and the champion's of today, and
what follows from it: the record first, the alias last."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from evaluate.decision.gate import Decision, Evidence, Verdict, decide
from evaluate.decision.slices import Slice
from evaluate.decision.statistics import mean_interval
from evaluate.settings import COMMON
from featurize import vocabularies
from infra.errors import UsageError
from infra.ledger import Published
from infra.tables import FIELD_VALUES, FIRST_INDEX, ITEMS
from pipelines.context import Context
from pipelines.data import Data
from pipelines.roles import Role, Scores


@dataclass(frozen=True)
class Will:
    """What a person adds to the gate: a reason to promote what it held, or to agree where `gate.approval` asks."""

    force: str | None = None
    approve: str | None = None


@dataclass(frozen=True)
class Carried:
    """A decision, whether the alias moved, and what was compared (JSON, for the report)."""

    decision: Decision
    moved: bool
    compared: Mapping[str, Any]


def data_of(registered: Published) -> Data:
    """The data that a registered version was evaluated on."""
    kept = registered.report["data"]
    return Data(kept["versions"], (kept["arrival"],), kept["day"])


def item_keys(ctx: Context, data: Data) -> list[str]:
    """Today's item keys in index order, from FIRST_INDEX on."""
    versions = {t: data.versions[t] for t in (ITEMS.name, FIELD_VALUES.name)}
    keys: list[str] = vocabularies.read(ctx.lake, versions, data.arrivals[-1])[vocabularies.ITEM]["key"].to_pylist()
    return keys


def promote(ctx: Context, data: Data, role: Role, evaluated: Published, registered: Published) -> Decision:
    """The gate's decision on a registered version, carried out once: alias, promotions row, ledger row."""
    inputs = {"version": registered.outputs["version"], "registered": registered.key}

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        done = decide_and_move(ctx, data, role, evaluated, registered, Will())
        report = {"reasons": list(done.decision.reasons), "compared": done.compared}
        return {"verdict": done.decision.verdict.value}, report

    row = ctx.publish(f"promote:{role.name}", data.day, inputs, role.gate.model_dump(mode="json"), work)
    return Decision(Verdict(row.outputs["verdict"]), tuple(row.report["reasons"]))


def decide_and_move(
    ctx: Context, data: Data, role: Role, evaluated: Published, registered: Published, will: Will
) -> Carried:
    """Compare with the champion on today's data, record the decision, and move the alias last.

    Raises UsageError when a rejected version is to be forced: it does not work.
    """
    from evaluate.publish import promotions
    from evaluate.publish.registry import CHAMPION, PREVIOUS

    name, version = f"{ctx.recipe.name}.{role.name}", str(registered.outputs["version"])
    store = ctx.store()
    before = store.alias(name, CHAMPION)
    candidate = str(evaluated.report["candidate"])
    evidence = _evidence(ctx, data, role, evaluated, registered)
    champion: Evidence | None = None
    compared: dict[str, Any] = {}
    if before is not None and before != version:
        with tempfile.TemporaryDirectory() as into:
            artifacts = [store.artifact(name, v, Path(into) / v) for v in (version, before)]
            champion, compared = _champion(ctx, data, role, before, *artifacts)
    elif before == version:
        champion = Evidence(before, **_plain(evidence[candidate]))
    baselines = {label: e for label, e in evidence.items() if label != candidate}
    decision = decide(evidence[candidate], champion, baselines, role.gate)
    action, reasons = _action(decision, role, will, before == version)
    reasons += _moved_by_hand(promotions.history(ctx.lake, name), before)
    promotions.record(
        ctx.lake,
        name=name,
        action=action,
        from_version=before,
        to_version=version,
        reasons=reasons,
        run_id=ctx.run_id,
    )
    moved = action in promotions.MOVES
    if moved:
        if before is not None:
            store.move_alias(name, PREVIOUS, before)
        store.move_alias(name, CHAMPION, version)
    if will.force is not None and decision.verdict is Verdict.REJECT:
        raise UsageError(f"--force: {name} version {version} is rejected, not held ({'; '.join(decision.reasons)})")
    decided = Decision(decision.verdict, tuple(reasons), decision.difference, decision.slices)
    return Carried(decided, moved, {**compared, **_told(decision)})


def _action(decision: Decision, role: Role, will: Will, is_champion: bool) -> tuple[str, list[str]]:
    """What the record calls it, and the reasons."""
    reasons = list(decision.reasons)
    if decision.verdict is Verdict.PROMOTE and role.gate.approval:
        if will.approve is None:
            return "await_approval", [*reasons, "gate.approval: a person has to agree: logs2rec promote --approve WHY"]
        return "promote", [*reasons, f"approved: {will.approve}"]
    if decision.verdict is Verdict.HOLD and will.force is not None and not is_champion:
        return "force", [f"forced: {will.force}", *reasons]
    return decision.verdict.value, reasons


def _moved_by_hand(history: list[dict[str, Any]], champion: str | None) -> list[str]:
    from evaluate.publish.promotions import recorded_champion

    recorded = recorded_champion(history)
    if recorded == champion:
        return []
    return [f"the alias champion was on version {champion}, the record says {recorded}: somebody moved it by hand"]


def _champion(
    ctx: Context, data: Data, role: Role, version: str, candidate: Path, champion: Path
) -> tuple[Evidence, dict[str, Any]]:
    """The champion on today's data; where its catalogue is another, both also on what they have in common."""
    from train.artifact import item_vocabulary

    items = item_keys(ctx, data)
    shared, larger = sorted(item_vocabulary(artifact)[1] for artifact in (candidate, champion))
    common = FIRST_INDEX + shared if role.name == "retrieval" and shared < larger else None
    scores = role.score(champion, ctx.lake, ctx.contract, data, items, common)
    interval = mean_interval(scores.per_user, role.gate.seed)
    compared: dict[str, Any] = {
        "champion": version,
        "champion_metrics": _finite(scores.metrics),
        "champion_interval": _numbers(interval.low, interval.estimate, interval.high),
    }
    if common is not None:
        ours = role.score(candidate, ctx.lake, ctx.contract, data, items, common).metrics
        compared["common_catalogue"] = {
            "items": shared,
            "candidate": _finite({name: ours[name] for name in ours if name.startswith(COMMON)}),
            "champion": _finite({name: scores.metrics[name] for name in ours if name.startswith(COMMON)}),
        }
    return _evidence_of(version, scores, role, data), compared


def _told(decision: Decision) -> dict[str, Any]:
    """The comparisons as JSON."""
    if decision.difference is None:
        return {}
    relative = decision.difference.relative
    slices = [
        {
            "slice": part.name, "users": part.users, "candidate": part.candidate, "champion": part.champion,
            "relative": _numbers(part.relative.low, part.relative.estimate, part.relative.high), "p": part.p,
        }
        for part in decision.slices
    ]  # fmt: skip
    return {"relative": _numbers(relative.low, relative.estimate, relative.high), "slices": slices}


def _numbers(*values: float) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return dict(zip(metrics, _numbers(*metrics.values()), strict=True))


def _plain(evidence: Evidence) -> dict[str, Any]:
    return {name: getattr(evidence, name) for name in ("metrics", "per_user", "users", "slices", "scored_on")}


def _evidence_of(version: str, scores: Scores, role: Role, data: Data) -> Evidence:
    # As the stored evidence of the candidate has them.
    slices = {name: Slice(_texts(users), values) for name, (users, values) in scores.slices.items()}
    return Evidence(
        version, scores.metrics, scores.per_user, _texts(scores.users), slices=slices, scored_on=role.scored_on(data)
    )


def _texts(users: Any) -> Any:
    return np.asarray([str(user) for user in users], dtype=object)


def _evidence(ctx: Context, data: Data, role: Role, evaluated: Published, registered: Published) -> dict[str, Evidence]:
    """What the evaluation stored of every model; the candidate's with its checks."""
    table = pq.read_table(ctx.workspace / str(evaluated.outputs["folder"]) / "per_user.parquet")
    if "slice" not in table.column_names:
        raise UsageError(
            f"{evaluated.unit}: was evaluated by an older program, without slices; run `logs2rec run` first"
        )
    models, part = (np.asarray(table[c].to_pylist(), dtype=object) for c in ("model", "slice"))
    users, values = np.asarray(table["user"].to_pylist(), dtype=object), table["value"].to_numpy()
    version, candidate = str(registered.outputs["version"]), str(evaluated.report["candidate"])
    checks = {name: bool(registered.report[name]) for name in ("answers_in_clean_process",)}
    checks["audits"] = audits_passed(ctx, data)
    out: dict[str, Evidence] = {}
    for label, metrics in evaluated.report["metrics"].items():
        mine = models == label
        names = sorted(set(part[mine]) - {""})
        slices = {name: Slice(users[mine & (part == name)], values[mine & (part == name)]) for name in names}
        whole = mine & (part == "")
        is_candidate = label == candidate
        out[label] = Evidence(
            version if is_candidate else label, metrics, values[whole], users[whole],
            checks if is_candidate else {}, slices, role.scored_on(data),
        )  # fmt: skip
    return out


def audits_passed(ctx: Context, data: Data) -> bool:
    """Whether the published account of every arrival up to the run date adds up: rows = events + duplicates +
    quarantined."""
    newest = {
        row.date: row.report for row in ctx.ledger.rows() if row.unit == "events" and row.date <= data.arrivals[-1]
    }
    return all(
        report["rows"] == report["events"] + report["duplicates"] + report["quarantined"] for report in newest.values()
    )
