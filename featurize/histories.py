"""Histories: a base every few days and a tail for every day, bucketed by user.

As of day d a history is the newest valid base at or before d-2 and the tails after it. A tail is made from the
events of its one day; a base from an older base and tails, without a shuffle. Only a full build reads all events,
and shuffles once: tables of histories, not events. What is still valid is known from fingerprints, the digest of
the event files that each day's tail and each base was made from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import buckets, delta, history_tasks
from featurize.history_tasks import BLOCK, DAY_US, Group, Rules
from infra.commit import DataFile, commit
from infra.errors import AuditError
from infra.lake import Lake
from infra.tables import HISTORIES, ITEMS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from featurize.contract import Contract
    from featurize.settings import SequenceSettings

EVENTS_PER_TASK = 2 << 20
"""Events that one task groups before the shuffle; a day with more is shared by several tasks."""

KEPT_BASES = 2
"""Bases that stay when a new one is made: the newest, and the one before it for a run date that comes again."""


@dataclass(frozen=True)
class State:
    """What the table holds and from what it was made; the report of the stage carries it to the next run."""

    content: str = ""
    """Digest of what decides a history's content besides the events."""
    version: int | None = None
    bases: Mapping[str, str] = field(default_factory=dict)
    """Last day of a base -> digest of the event files up to it."""
    tails: Mapping[str, str] = field(default_factory=dict)
    """Day of a tail -> digest of its event files."""


