"""Steers vocabularies, histories, sequences and samples: which versions, which date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurize import histories, samples, sequences, vocabularies
from featurize.histories import AsOf, State
from infra.errors import EmptySplit
from infra.tables import HISTORIES, ITEMS, SEQUENCES
from pipelines.context import Context
from pipelines.data import Data
from pipelines.event_stages import field_config


def build_vocabularies(ctx: Context, data: Data) -> Data:
    settings = ctx.recipe.vocabularies

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        prior = next((r for r in reversed(ctx.ledger.rows()) if r.unit == "vocabularies"), None)
        built = vocabularies.build(
            ctx.spark(),
            ctx.lake,
            ctx.contract,
            settings,
            data.versions,
            data.arrivals,
            {t: int(v) for t, v in prior.outputs.items()} if prior else None,
            ctx.metadata("vocabularies", inputs),
        )
        return built.versions, {"sizes": built.sizes, "items_hash": built.items_hash}

    inputs = {t: data.versions[t] for t in ("events", "user_features", "item_features") if t in data.versions}
    config = {"settings": settings.model_dump(mode="json"), "fields": field_config(ctx)}
    row = ctx.publish("vocabularies", data.arrivals[-1], inputs, config, work)
    versions = {**data.versions, **{t: int(v) for t, v in row.outputs.items()}}
    return Data(versions, data.arrivals, data.day, row.report["items_hash"], row.report["sizes"])


def build_histories(ctx: Context, data: Data) -> AsOf:
    """The histories as of the run date, on top of what the newest row in the ledger says is there."""
    settings, contract = ctx.recipe.sequences, ctx.contract
    inputs = {t: data.versions[t] for t in ("events", ITEMS.name)}
    shape = {n: getattr(settings, n) for n in ("positives_only", "history_cap", "buckets", "base_every")}
    window = contract.rules.window_days if contract.dated else 0
    config = {"shape": shape, "types": [contract.targets, contract.context], "window_days": window}

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        newest = next((r for r in reversed(ctx.ledger.rows()) if r.unit == "histories"), None)
        built = histories.build(
            ctx.spark(),
            ctx.lake,
            contract,
            settings,
            data.versions,
            data.arrivals,
            data.day,
            State(**newest.report["state"]) if newest is not None else None,
            ctx.metadata("histories", inputs),
            rebuild=ctx.rebuilds("histories"),
        )
        return {HISTORIES.name: built.as_of.version}, built.report

    row = ctx.publish("histories", data.day, inputs, config, work)
    return AsOf(row.version(HISTORIES.name), row.report["base"], tuple(row.report["tails"]))


def build_sequences(ctx: Context, data: Data, as_of: AsOf) -> Mapping[str, int]:
    settings = ctx.recipe.sequences
    inputs = {**{t: data.versions[t] for t in ("events", ITEMS.name)}, HISTORIES.name: as_of.version}
    config = {"settings": settings.model_dump(mode="json"), "types": [ctx.contract.targets, ctx.contract.context]}
    config["columns"] = SEQUENCES.schema.names  # with other ones the rows mean something else

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        metadata = ctx.metadata("sequences", inputs)
        versions, rows = sequences.build(ctx.spark(), ctx.lake, settings, as_of, data.day, metadata)
        _require_splits("sequences", data.day, settings.split, rows)
        return versions, {"rows": rows}

    row = ctx.publish("sequences", data.day, inputs, config, work)
    return {SEQUENCES.name: row.version(SEQUENCES.name)}


def build_samples(ctx: Context, data: Data) -> Mapping[str, int]:
    settings = ctx.recipe.samples
    tables = ("events", "items", "field_values", "user_features", "item_features")
    inputs = {t: data.versions[t] for t in tables if t in data.versions}
    config = {"settings": settings.model_dump(mode="json"), "fields": field_config(ctx)}
    if ctx.contract.label is None:
        config["positives"] = ctx.contract.targets  # else the labels say it, and they are in `events`

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        metadata = ctx.metadata("samples", inputs)
        versions, report = samples.build(
            ctx.spark(), ctx.lake, ctx.contract, settings, data.versions, data.arrivals, data.day, metadata
        )
        _require_splits("samples", data.day, settings.split, report["rows"])
        return versions, report

    row = ctx.publish("samples", data.day, inputs, config, work)
    return {t: int(v) for t, v in row.outputs.items()}


def _require_splits(stage: str, day: str, split: str, rows: Mapping[str, int]) -> None:
    """Raise EmptySplit, before anything is published, when there is nothing to validate or test on."""
    for part in ("valid", "test"):
        if not rows[part]:
            other = "leave_one_out" if stage == "sequences" else "per_user_ratio"
            raise EmptySplit(
                f"{stage}: the {part} split of {day} is empty ({stage}.split is {split}); take another run date, "
                f"or {stage}.split={other} for a small log"
            )
