"""Steers training, evaluation, registration and promotion of each role. No maths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.decision.gate import Decision
from featurize import vocabularies
from infra.config import canonical_json
from infra.ledger import Published, key_of
from infra.tables import FIELD_VALUES, ITEMS
from pipelines.champions import artifact_of, champion_before
from pipelines.context import Context
from pipelines.data import Data
from pipelines.decision import item_keys, promote
from pipelines.roles import ModelRun, Role, Scores, roles
from pipelines.stored_answers import questions
from train.settings import decisive

Outputs = tuple[Mapping[str, Any], Mapping[str, Any]]


def run_models(ctx: Context, data: Data) -> dict[str, Decision]:
    """Train, evaluate, register and decide; returns the gate's decision per registered name."""
    decided = {}
    for role, evaluated, registered in registered_versions(ctx, data, roles(ctx.recipe)):
        decided[f"{ctx.recipe.name}.{role.name}"] = promote(ctx, data, role, evaluated, registered)
    return decided


def registered_versions(ctx: Context, data: Data, wanted: Sequence[Role]) -> list[tuple[Role, Published, Published]]:
    """(role, its evaluation, its registration); empty when `ctx.only` stops earlier.

    Stage by stage over all roles, so that Ray is started once.
    """
    trained = {role.name: {run.label: _train(ctx, data, role, run) for run in role.models} for role in wanted}
    if ctx.only == "train":
        return []
    evaluated = {role.name: _evaluate(ctx, data, role, trained[role.name]) for role in wanted}
    if ctx.only == "evaluate":
        return []
    registered = {role.name: _register(ctx, data, role, trained[role.name], evaluated[role.name]) for role in wanted}
    if ctx.only == "register":
        return []
    return [(role, evaluated[role.name], registered[role.name]) for role in wanted]


def _train(ctx: Context, data: Data, role: Role, run: ModelRun) -> Published:
    unit = f"train:{role.name}:{run.label}"
    inputs: dict[str, Any] = {**role.versions(data), "items_hash": data.items_hash}
    warm, champion = run.training.start == "champion", None
    if warm:
        champion = champion_before(ctx, f"{ctx.recipe.name}.{role.name}", data.day)
        inputs["champion"] = champion.build if champion else None
    config = decisive(run.config, run.training)
    run_name = run_name_of(unit, data.day, inputs, run)
    if run.search is not None:
        config["search"] = run.search.model_dump(mode="json", exclude_none=True)
    key = key_of(unit, data.day, inputs, config)

    def work() -> Outputs:
        from train.search import search
        from train.trainer import TrainRequest, fit

        if not run.config.counted:
            ctx.ray()
        request = TrainRequest(
            lake=ctx.lake.root,
            versions=role.versions(data),
            as_of=data.day,
            model=run.config,
            training=run.training,
            run_name=run_name,
            vocabulary_hash=data.items_hash,
            vocabulary=_vocabulary(ctx, data, items_only=role.name == "retrieval"),
            tracker=_tracker(ctx, data, role, run, run_name),
            initial=artifact_of(ctx, champion) if champion else None,
        )
        artifact = Path("artifacts") / f"{role.name}-{run.label}-{key}"
        outputs, storage = {"artifact": str(artifact)}, ctx.workspace / "training"
        ctx.progress.note(unit)
        shown = _shower(ctx, unit, run.training.epochs)
        if run.search is not None:
            found = search(request, run.search, storage, shown)
            request, outputs["trials"] = found.request, f"{artifact}.trials.json"
            _write_json(ctx.workspace / outputs["trials"], [asdict(trial) for trial in found.trials])
        report = fit(request, ctx.workspace / artifact, storage, shown)
        _write_config(ctx, ctx.workspace / "artifacts" / f"{artifact.name}.recipe.json")
        told = {"started_from": champion.told if champion else None} if warm else {}
        return outputs, {**report, **told}

    return ctx.publish(unit, data.day, inputs, config, work)


def run_name_of(unit: str, day: str, inputs: Mapping[str, Any], run: ModelRun) -> str:
    """The name under which a run resumes: another number of workers, or of checkpoints, goes on where it stopped, and
    so do the trials of a search."""
    return f"{unit.replace(':', '-')}-{key_of(unit, day, inputs, decisive(run.config, run.training))}"


def _tracker(ctx: Context, data: Data, role: Role, run: ModelRun, run_name: str) -> Any:
    """Where the workers' reports go while they train; None if the recipe wants none."""
    from evaluate.publish.registry import artifact_location, tracking_uri
    from train.tracking import Tracker

    settings = ctx.recipe.tracking
    if not settings.training:
        return None
    return Tracker(
        tracking_uri(settings, ctx.workspace),
        settings.experiment or ctx.recipe.name,
        run_name,
        params=_flat({"model": run.config, "training": run.training}),
        tags=_lineage(ctx, data, role),
        artifacts=artifact_location(settings, ctx.workspace),
    )


def _shower(ctx: Context, unit: str, epochs: int) -> Any:
    def show(metrics: Mapping[str, Any]) -> None:
        trial = f" trial {metrics['trial']}/{metrics['trials']}," if "trial" in metrics else ""
        ctx.progress.note(f"{unit}:{trial} epoch {metrics.get('epoch', '?')}/{epochs}")

    return show


def _vocabulary(ctx: Context, data: Data, items_only: bool) -> pa.Table:
    """The artifact's vocabulary: columns field, index, key; items under __item__."""
    versions = {t: data.versions[t] for t in (ITEMS.name, FIELD_VALUES.name)}
    parts = []
    for field, keys in vocabularies.read(ctx.lake, versions, data.arrivals[-1]).items():
        if field == vocabularies.ITEM or not items_only:
            name = "__item__" if field == vocabularies.ITEM else field
            parts.append(keys.add_column(0, "field", pa.array([name] * keys.num_rows, pa.string())))
    return pa.concat_tables(parts)


