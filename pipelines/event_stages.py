"""Steers ingestion: which arrivals are published, which are to be ingested, and the side files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from featurize import ingest, sources
from featurize.pseudonyms import UserKeys
from featurize.sources import RawFile
from featurize.user_keys import key_id
from infra.config import digest
from infra.errors import DataRefused, UsageError
from infra.ledger import Published, key_of
from pipelines.context import Context
from pipelines.contract_versions import ContractVersions
from pipelines.data import Data
from pipelines.known_arrivals import KnownArrivals
from pipelines.user_keys import events_config, keys_of

SIDES = "events:sides"


def events(ctx: Context) -> Data:
    """Every arrival has its own row in the ledger, chained to the one before it.

    An arrival whose files changed, and every later one (its duplicates may be others now), is ingested
    again, all of them in one Spark job. One that was ingested under another contract stays as it is if that
    is compatible with this one, and is refused if it is not (ContractChanged); --rebuild ingests all again.
    """
    files = _files_by_arrival(ctx)
    plan = _plan(ctx, files)
    if plan.pending:
        ctx.may("events")
        if ctx.hold():
            plan = _plan(ctx, files)  # whoever held the lock before may have published some
    for row in plan.published:
        ctx.done(row, "skipped")
    previous = plan.previous
    if plan.pending:
        ingest.check_sides(ctx.contract, ctx.recipe.data, keys_of(ctx))  # one that cannot be read costs no Spark job
        previous = _ingest(ctx, files, plan, previous)
    assert previous is not None
    sides = _sides(ctx, plan.arrivals[-1])  # behind the log: of a batch that is refused nothing is published
    day = plan.arrivals[-1] if ctx.contract.dated else str(previous.report["last_day"])
    versions = {t: int(v) for t, v in previous.outputs.items()}
    return Data({**versions, **sides}, tuple(plan.arrivals), day)


def arrivals_of(ctx: Context) -> list[str]:
    """Every arrival that has raw files or was ever published, in order."""
    return sorted({*_files_by_arrival(ctx), *KnownArrivals(ctx).arrivals})


def _sides(ctx: Context, as_of: str) -> dict[str, int]:
    """The side files as they are now, as of the last arrival; published again when a file changed."""
    declared = [s for s in (ctx.contract.users, ctx.contract.items) if s is not None]
    if not declared:
        return {}
    files = [f for side in declared for f in sources.list_files(ctx.recipe.data, side)]
    inputs = {"files": digest([[f.path, f.size, f.etag] for f in files])}
    keys = keys_of(ctx)
    config = sides_config(ctx, keys)
    newest = max((r.date for r in ctx.ledger.rows() if r.unit == "events"), default=as_of)
    if newest > as_of:  # today's files would be that day's future
        if (row := _sides_of_an_older_day(ctx, as_of, digest(config))) is not None:
            ctx.done(row, "skipped")
            return {t: int(v) for t, v in row.outputs.items()}
        as_of = newest  # never read under these fields: they are known since the newest day, no sooner

    def work() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        metadata = ctx.metadata("events", inputs)
        versions, rows = ingest.ingest_sides(ctx.lake, ctx.contract, ctx.recipe.data, as_of, metadata, keys)
        return versions, {"rows": rows}

    row = ctx.publish(SIDES, as_of, inputs, config, work)
    return {t: int(v) for t, v in row.outputs.items()}


def _sides_of_an_older_day(ctx: Context, as_of: str, config_hash: str) -> Published | None:
    """The snapshot that an older day has: the last one up to the day, else the first after it; None without any."""
    sides = [r for r in ctx.ledger.rows() if r.unit == SIDES and r.config_hash == config_hash]
    before = [r for r in sides if r.date <= as_of]
    date = max((r.date for r in before), default=None) or min((r.date for r in sides), default=None)
    return next((r for r in reversed(sides) if r.date == date), None)


@dataclass(frozen=True)
class _Plan:
    """Arrivals in scope; those published (newest state of each) and those to ingest; the last one before these."""

    arrivals: list[str]
    published: list[Published]
    pending: list[str]
    previous: Published | None
    kept: list[Published]
    """Every published arrival that stays as it is, those before --from included."""


def _plan(ctx: Context, files: Mapping[str, list[RawFile]]) -> _Plan:
    """Walk the chain of arrivals; the first that is not published as it should be breaks it."""
    known = KnownArrivals(ctx)
    published: list[Published] = []
    kept: list[Published] = []
    pending: list[str] = []
    for arrival in sorted({*files, *known.arrivals}):
        if ctx.last is not None and arrival > ctx.last:
            break
        previous = kept[-1] if kept else None
        if ctx.first is not None and arrival < ctx.first:
            if (row := known.newest(arrival)) is not None:  # as it is: only --from and later are asked for
                kept.append(row)
            continue
        row = None
        if not pending:
            row = known.find(arrival, _inputs(files[arrival], previous) if arrival in files else None, previous)
        if row is None or ctx.again("events", row):
            if arrival not in files:
                raise DataRefused(
                    f"arrival {arrival} has to be ingested again because {_reason(ctx, pending)}, but its raw files "
                    "are gone; restore them or start a new workspace"
                )
            pending.append(arrival)
        else:
            published.append(row)
            kept.append(row)
    arrivals = [*(r.date for r in kept), *pending]
    if not arrivals:
        raise DataRefused(
            f"no raw file between {ctx.first} and {ctx.last} below {ctx.recipe.data}; check --from and --to"
        )
    known.check(kept)
    _refuse_broken(kept)
    return _Plan(arrivals, published, pending, kept[-1] if kept else None, kept)


def _refuse_broken(kept: Sequence[Published]) -> None:
    """Every arrival that stays stands on the one before it as it is now; else a commit would put old rows back."""
    for before, row in pairwise(kept):
        if row.inputs["previous"] != before.key:
            raise DataRefused(
                f"arrival {row.date} was published on another state of {before.date}, which was ingested again since; "
                f"run without --from, or from {row.date} on, with its raw files in place"
            )


def _reason(ctx: Context, pending: list[str]) -> str:
    if ctx.rebuilds("events"):
        return "of --rebuild"
    return f"{pending[0]} changed" if pending else "another version of logs2rec published it"


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
    metadata = ctx.metadata("events", {"events": prior, "arrivals": [pending[0], pending[-1]]})
    keys, versions = keys_of(ctx), ContractVersions(ctx.ledger, ctx.contract)
    result = ingest.ingest(
        ctx.spark(),
        ctx.lake,
        ctx.contract,
        ctx.recipe.data,
        batch,
        prior,
        metadata,
        kept=[r.date for r in plan.kept],
        keys=keys,
        introduced=versions.introduced({int(r.report["contract"]) for r in plan.kept}),
        renew=ctx.rebuilds("events"),
    )
    last_days = [previous.report["last_day"]] if previous is not None else []
    number = versions.publish(pending[0], ctx.run_id)
    config = events_config(versions.recorded(number), keys)
    for arrival in pending:
        report = {**result.accounts[arrival], "reasons": result.reasons.get(arrival, {}), "contract": number}
        report["last_day"] = max([*last_days, result.last_day])
        inputs = _inputs(files[arrival], previous)
        previous = ctx.ledger.publish(
            unit="events",
            date=arrival,
            inputs=ctx.inputs_of("events", key_of("events", arrival, inputs, config), inputs),
            config=config,
            outputs=result.versions,
            report=report,
            seconds=round(result.seconds / len(pending), 3),
            run_id=ctx.run_id,
        )
        ctx.done(previous, "published")
    assert previous is not None
    return previous


def sides_config(ctx: Context, keys: UserKeys | None) -> dict[str, Any]:
    """What the side tables are a function of beside the files."""
    sections = [s.model_dump(mode="json") for s in (ctx.contract.users, ctx.contract.items) if s is not None]
    fields = [f.model_dump(mode="json") for f in ctx.contract.fields if f.source in ("users", "items")]
    return {"sides": sections, "fields": fields, "userKeyId": key_id(keys)}


def field_config(ctx: Context) -> list[Any]:
    """The contract's fields as part of a ledger key."""
    return [f.model_dump(mode="json") for f in ctx.contract.fields]
