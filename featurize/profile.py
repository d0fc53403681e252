"""The data report's figures, arrival by arrival, from the published tables.

An arrival is counted from its own partitions, the sketches of the arrival before, and the keys seen so
far; the events of earlier days are not read. What is counted per arrival: rows, events, duplicates, late,
quarantined by reason, users, items, new ones, labels, missing rates, distributions and their drift. Per
event day: events of this arrival, and of all arrivals up to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from featurize import delta, first_seen
from featurize.first_seen import KeyCounts
from featurize.profile_rows import EVENTS, ITEMS, USERS, fields, rows_of, sketch_of, write
from featurize.sketch_job import Source, draw
from infra.commit import DataFile, astray, commit
from infra.config import digest
from infra.lake import Lake
from infra.tables import (
    FIRST_SEEN,
    INGESTED_FILES,
    PROFILES,
    QUARANTINE,
    UNDATED,
    Kind,
    Table,
    column_of,
    events,
    side_features,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from featurize.contract import Contract

TYPE = "type"
"""The column of the event type, which is sketched like a field."""
ACCOUNT = ("rows", "events", "duplicates", "quarantined", "late")
_SIDES = {USERS: "user", ITEMS: "item"}


@dataclass(frozen=True)
class Before:
    """The report to go on from: its arrival, all arrivals up to it, and its outputs (table -> version)."""

    arrival: str
    arrivals: Sequence[str]
    versions: Mapping[str, int]
    snapshots: Mapping[str, Mapping[str, str]]
    """The side files' snapshots it was made from."""


@dataclass(frozen=True)
class Measured:
    """Versions of `profiles` and `first_seen`, and the figures of each arrival.

    Those of its columns stand in `profiles`: see featurize.profile_rows.fields.
    """

    versions: dict[str, int]
    figures: dict[str, dict[str, Any]]


def measure(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    versions: Mapping[str, int],
    arrivals: Sequence[str],
    before: Before | None,
    metadata: dict[str, Any],
) -> Measured:
    """Count the arrivals (oldest first, none published yet), compare each with the one before, and commit.

    The number of Spark jobs does not depend on the number of arrivals.
    """
    log_columns = {TYPE: Kind.CATEGORICAL, **{column_of(n): k for n, k in contract.kinds_from("log")}}
    table = events(contract.kinds_from("log"))
    log = delta.read(spark, lake, table, versions[EVENTS], {"arrival": list(arrivals)})
    days = _days(log)
    seen = (before.versions[FIRST_SEEN.name], before.arrivals) if before is not None else None
    keys, new_files = first_seen.count(spark, lake, log, arrivals, seen)
    taken = snapshots(lake, contract, versions, arrivals)
    old = fields(lake, before.versions[PROFILES.name], before.arrival) if before is not None else []
    stored = {(r["source"], r["column"]): sketch_of(r) for r in old}
    sources = [Source(EVENTS, log.select("arrival", *log_columns), log_columns, arrivals)]
    sources += _side_sources(spark, lake, contract, versions, [taken[a] for a in arrivals], before)
    drawn = draw(spark, sources, stored)
    rows = rows_of(arrivals, taken, drawn, stored)
    stored_events = _stored(lake, versions[EVENTS])
    figures = {
        a: {
            **_account(lake, versions, a),
            **_keys(keys[a]),
            **_labels(days.get(a, {})),
            "event_days": _event_days(a, days.get(a, {}), stored_events),
            "snapshots": taken[a],
        }
        for a in arrivals
    }
    written = {PROFILES: write(lake, arrivals, rows), FIRST_SEEN: new_files}
    return Measured(_commit(lake, arrivals, before, written, metadata), figures)


def snapshots(
    lake: Lake, contract: Contract, versions: Mapping[str, int], arrivals: Sequence[str]
) -> dict[str, dict[str, dict[str, str]]]:
    """Arrival -> side file with fields -> its newest snapshot up to then, and a hash of the data files' names."""
    out: dict[str, dict[str, dict[str, str]]] = {a: {} for a in arrivals}
    for source, of in _SIDES.items():
        name = f"{of}_features"
        if not contract.kinds_from(source) or name not in versions:
            continue
        files: dict[str, list[str]] = {}
        for file in pa.table(lake.open(name, versions[name]).get_add_actions()).to_pylist():
            files.setdefault(file["partition"]["arrival"], []).append(file["path"])
        for arrival in arrivals:
            if taken := max((a for a in files if a <= arrival), default=None):
                out[arrival][source] = {"arrival": taken, "files": digest(sorted(files[taken]))}
    return out


