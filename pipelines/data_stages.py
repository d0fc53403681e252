"""The Spark stages in order: which of them are wanted, and what they hand on. No SQL."""

from __future__ import annotations

from infra.tables import HISTORIES
from pipelines import data_report
from pipelines.context import Context
from pipelines.data import Data
from pipelines.event_stages import events
from pipelines.feature_stages import build_histories, build_samples, build_sequences, build_vocabularies


def run_data(ctx: Context, until: str | None = None) -> Data:
    """events, vocabularies, histories, sequences, samples: what is not published yet; `until` is the last wanted."""
    data = events(ctx)
    if until is None and ctx.only is None:
        data_report.attempt(ctx, data)  # an account of the data: no stage stands on it
    if until == "events":
        return data
    data = build_vocabularies(ctx, data)
    if until == "vocabularies":
        return data
    versions = dict(data.versions)
    if ctx.recipe.retrieval is not None and until != "samples":
        as_of = build_histories(ctx, data)
        versions[HISTORIES.name] = as_of.version
        if until != "histories":
            versions |= build_sequences(ctx, data, as_of)
    if ctx.recipe.ranking is not None and until not in ("histories", "sequences"):
        versions |= build_samples(ctx, data)
    return Data(versions, data.arrivals, data.day, data.items_hash, data.sizes)
