"""The rows of the table `profiles`: sketches and drift of an arrival's columns, written and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from featurize.drift import Drift, compare
from featurize.sketch import Sketch
from featurize.sketch_job import Drawn
from infra.commit import DataFile, write_file
from infra.lake import Lake
from infra.tables import PROFILES

EVENTS, USERS, ITEMS = "events", "users", "items"
"""Where a column comes from: the log, or the side file of users or items."""


def fields(lake: Lake, version: int, arrival: str) -> list[dict[str, Any]]:
    """An arrival's rows of `profiles`, their JSON read, in the order of their position."""
    rows = lake.read(PROFILES.name, version, {"arrival": arrival}).to_pylist()
    for row in rows:
        row["sketch"] = json.loads(row["sketch"])
        row["drift"] = json.loads(row["drift"]) if row["drift"] is not None else None
    return sorted(rows, key=lambda r: r["position"])


def rows_of(
    arrivals: Sequence[str],
    taken: Mapping[str, Mapping[str, Mapping[str, str]]],
    drawn: Mapping[tuple[str, str, str], Drawn],
    stored: Mapping[tuple[str, str], Sketch],
) -> list[dict[str, Any]]:
    """The rows of `profiles`: per arrival the event type, log fields, then those of its side files' snapshots.

    `taken` names the snapshot of each side file that holds on an arrival. One that is still that of the
    arrival before has that one's sketches, and has not drifted.
    """
    known = dict(stored)  # what the next snapshot of a side file is compared with
    out = []
    for arrival in arrivals:
        position = 0
        for source in (EVENTS, USERS, ITEMS):
            snapshot = taken[arrival].get(source)
            label = snapshot["arrival"] if snapshot is not None else arrival
            fresh = {c: d for (s, at, c), d in drawn.items() if (s, at) == (source, label)}
            if snapshot is not None and not fresh:  # unchanged since the report before this batch
                fresh = {c: Drawn(sketch) for (s, c), sketch in stored.items() if s == source}
            for column, d in fresh.items():
                same = source != EVENTS and known.get((source, column)) == d.sketch
                drift = _same(d.sketch) if same else _drift(d)
                known[source, column] = d.sketch
                row = {"arrival": arrival, "position": position, "source": source, "column": column}
                out.append({**row, **_record(d.sketch, drift)})
                position += 1
    return out


def _drift(drawn: Drawn) -> Drift | None:
    if drawn.reference is None or drawn.current is None:
        return None
    return compare(drawn.reference.bins, drawn.reference.tally, drawn.current)


def _same(sketch: Sketch) -> Drift | None:
    return compare(sketch.bins, sketch.tally, sketch.tally)


def _record(sketch: Sketch, drift: Drift | None) -> dict[str, Any]:
    return {
        "kind": sketch.kind,
        "rows": sketch.rows,
        "missing": sketch.missing,
        "psi": drift.psi if drift is not None else None,
        "level": drift.level.value if drift is not None else None,
        "sketch": json.dumps(asdict(sketch)),
        "drift": json.dumps(asdict(drift)) if drift is not None else None,
    }


def sketch_of(row: Mapping[str, Any]) -> Sketch:
    """The sketch in a row that `fields` has read."""
    lists = {k: tuple(row["sketch"][k]) for k in ("edges", "counts")}
    return Sketch(**{**row["sketch"], **lists, "values": tuple((v, n) for v, n in row["sketch"]["values"])})


def write(lake: Lake, arrivals: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[DataFile]:
    """The files of `profiles`, one per arrival, not committed."""
    return [
        write_file(
            lake.path(PROFILES.name),
            PROFILES,
            {"arrival": a},
            [pa.Table.from_pylist([dict(r) for r in rows if r["arrival"] == a], schema=PROFILES.schema)],
        )
        for a in arrivals
    ]