@dataclass(frozen=True)
class AsOf:
    """The histories as of a run date: `base`, then `tails` in order, in a pinned version."""

    version: int
    base: str
    tails: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to do so that the histories of a run date are there; decided from fingerprints alone."""

    full: bool
    base: str
    """The base to read from, or, with `full`, to make from all events up to it."""
    tails: tuple[str, ...]
    """Days between the base and the run date that have events."""
    stale: tuple[str, ...]
    """Those, and days that lost their events, whose tail has to be written."""
    new_base: str | None
    """A base to make out of `base` and the tails up to it."""


@dataclass(frozen=True)
class Built:
    """What a build leaves: where to read, and what the next build has to know."""

    as_of: AsOf
    state: State
    report: dict[str, Any]


@dataclass(frozen=True)
class _Log:
    """The event files as of a run date, by day."""

    files: Mapping[str, Sequence[tuple[str, str, int]]]
    """ds -> (path, arrival, rows)"""
    vocabulary: Sequence[tuple[str, str]]
    """(path, arrival) of the item vocabulary."""

    def fingerprints(self) -> dict[str, str]:
        """ds -> digest of the files that decide its events and their indices.

        Of the vocabulary those of the same arrivals: later ones give an event no index, earlier ones do not change.
        """
        by_arrival: dict[str, list[str]] = {}
        for path, arrival in self.vocabulary:
            by_arrival.setdefault(arrival, []).append(path)
        out = {}
        for ds, found in self.files.items():
            keys = sorted(p for a in {arrival for _, arrival, _ in found} for p in by_arrival.get(a, []))
            out[ds] = _digest([sorted(path for path, _, _ in found), keys])
        return out


def build(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    settings: SequenceSettings,
    inputs: Mapping[str, int],
    arrivals: Sequence[str],
    day: str,
    state: State | None,
    metadata: dict[str, Any],
    *,
    rebuild: bool = False,
) -> Built:
    """Bring the histories up to run date `day`; `state` is what the last published build left.

    Raises DataRefused when the table has other buckets than the settings, AuditError when a file would hold
    events of other days than it should; nothing is committed then.
    """
    buckets.ensure(lake, HISTORIES, settings.buckets)
    window = contract.rules.window_days if contract.dated else 0
    log = _log(lake, inputs, arrivals, day)
    content = _digest([contract.targets, contract.context, settings.positives_only, settings.history_cap])
    valid = _intact(lake, state) if state is not None and state.content == content else State(content)
    plan = plan_of(log.fingerprints(), valid, day, window, settings.base_every, rebuild=rebuild)
    rules = _rules(contract, settings, log)
    job = _Job(spark, lake, metadata, settings.buckets, settings.history_cap)
    replaced: set[str] = set()
    if plan.full:
        replaced = {plan.base, *_days_after(plan.base, day)} | _worthless(lake, valid, log.fingerprints(), day)
        groups = _groups(log, [d for d in log.files if d <= plan.base], plan.tails)
        version = job.commit(shuffled(spark, lake, groups, plan.base, rules), {"ds": sorted(replaced)})
    else:
        version = lake.version(HISTORIES.name) or 0
        if plan.stale:
            files = tails(spark, lake, _groups(log, [], [d for d in plan.stale if d in log.files]), rules)
            version = job.commit(files, {"ds": list(plan.stale), "kind": ["tail"]})
    as_of = AsOf(version, plan.base, plan.tails)
    if plan.new_base is not None:
        merged = job.merge(as_of, plan.new_base)
        version = job.commit(merged, {"ds": [plan.new_base], "kind": ["base"]})
        as_of = AsOf(version, plan.new_base, tuple(t for t in plan.tails if t > plan.new_base))
    after = _state_after(plan, valid, log.fingerprints(), version, replaced)
    if plan.full or plan.new_base is not None:
        after = job.drop_superseded(after, as_of)
    report = {"full": plan.full, "base": as_of.base, "built": list(plan.tails if plan.full else plan.stale)}
    return Built(as_of, after, {**report, "tails": list(as_of.tails), "files": job.written, "state": asdict(after)})


def plan_of(
    expected: Mapping[str, str], state: State, day: str, window: int, base_every: int, *, rebuild: bool = False
) -> Plan:
    """What to build for run date `day`; `expected` has the fingerprint of every day that has events."""
    latest = _back(day, max(2, window + 1))  # nothing up to here can still arrive, and d-1 and d are windows
    bases = [b for b, made_from in state.bases.items() if b <= _back(day, 2) and made_from == base_of(expected, b)]
    if rebuild or not bases:
        tails = tuple(sorted(d for d in expected if latest < d <= day))
        return Plan(True, latest, tails, (), None)
    base = max(bases)
    tails = tuple(sorted(d for d in expected if base < d <= day))
    gone = [d for d in state.tails if base < d <= day and d not in expected]
    stale = tuple(sorted([d for d in tails if state.tails.get(d) != expected[d]] + gone))
    if len(stale) > window + base_every and 2 * len(stale) > len(expected):
        return plan_of(
            expected, state, day, window, base_every, rebuild=True
        )  # one shuffle costs less than so many days
    due = latest >= _back(base, -base_every)
    return Plan(False, base, tails, stale, latest if due else None)


def base_of(expected: Mapping[str, str], last: str) -> str:
    """The fingerprint of a base whose last day is `last`."""
    return _digest(sorted((ds, made_from) for ds, made_from in expected.items() if ds <= last))


def shuffled(
    spark: SparkSession, lake: Lake, groups: Sequence[Group], base: str, rules: Rules
) -> list[tuple[DataFile, dict[str, int]]]:
    """Write the base and tails that the groups of event files make; nothing is committed."""
    if not groups:
        return []
    frame = frame_of(spark, lake, groups, base, rules)
    return [history_tasks.reported(bytes(row.payload)) for row in frame.collect()]


def tails(
    spark: SparkSession, lake: Lake, groups: Sequence[Group], rules: Rules
) -> list[tuple[DataFile, dict[str, int]]]:
    """Write the tails of days: one task a day, no shuffle, but for days too large for one task."""
    folder, alone = lake.path(HISTORIES.name), [g for g in groups if not g.shared]

    def work(number: int) -> Iterator[bytes]:
        for block in history_tasks.blocks(alone[number], rules):
            yield from history_tasks.files([block], folder, "", rules)

    size = len(alone) * delta.BYTES_PER_TASK  # a day is worth a task
    written = [history_tasks.reported(p) for p in delta.each(spark, len(alone), work, size)] if alone else []
    return written + shuffled(spark, lake, [g for g in groups if g.shared], "", rules)


def frame_of(spark: SparkSession, lake: Lake, groups: Sequence[Group], base: str, rules: Rules) -> DataFrame:
    """The one Spark job of a build: group, shuffle by bucket, write."""
    folder, chosen = lake.path(HISTORIES.name), tuple(groups)

    def group(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column("id").to_pylist():
                yield from history_tasks.blocks(chosen[number], rules)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for payload in history_tasks.files(batches, folder, base, rules):
            yield pa.RecordBatch.from_pydict({"payload": pa.array([payload], pa.binary())})

    blocks = spark.range(0, len(chosen), 1, len(chosen)).mapInArrow(group, BLOCK)
    return blocks.repartitionById(rules.buckets, "bucket").mapInArrow(write, "payload binary")


@dataclass(frozen=True)
class Files:
    """Per bucket the (day, path) of its base and tails in order of time; bytes of all together."""

    buckets: list[list[tuple[str, str]]]
    size: int


def files_of(lake: Lake, as_of: AsOf, count: int) -> Files:
    """Where the histories as of a run date lie.

    Raises DataRefused when the table's buckets are not those asked for.
    """
    buckets.check(lake, HISTORIES, count)
    found: list[list[tuple[str, str]]] = [[] for _ in range(count)]
    chosen = {(as_of.base, "base"), *((ds, "tail") for ds in as_of.tails)}
    size = 0
    for path, partition, _, large in _files(lake, HISTORIES.name, as_of.version, [as_of.base, *as_of.tails]):
        if (partition["ds"], partition["kind"]) in chosen:
            found[int(partition["bucket"])].append((partition["ds"], path))
            size += large
    return Files([sorted(files) for files in found], size)


def whole(files: Sequence[tuple[str, str]], cap: int) -> pa.Table:
    """One bucket's histories as one table (user, items, ts, is_target), of each user the last `cap` events.

    `files`: the bucket's (day, path) in order of time, as `files_of` has them.
    """
    if not files:
        return HISTORIES.file_schema.empty_table()
    return history_tasks.base_of([pq.ParquetFile(path).read(use_threads=False) for _, path in files], cap)


@dataclass
class _Job:
    """Writes and commits; counts what it wrote."""

    spark: SparkSession
    lake: Lake
    metadata: dict[str, Any]
    buckets: int
    cap: int
    written: int = 0

    def merge(self, as_of: AsOf, day: str) -> list[tuple[DataFile, dict[str, int]]]:
        """Write a base up to `day` out of the one before it and the tails between; no shuffle."""
        folder, cap = self.lake.path(HISTORIES.name), self.cap
        found = files_of(self.lake, as_of, self.buckets)
        files = [[path for ds, path in bucket if ds <= day] for bucket in found.buckets]

        def work(bucket: int) -> Iterator[bytes]:
            tables = [pq.ParquetFile(path).read(use_threads=False) for path in files[bucket]]
            if tables:
                yield history_tasks.write(folder, history_tasks.base_of(tables, cap), day, "base", bucket)

        return [history_tasks.reported(p) for p in delta.each(self.spark, self.buckets, work, found.size)]

    def commit(self, reports: list[tuple[DataFile, dict[str, int]]], replace: Mapping[str, Sequence[str]]) -> int:
        """One commit of audited files."""
        for file, times in reports:
            _audit(file, times)
        self.written += len(reports)
        return commit(self.lake, HISTORIES, [f for f, _ in reports], replace=replace, metadata=self.metadata)

    def drop_superseded(self, state: State, as_of: AsOf) -> State:
        """Let go of the days before the bases that are kept; older run dates, if asked for, are built in full.

        `as_of` stays readable: its version is pinned, and a vacuum leaves what is younger than --keep-days.
        """
        oldest = min(as_of.base, *sorted(state.bases)[-KEPT_BASES:])
        days = self.lake.partitions(HISTORIES.name, state.version or 0, "ds")
        version = state.version
        if old := [ds for ds in days if ds < oldest]:
            version = commit(self.lake, HISTORIES, [], replace={"ds": old}, metadata=self.metadata)
        bases = {ds: made_from for ds, made_from in state.bases.items() if ds >= oldest}
        return State(state.content, version, bases, {ds: f for ds, f in state.tails.items() if ds >= oldest})


def _audit(file: DataFile, times: Mapping[str, int]) -> None:
    """Raise AuditError when the file has an event outside its day (tail) or after it (base)."""
    start = _midnight(file.partition["ds"])
    outside = times["low"] < start if file.partition["kind"] == "tail" else False
    if outside or times["high"] >= start + DAY_US:
        raise AuditError(
            f"histories, file {file.path!r}: it has events at {times['low']} to {times['high']} us, outside "
            f"{file.partition['ds']}: the events table holds events of one day in the partition of another; "
            "nothing was committed"
        )


def _rules(contract: Contract, settings: SequenceSettings, log: _Log) -> Rules:
    """Arrivals become their ranks, so that the tasks compare numbers."""
    rank = _ranks(log)
    return Rules(
        settings.history_cap,
        settings.buckets,
        tuple(contract.targets),
        tuple(contract.context),
        settings.positives_only,
        tuple((path, rank[arrival]) for path, arrival in log.vocabulary),
    )


def _ranks(log: _Log) -> dict[str, int]:
    arrivals = {a for _, a in log.vocabulary} | {a for found in log.files.values() for _, a, _ in found}
    return {arrival: n for n, arrival in enumerate(sorted(arrivals))}


def _groups(log: _Log, base_days: Sequence[str], tails: Sequence[str]) -> list[Group]:
    """Tasks of at most EVENTS_PER_TASK: days of the base together, each tail apart, a large day in parts."""
    rank = _ranks(log)
    out: list[Group] = []
    held: list[tuple[str, int, int]] = []
    count, number = 0, 0

    def close() -> None:
        nonlocal held, count, number
        if held:
            out.append(Group(number, "", False, tuple(held)))
            held, count, number = [], 0, number + 1

    for day in sorted(base_days):
        files = [((p, rank[a], _midnight(day)), rows) for p, a, rows in log.files[day]]
        rows = sum(r for _, r in files)
        if count + rows > EVENTS_PER_TASK:
            close()
        if rows > EVENTS_PER_TASK:
            out += _parts(number, "", files)
            number += 1
            continue
        held += [file for file, _ in files]
        count += rows
    close()
    for day in sorted(tails):
        out += _parts(number, day, [((p, rank[a], _midnight(day)), rows) for p, a, rows in log.files[day]])
        number += 1
    return out


def _parts(number: int, ds: str, files: Sequence[tuple[tuple[str, int, int], int]]) -> list[Group]:
    """The files of one day in groups; more than one of them share it."""
    parts = delta.together(files, EVENTS_PER_TASK)
    return [Group(number, ds, len(parts) > 1, tuple(part)) for part in parts]


def _log(lake: Lake, inputs: Mapping[str, int], arrivals: Sequence[str], day: str) -> _Log:
    wanted = set(arrivals)
    files: dict[str, list[tuple[str, str, int]]] = {}
    for path, partition, rows, _ in _files(lake, "events", inputs["events"]):
        if partition["arrival"] in wanted and partition["ds"] <= day:
            files.setdefault(partition["ds"], []).append((path, partition["arrival"], rows))
    items = _files(lake, ITEMS.name, inputs[ITEMS.name])
    vocabulary = [(path, p["arrival"]) for path, p, *_ in items if p["arrival"] in wanted]
    return _Log(files, vocabulary)


def _files(
    lake: Lake, table: str, version: int, days: Sequence[str] | None = None
) -> list[tuple[str, dict[str, str], int, int]]:
    """(path, partition, rows, bytes) of a pinned version's files, in order of path."""
    actions = pa.table(lake.open(table, version).get_add_actions())
    if days is not None and actions.num_rows:
        ds = pc.struct_field(actions["partition"], "ds")
        actions = actions.filter(pc.is_in(ds, value_set=pa.array(days, pa.string())))
    columns = [actions[c].to_pylist() for c in ("path", "partition", "num_records", "size_bytes")]
    rows = ((f"{lake.path(table)}/{path}", *others) for path, *others in zip(*columns, strict=True))
    return sorted(rows, key=lambda row: row[0])


