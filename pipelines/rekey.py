"""`logs2rec rekey`: all tables from the user keys they were written under to those and more.

The order makes it safe to die anywhere. The events table's key id first becomes OLD>NEW, which every other command
refuses; then the tables are committed, to which no published version points yet; then one commit of the ledger
withdraws what was published under the old keys and publishes the new versions; the key id becomes NEW last. Until
the ledger's commit the same command starts over from the published versions, after it only the key id is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any

from featurize.pseudonyms import UserKeys
from featurize.rekey import Job, Rekeyed, write_again
from featurize.user_keys import CHANGE, PLAIN, carried, claim, given_keys, stored_key_id
from infra.config import digest
from infra.errors import UsageError
from infra.ledger import REBUILT, Published, entry
from infra.tables import FIELD_VALUES, FIRST_SEEN, HISTORIES, RECOMMENDATIONS, SEQUENCES
from pipelines.context import Context
from pipelines.data_report import UNIT as DATA_REPORT
from pipelines.event_stages import sides_config
from pipelines.known_arrivals import KnownArrivals
from pipelines.maintenance import REGISTRATION, pinned
from pipelines.scoring import UNIT as SCORE
from pipelines.user_keys import events_config

UNIT = "rekey"

REKEYED = "rekeyed"
"""Key in the inputs of rows whose content a build of today may order or draw otherwise, for it goes by other
pseudonyms: they stay published, and whoever asks for the same date makes it again."""

_SIDES = "events:sides"
_TABLE_OF = {
    _SIDES: "user_features",
    "vocabularies": FIELD_VALUES.name,
    "sequences": SEQUENCES.name,
    "samples": "samples",
}
"""Unit -> its table with pseudonyms, in the order in which one reads the other."""
_AGAIN = {"histories": HISTORIES.name, DATA_REPORT: FIRST_SEEN.name, SCORE: RECOMMENDATIONS.name}
"""Unit -> its table, which is emptied: the next run makes it from events, the next `logs2rec score` its lists.
Histories and lists lie in buckets by pseudonym."""


def rekey(ctx: Context) -> dict[str, Any]:
    """Carry it out; returns what was done, `nothing_to_do` where the tables are under these keys already.

    Raises UsageError when user ids are no pseudonyms, no key is given, the tables' keys are not the first ones of
    the chain, or an arrival has to be ingested again; ContractChanged when arrivals cannot stay under the contract
    of today. Nothing is changed then.
    """
    ctx.hold()
    keys = _keys(ctx)
    found = stored_key_id(ctx.lake)
    stored = _settled(ctx, found)
    if stored is None or stored == keys.key_id:
        return _answer(ctx, keys, nothing_to_do=stored == found)
    before, since = _before(ctx, stored.partition(CHANGE)[0], keys)
    known = KnownArrivals(ctx, before)
    arrivals = list(_chain(known))
    known.check(arrivals)
    started = perf_counter()
    claim(ctx.lake, f"{before.key_id}{CHANGE}{keys.key_id}")
    move = _Move(ctx, keys, before, partial(keys.rekeyed, since=since), known)
    move.events(arrivals)
    for unit in _TABLE_OF:
        move.unit(unit)
    for table in _AGAIN.values():
        move.write(Job(table))
    report = {"to": keys.key_id, "tables": {t: {"version": r.version, "rows": r.rows} for t, r in move.tables.items()}}
    day = datetime.now(UTC).date().isoformat()
    seconds = round(perf_counter() - started, 3)
    row = entry(UNIT, day, {"userKeyId": before.key_id}, digest(keys.key_id), {}, report, seconds, ctx.run_id)
    gone = [r for r in ctx.ledger.rows() if r.unit in ("events", *_TABLE_OF, *_AGAIN)]
    ctx.ledger.replace(gone, [*sorted(move.rows, key=lambda r: r.published_at), row], ctx.run_id)
    claim(ctx.lake, keys.key_id)
    return _answer(ctx, keys, nothing_to_do=False)


def show(found: Mapping[str, Any]) -> None:
    """Print what was done, and what still holds the former pseudonyms."""
    if found["nothing_to_do"]:
        print(f"Nothing to do: nothing is stored under another user key than {found['to']}.")
    else:
        for name, table in found["tables"].items():
            maker = "logs2rec score" if name == RECOMMENDATIONS.name else "run"
            again = f" (emptied: the next {maker} makes it again)" if name in _AGAIN.values() else ""
            print(f"{name}: {table['rows']:,} rows in version {table['version']}{again}")
        print(f"The tables are under the user key {found['to']} now, not {found['from']}; keep all keys of the chain.")
    if found["from"] is None:
        return
    print("Versions from before hold the former pseudonyms; `logs2rec vacuum --apply` removes those that nothing pins.")
    for name, versions in found["pinned"].items():
        print(f"  pinned by what was trained on them: {name} {', '.join(map(str, versions))}")
    if found["models"]:
        print(f"  so do the files of the models from before ({', '.join(found['models'])}) and of their evaluations")


def _keys(ctx: Context) -> UserKeys:
    if not ctx.contract.personal:
        raise UsageError("rekey: the contract says `personal: false`, so there are no pseudonyms and no key to change")
    keys = given_keys(ctx.recipe.pseudonyms, ctx.workspace)
    if keys is None:
        raise UsageError(
            f"rekey: no user key is at hand: set {ctx.recipe.pseudonyms.key_env} or pseudonyms.key_file to the keys of "
            "the tables, oldest first, and the new one on a line behind them"
        )
    return keys


def _settled(ctx: Context, stored: str | None) -> str | None:
    """The key id, after one that a dead command had all but changed was changed."""
    old, _, new = (stored or "").partition(CHANGE)
    if not new or not any(
        r.unit == UNIT and r.inputs["userKeyId"] == old and r.report["to"] == new for r in ctx.ledger.rows()
    ):
        return stored
    claim(ctx.lake, new)
    return new


def _before(ctx: Context, stored: str, keys: UserKeys) -> tuple[UserKeys, int]:
    """The keys of the tables as the first part of the chain, and how many they are."""
    if stored == PLAIN:
        raise UsageError(
            f"rekey: table 'events' under {ctx.lake.root} holds user ids as logged; ingest the raw files into a new "
            "workspace for pseudonyms"
        )
    since = keys.length_of(stored)
    if since is None:
        raise UsageError(
            f"rekey: the tables under {ctx.lake.root} were written under the user key {stored}, which is that of no "
            "first part of the chain given; give all their keys, oldest first, and the new one on a line behind them"
        )
    return UserKeys(keys.chain[:since]), since


def _chain(known: KnownArrivals) -> Iterator[Published]:
    """The row of every arrival that holds, each behind the one before it where there is such a row."""
    previous = None
    for arrival in known.arrivals:
        if (row := known.find(arrival, None, previous)) is None:
            raise UsageError(
                f"rekey: arrival {arrival} is not published by this version of logs2rec under the tables' keys; "
                "`logs2rec run` under those ingests it again, then change the key"
            )
        yield row
        previous = row


def _answer(ctx: Context, keys: UserKeys, *, nothing_to_do: bool) -> dict[str, Any]:
    """What the last re-key did, and what is pinned of the versions before it."""
    rows = ctx.ledger.rows()
    last = next((r for r in reversed(rows) if r.unit == UNIT), None)
    answer = {"nothing_to_do": nothing_to_do, "to": keys.key_id, "from": None, "tables": {}, "pinned": {}, "models": []}
    if last is None:
        return answer
    tables = last.report["tables"]
    pins = pinned(rows, datetime.now(UTC))
    old = {t: sorted(v for v in pins[t] if v < made["version"]) for t, made in tables.items()}
    models = [r for r in rows if r.unit.startswith(REGISTRATION) and r.published_at < last.published_at]
    return {
        **answer,
        "from": last.inputs["userKeyId"],
        "tables": tables,
        "pinned": {t: versions for t, versions in old.items() if versions},
        "models": [f"{r.report['name']} version {r.outputs['version']}" for r in models],
    }


@dataclass
class _Move:
    """The tables written so far, and the rows that are to publish them."""

    ctx: Context
    keys: UserKeys
    before: UserKeys
    rekeyed: Any
    known: KnownArrivals
    tables: dict[str, Rekeyed] = field(default_factory=dict)
    rows: list[Published] = field(default_factory=list)
    replaced: dict[str, set[int]] = field(default_factory=dict)
    """Table -> versions that the new one stands for."""

    def write(self, job: Job) -> Rekeyed | None:
        """Write a table again, if it is there."""
        if not self.ctx.lake.exists(job.table):
            return None
        self.ctx.progress.start(f"{UNIT}: {job.table}")
        metadata = self.ctx.metadata(UNIT, {"sources": dict(job.sources)})
        done = write_again(self.ctx.lake, job, self.rekeyed, carried(metadata, self.keys))
        self.tables[job.table] = done
        self.replaced[job.table] = {v for value, v in job.sources.items() if value in done.kept}
        return done

    def events(self, arrivals: Sequence[Published]) -> None:
        """The arrivals, chained as they were."""
        columns = ("user", *self._event_id())
        sources = {r.date: r.version("events") for r in arrivals}
        done = self.write(Job("events", columns, sources, ("user", "ts", "event_id")))
        keys: dict[str, str] = {}
        for old in arrivals:
            if done is None or old.date not in done.kept:
                continue
            contract = self.known.versions.recorded(int(old.report["contract"]))
            inputs = {**old.inputs, "previous": keys.get(str(old.inputs["previous"]), old.inputs["previous"])}
            row = self._row(old, inputs, {"events": done.version}, digest(events_config(contract, self.keys)))
            keys[old.key] = row.key
            self.rows.append(row)

    def unit(self, unit: str) -> None:
        """The newest row of the unit for every date, with its table under the new keys."""
        table = _TABLE_OF[unit]
        newest = {r.date: r for r in self.ctx.ledger.rows() if r.unit == unit and r.of_this_format}
        rows = sorted(newest.values(), key=lambda r: r.published_at)
        holders = [r for r in rows if table in r.outputs]  # a contract may know a side file of the items alone
        by_date = unit in ("sequences", "samples")  # what is as of a date has a partition, else the newest has all
        sources = {r.date: r.version(table) for r in holders}
        if holders and not by_date:
            version = holders[-1].version(table)
            sources = dict.fromkeys(self.ctx.lake.partitions(table, version, "arrival"), version)
        columns = {_SIDES: ("key",), "vocabularies": ("key",), "samples": ("user", *self._event_id())}
        order = ("key", "valid_from") if unit == _SIDES else ()
        done = self.write(Job(table, columns.get(unit, ("user",)), sources, order))
        if not by_date:
            self.replaced[table] = {r.version(table) for r in holders}
        for old in rows:
            if not by_date or (done is not None and old.date in done.kept):
                outputs = {table: done.version} if done is not None and table in old.outputs else {}
                self.rows.append(self._row(old, self._inputs(old), outputs, self._config(old)))

    def _event_id(self) -> tuple[str, ...]:
        """Where the log names no event, its id is a keyed hash, made by the same chain."""
        return ("event_id",) if self.ctx.contract.event_id is None else ()

    def _config(self, old: Published) -> str:
        """The hash that a command under the new keys looks for; that of other side files' settings stays."""
        if old.unit == _SIDES and old.config_hash == digest(sides_config(self.ctx, self.before)):
            return digest(sides_config(self.ctx, self.keys))
        return old.config_hash

    def _inputs(self, old: Published) -> dict[str, Any]:
        """The inputs with the new versions; marked where a build from them would not be this very output."""
        inputs = dict(old.inputs)
        exact = old.unit != "sequences" and not (old.unit == "samples" and self._event_id())
        for table, version in old.inputs.items():
            if table in _AGAIN.values():
                del inputs[table]
            elif table in self.tables:
                exact = exact and version in self.replaced[table]
                inputs[table] = self.tables[table].version
        return inputs if exact else {**inputs, REKEYED: self.keys.key_id}

    def _row(
        self, old: Published, inputs: Mapping[str, Any], outputs: Mapping[str, int], config_hash: str
    ) -> Published:
        known = {name: value for name, value in inputs.items() if name != REBUILT}
        report = {**old.report, REKEYED: {"of": old.key, "run": self.ctx.run_id}}
        outputs = {**old.outputs, **outputs}
        row = entry(old.unit, old.date, known, config_hash, outputs, report, old.seconds, self.ctx.run_id)
        return replace(row, published_at=old.published_at)  # their order; the ledger gives them the time