def _days(log: DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """arrival -> event day -> events, labelled, positive."""
    from pyspark.sql import functions as F

    counts = log.groupBy("arrival", "ds").agg(
        F.count("*").alias("events"), F.count("label").alias("labelled"), F.sum("label").alias("positive")
    )
    out: dict[str, dict[str, dict[str, int]]] = {}
    for r in counts.collect():
        day = {"events": r.events, "labelled": r.labelled, "positive": r.positive or 0}
        out.setdefault(r.arrival, {})[r.ds] = day
    return out


def _side_sources(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    versions: Mapping[str, int],
    taken: Sequence[Mapping[str, Mapping[str, str]]],
    before: Before | None,
) -> list[Source]:
    """The side files' snapshots that the report before has not sketched: an unchanged one is not read again."""
    known = before.snapshots if before is not None else {}
    out = []
    for source, of in _SIDES.items():
        labels = {t[source]["arrival"]: t[source]["files"] for t in taken if source in t}
        fresh = sorted(a for a, files in labels.items() if known.get(source) != {"arrival": a, "files": files})
        if fresh:
            kinds = contract.kinds_from(source)
            columns = {column_of(n): k for n, k in kinds}
            table = side_features(of, kinds)
            frame = delta.read(spark, lake, table, versions[table.name], {"arrival": fresh})
            out.append(Source(source, frame.select("arrival", *columns), columns, fresh))
    return out


def _account(lake: Lake, versions: Mapping[str, int], arrival: str) -> dict[str, Any]:
    """What became of the arrival's rows, from `ingested_files` and `quarantine`."""
    where = {"arrival": arrival}
    files = lake.read(INGESTED_FILES.name, versions[INGESTED_FILES.name], where, list(ACCOUNT))
    reasons: Counter[str] = Counter()
    refused = lake.dataset(QUARANTINE.name, versions[QUARANTINE.name], where)
    for batch in refused.to_batches(columns=["reason"]):
        reasons.update({v["values"].as_py(): v["counts"].as_py() for v in pc.value_counts(batch.column("reason"))})
    return {**{c: pc.sum(files[c]).as_py() or 0 for c in ACCOUNT}, "reasons": dict(sorted(reasons.items()))}


def _keys(counts: KeyCounts) -> dict[str, Any]:
    out: dict[str, Any] = {f"{k}s": counts.distinct[k] for k in first_seen.KEYS}
    out |= {f"new_{k}s": counts.new[k] for k in first_seen.KEYS}
    return {**out, "events_per_user": counts.events_per_user}


def _labels(days: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    labelled, positive = (sum(d[c] for d in days.values()) for c in ("labelled", "positive"))
    return {"labelled": labelled, "positive": positive, "label_rate": positive / labelled if labelled else None}


def _stored(lake: Lake, version: int) -> Counter[tuple[str, str]]:
    """Events by (arrival, event day), from the Delta log alone."""
    stored: Counter[tuple[str, str]] = Counter()
    for file in pa.table(lake.open(EVENTS, version).get_add_actions()).to_pylist():
        stored[file["partition"]["arrival"], file["partition"]["ds"]] += file["num_records"]
    return stored


def _event_days(
    arrival: str, days: Mapping[str, Mapping[str, int]], stored: Mapping[tuple[str, str], int]
) -> list[dict[str, Any]]:
    """The arrival's event days, oldest first."""
    return [
        {
            "ds": ds,
            "late": arrival != UNDATED and ds < arrival,
            **day,
            "events_so_far": sum(n for (a, d), n in stored.items() if d == ds and a <= arrival),
        }
        for ds, day in sorted(days.items())
    ]


def _commit(
    lake: Lake,
    arrivals: Sequence[str],
    before: Before | None,
    written: Mapping[Table, Sequence[DataFile]],
    metadata: dict[str, Any],
) -> dict[str, int]:
    """One commit per table; partitions that somebody changed since `before` was published are put back."""
    versions = {}
    for table, files in written.items():
        back: list[DataFile] = []
        moved: list[str] = []
        if before is not None:
            back, moved = astray(lake, table, before.versions[table.name], "arrival", before.arrivals)
        replace = {"arrival": sorted({*arrivals, *moved})}
        versions[table.name] = commit(lake, table, [*files, *back], replace=replace, metadata=metadata)
    return versions
