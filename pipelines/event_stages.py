"""Steers ingestion: which arrivals are published, which are to be ingested, and the side files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurize import ingest, sources
from featurize.sources import RawFile
from infra.config import digest
from infra.errors import DataRefused, UsageError
from infra.ledger import Published, key_of
from pipelines.context import Context
from pipelines.data import Data


def events(ctx: Context) -> Data:
    """Every arrival has its own row in the ledger, chained to the one before it.

    An arrival whose files changed, and every later one (its duplicates may be others now), is ingested
    again, all of them in one Spark job.
    """
    files = _files_by_arrival(ctx)
    plan = _plan(ctx, files)
    if plan.pending:
        ctx.may("events")
        if ctx.hold():
            plan = _plan(ctx, files)  # whoever held the lock before may have published some
    for row in plan.published:
        ctx.done(row, "skipped")
    sides = _sides(ctx, plan.arrivals[-1])  # first: a side file that cannot be read costs no Spark job
    previous = plan.previous
    if plan.pending:
        previous = _ingest(ctx, files, plan, previous)
    assert previous is not None
    day = plan.arrivals[-1] if ctx.contract.dated else str(previous.report["last_day"])
    versions = {t: int(v) for t, v in previous.outputs.items()}
    return Data({**versions, **sides}, tuple(plan.arrivals), day)


def _sides(ctx: Context, as_of: str) -> dict[str, int]:
    """The side files as they are now, as of the last arrival; published again when a file changed."""
    declared = [s for s in (ctx.contract.users, ctx.contract.items) if s is not None]
    if not declared:
        return {}
    files = [f for side in declared for f in sources.list_files(ctx.recipe.data, side)]
    inputs = {"files": digest([[f.path, f.size, f.etag] for f in files])}
    config = {"sides": [s.model_dump(mode="json") for s in declared], "fields": field_config(ctx)}

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        metadata = ctx.metadata("events", inputs)
        versions, rows = ingest.ingest_sides(ctx.lake, ctx.contract, ctx.recipe.data, as_of, metadata)
        return versions, {"rows": rows}

    row = ctx.publish("events:sides", as_of, inputs, config, work)
    return {t: int(v) for t, v in row.outputs.items()}


@dataclass(frozen=True)
class _Plan:
    """Arrivals in scope; those published (newest state of each) and those to ingest; the last one before these."""

    arrivals: list[str]
    published: list[Published]
    pending: list[str]
    previous: Published | None


def _plan(ctx: Context, files: Mapping[str, list[RawFile]]) -> _Plan:
    """Walk the chain of arrivals; the first whose key is not in the ledger breaks it."""
    published = _events_rows(ctx)
    kept: list[Published] = []
    arrivals: list[str] = []
    pending: list[str] = []
    previous: Published | None = None
    for arrival in sorted({*files, *published}):
        row = published.get(arrival)
        if ctx.last is not None and arrival > ctx.last:
            break
        if ctx.first is not None and arrival < ctx.first:
            if row is not None:  # as it is: only --from and later are asked for
                previous, arrivals = row, [*arrivals, arrival]
            continue
        if arrival in files:
            key = key_of("events", arrival, _inputs(files[arrival], previous), ctx.contract)
            row = ctx.ledger.find(key) if not pending else None
        elif pending:
            raise DataRefused(
                f"arrival {arrival} has to be ingested again because {pending[0]} changed, but its raw files are gone; "
                "restore them or start a new workspace"
            )
        arrivals.append(arrival)
        if row is None:
            pending.append(arrival)
        else:
            kept.append(row)
            previous = row
    if not arrivals:
        raise DataRefused(
            f"no raw file between {ctx.first} and {ctx.last} below {ctx.recipe.data}; check --from and --to"
        )
    return _Plan(arrivals, kept, pending, previous)


def _files_by_arrival(ctx: Context) -> dict[str, list[RawFile]]:
    if not ctx.contract.dated and (ctx.first or ctx.last):
        raise UsageError(
            f"--from/--to: the contract {ctx.contract.name!r} has no {{date}} in source.path, so it is one arrival; "
            "leave them out"
        )
    files: dict[str, list[RawFile]] = {}
    for file in sources.list_files(ctx.recipe.data, ctx.contract.source):
        files.setdefault(file.arrival, []).append(file)
    return files


def _events_rows(ctx: Context) -> dict[str, Published]:
    """The newest ledger row of every arrival."""
    return {r.date: r for r in ctx.ledger.rows() if r.unit == "events"}


def _inputs(files: list[RawFile], previous: Published | None) -> dict[str, Any]:
    return {
        "files": digest([[f.path, f.size, f.etag] for f in files]),
        "previous": previous.key if previous is not None else None,
    }


def _ingest(ctx: Context, files: Mapping[str, list[RawFile]], plan: _Plan, previous: Published | None) -> Published:
    pending = plan.pending
    ctx.progress.start(f"events: {len(pending)} arrival(s), {pending[0]} to {pending[-1]}")
    batch = [f for a in pending for f in files[a]]
    prior = {t: int(v) for t, v in previous.outputs.items()} if previous is not None else None
    kept = [a for a in plan.arrivals if a not in pending]
    metadata = ctx.metadata("events", {"events": prior, "arrivals": [pending[0], pending[-1]]})
    result = ingest.ingest(ctx.spark(), ctx.lake, ctx.contract, ctx.recipe.data, batch, prior, metadata, kept)
    last_days = [previous.report["last_day"]] if previous is not None else []
    for arrival in pending:
        report = {**result.accounts[arrival], "reasons": result.reasons.get(arrival, {})}
        report["last_day"] = max([*last_days, result.last_day])
        previous = ctx.ledger.publish(
            unit="events",
            date=arrival,
            inputs=_inputs(files[arrival], previous),
            config=ctx.contract,
            outputs=result.versions,
            report=report,
            seconds=round(result.seconds / len(pending), 3),
            run_id=ctx.run_id,
        )
        ctx.done(previous, "published")
    assert previous is not None
    return previous


def field_config(ctx: Context) -> list[Any]:
    """The contract's fields as part of a ledger key."""
    return [f.model_dump(mode="json") for f in ctx.contract.fields]