def _intact(lake: Lake, state: State) -> State:
    """The state without partitions that somebody has changed since: a command that died before it published."""
    newest = lake.version(HISTORIES.name)
    if state.version is None or newest == state.version:
        return state

    def by_partition(version: int) -> dict[tuple[str, str], set[str]]:
        out: dict[tuple[str, str], set[str]] = {}
        for path, p, *_ in _files(lake, HISTORIES.name, version):
            out.setdefault((p["ds"], p["kind"]), set()).add(path)
        return out

    then, now = by_partition(state.version), by_partition(newest or 0)
    changed = {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)}
    bases = {d: f for d, f in state.bases.items() if (d, "base") not in changed}
    return State(state.content, newest, bases, {d: f for d, f in state.tails.items() if (d, "tail") not in changed})


def _worthless(lake: Lake, state: State, expected: Mapping[str, str], day: str) -> set[str]:
    """Days in the table of which nothing is valid: made by other rules, or from events that are there no more.

    Nobody would read them again, and they may hold what was since erased or renamed in the events.
    """
    return {
        ds
        for ds in lake.partitions(HISTORIES.name, lake.version(HISTORIES.name) or 0, "ds")
        if (ds > day and ds not in state.bases and ds not in state.tails)
        or (ds <= day and state.tails.get(ds) != expected.get(ds, "") and state.bases.get(ds) != base_of(expected, ds))
    }


def _state_after(
    plan: Plan, before: State, expected: Mapping[str, str], version: int, replaced: Collection[str]
) -> State:
    bases = {d: f for d, f in before.bases.items() if d not in replaced}
    made = plan.tails if plan.full else plan.stale
    tails = {d: f for d, f in before.tails.items() if d not in made and d not in replaced}
    tails |= {d: expected[d] for d in made if d in expected}
    for base in (plan.base, plan.new_base):
        if base is not None:
            bases[base] = base_of(expected, base)
    return State(before.content, version, bases, tails)


def _days_after(base: str, day: str) -> list[str]:
    count = (date.fromisoformat(day) - date.fromisoformat(base)).days
    return [_back(base, -n) for n in range(1, count + 1)]


def _back(day: str, days: int) -> str:
    return (date.fromisoformat(day) - timedelta(days=days)).isoformat()


def _digest(value: Any) -> str:
    from infra.config import digest  # not with the module, which executors may load: they have no pydantic

    return digest(value)


def _midnight(day: str) -> int:
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY_US