def _evaluate(ctx: Context, data: Data, role: Role, trained: Mapping[str, Published]) -> Published:
    unit = f"evaluate:{role.name}"
    inputs = {**role.versions(data), **{label: row.key for label, row in trained.items()}}
    config = {"settings": role.settings.model_dump(mode="json"), "metric": role.gate.metric}
    folder = Path("evaluations") / f"{role.name}-{key_of(unit, data.day, inputs, config)}"

    def work() -> Outputs:
        items = item_keys(ctx, data)
        scores = {}
        for label, row in trained.items():
            ctx.progress.note(f"{unit}: {label}")
            scores[label] = role.score(
                ctx.workspace / str(row.outputs["artifact"]), ctx.lake, ctx.contract, data, items
            )
        path = ctx.workspace / folder
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(_per_user_table(scores), path / "per_user.parquet")
        metrics = {label: dict(s.metrics) for label, s in scores.items()}
        (path / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
        _write_config(ctx, path / "recipe.json")
        return {"folder": str(folder)}, {"metrics": metrics, "candidate": role.candidate.label}

    return ctx.publish(unit, data.day, inputs, config, work)


def _per_user_table(scores: Mapping[str, Scores]) -> pa.Table:
    """Of every model, whole (slice '') and slice by slice."""
    parts = []
    for model, of in scores.items():
        for name, (users, values) in {"": (of.users, of.per_user), **of.slices}.items():
            same = {"model": [model] * len(users), "slice": [name] * len(users)}
            parts.append(pa.table({**same, "user": pa.array([str(u) for u in users], pa.string()), "value": values}))
    return pa.concat_tables(parts)


def _register(
    ctx: Context, data: Data, role: Role, trained: Mapping[str, Published], evaluated: Published
) -> Published:
    unit = f"register:{role.name}"
    name = f"{ctx.recipe.name}.{role.name}"
    candidate = trained[role.candidate.label]
    run = role.candidate.with_values(candidate.report.get("search", {}).get("values", {}))

    def work() -> Outputs:
        from evaluate.publish.package import package, same_answer
        from evaluate.publish.registry import CHALLENGER, Upload, query_in_clean_process

        artifact = ctx.workspace / str(candidate.outputs["artifact"])
        packed = package(artifact, questions(ctx.lake, data, role.name, item_keys(ctx, data)))
        folder = ctx.workspace / str(evaluated.outputs["folder"])
        stored = folder / "stored_answers.json"
        _write_json(stored, packed.answer)
        store = ctx.store()
        upload = Upload(
            artifact=artifact,
            code=packed.code,
            signature=packed.signature,
            example=packed.example,
            params=_flat({"model": run.config, "training": run.training}),
            metrics=_logged_metrics(evaluated),
            tags=_lineage(ctx, data, role, candidate),
            files={"recipe": folder / "recipe.json", "evaluation": folder / "metrics.json", "answers": stored},
        )
        version, run_id = store.register(name, evaluated.key, upload)
        answer = query_in_clean_process(store.uri, f"models:/{name}/{version}", packed.questions)
        answers = same_answer(packed.answer, answer)
        store.move_alias(name, CHALLENGER, version)
        asked = {"answers_in_clean_process": answers, "questions": len(packed.questions)}
        report = {"name": name, "run_id": run_id, **asked, "data": _data_json(data)}
        return {"version": version}, report

    # A store that was emptied or replaced has another identity: the version is registered again.
    inputs = {"evaluation": evaluated.key, "store": ctx.store().identity()}
    return ctx.publish(unit, data.day, inputs, ctx.recipe.tracking.model_dump(mode="json"), work)


def _data_json(data: Data) -> dict[str, Any]:
    """What `promote` needs of the data later on; the inverse of `pipelines.decision.data_of`."""
    return {"versions": dict(data.versions), "arrival": data.arrivals[-1], "day": data.day}


def _logged_metrics(evaluated: Published) -> dict[str, float]:
    """The candidate's metrics as they are, the baselines' under their name."""
    out: dict[str, float] = {}
    for label, metrics in evaluated.report["metrics"].items():
        prefix = "" if label == evaluated.report["candidate"] else f"baseline/{label}/"
        out |= {f"{prefix}{name}": float(value) for name, value in metrics.items()}
    return out


def _lineage(ctx: Context, data: Data, role: Role, trained: Published | None = None) -> dict[str, str]:
    from evaluate.publish.registry import RUN_DATE_TAG
    from infra.ledger import code_version

    tags = {f"logs2rec.table.{t}": str(v) for t, v in data.versions.items()}
    if trained is not None and (champion := trained.report.get("started_from")) is not None:
        tags["logs2rec.startedFrom"] = str(champion["version"])
    return {
        **tags,
        RUN_DATE_TAG: data.day,
        "logs2rec.runId": ctx.run_id,
        "logs2rec.recipe": ctx.recipe.name,
        "logs2rec.role": role.name,
        "logs2rec.codeVersion": code_version(),
        "logs2rec.vocabularyHash": data.items_hash,
    }


def _flat(sections: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.width": 64, ...}"""
    out: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(f"{prefix}.{k}" if prefix else k, v)
        else:
            out[prefix] = value

    walk("", {name: section.model_dump(mode="json") for name, section in sections.items()})
    return out


def _write_config(ctx: Context, path: Path) -> None:
    """The resolved configuration beside whatever it produced."""
    resolved = {"recipe": ctx.recipe.model_dump(mode="json"), "contract": ctx.contract.model_dump(mode="json")}
    _write_json(path, json.loads(canonical_json(resolved)))


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
