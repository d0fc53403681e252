"""The Spark stages in order: which of them are wanted, and what they hand on. No SQL."""

from __future__ import annotations

from pipelines.context import Context
from pipelines.data import Data
from pipelines.event_stages import events
from pipelines.feature_stages import build_samples, build_sequences, build_vocabularies


def run_data(ctx: Context, until: str | None = None) -> Data:
    """events, vocabularies, sequences, samples: whatever is not published yet; `until` is the last one wanted."""
    data = events(ctx)
    if until == "events":
        return data
    data = build_vocabularies(ctx, data)
    if until == "vocabularies":
        return data
    versions = dict(data.versions)
    if ctx.recipe.retrieval is not None and until != "samples":
        versions |= build_sequences(ctx, data)
    if ctx.recipe.ranking is not None and until != "sequences":
        versions |= build_samples(ctx, data)
    return Data(versions, data.arrivals, data.day, data.items_hash, data.sizes)
