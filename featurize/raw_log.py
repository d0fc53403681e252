"""The events as clients write them: JSON lines in a folder per arrival day, and the side files.

The schema may change on one day: every file from then on has another name for one column and one
field more. Letters as in featurize/defects.py.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.behaviour import Log
from featurize.clocks import Clocks, written
from featurize.defects import FIRST_REASON, PARTS, REASONS, Plan, dump, spoil
from featurize.missingness import PRESENT, draw_at_random, put
from featurize.world import CHANNELS, COUNTRIES, DEVICES, Flags, Ints, World

LOG_FIELDS = ("device", "country", "age", "price", "channel")
"""The feature fields of the log itself."""
RENAMED = {"channel": "source_channel"}
ADDED = "app_version"
"""What a schema change does to the log."""
VERSIONS = ("5.0", "5.1", "6.0")


@dataclass(frozen=True)
class RawLog:
    """Everything that a written row is made of."""

    world: World
    log: Log
    clocks: Clocks
    missing: dict[str, NDArray[np.int8]]
    start: date
    turn: int | None
    """Arrival day (0 = the log's start) from which on files have the new schema; none if it never changes."""
    version_N: Ints
    """Position in VERSIONS, for rows of the new schema."""

    def rows(self, take: Ints, day: int) -> Iterator[dict[str, Any]]:
        """The events numbered `take` as files of arrival day `day` have them; always the same row on the same side."""
        log, changed = self.log, self.turn is not None and day >= self.turn
        epoch_ms = int(datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC).timestamp()) * 1000
        user = log.user_N[take]
        values = {
            "device": [DEVICES[d] for d in log.device_N[take]],
            "country": [COUNTRIES[c] for c in self.world.users.country_U[user]],
            "age": self.world.users.age_U[user].tolist(),
            "price": log.price_N[take].tolist(),
            "channel": [CHANNELS[c] for c in log.channel_N[take]],
            ADDED: [VERSIONS[v] for v in self.version_N[take]],
        }
        names = {name: name for name in LOG_FIELDS} | ({**RENAMED, ADDED: ADDED} if changed else {})
        features = [(new, values[name], self.missing[name][take].tolist()) for name, new in names.items()]
        heads = zip(
            take.tolist(),
            user.tolist(),
            log.item_N[take].tolist(),
            (self.clocks.logged_N[take] + epoch_ms).tolist(),
            self.clocks.unit_N[take].tolist(),
            log.clicked_N[take].tolist(),
            strict=True,
        )
        for i, (number, who, item, ms, unit, clicked) in enumerate(heads):
            row: dict[str, Any] = {
                # Zero-padded, so that (time, event_id) keeps the order of events at the same time.
                "event_id": f"e{number:09d}",
                "user_id": f"u{who}",
                "item_id": f"i{item}",
                "time": written(ms, unit),
                "event": "click" if clicked else "impression",
            }
            for name, column, state in features:
                put(row, name, column[i], state[i])
            yield row


def write_events(out: Path, raw: RawLog, lines: Plan, days: int, rng: np.random.Generator) -> None:
    """Write `out`/DATE/PART for each arrival day."""
    for day in range(days):
        directory = out / (raw.start + timedelta(days=day)).isoformat()
        directory.mkdir(parents=True)
        for part, name in enumerate(PARTS):
            here = np.flatnonzero((lines.arrival_R == day) & (lines.part_R == part))
            data = bytearray()
            for row, fate in zip(raw.rows(lines.event_R[here], day), lines.fate_R[here].tolist(), strict=True):
                text = dump(row) if fate < FIRST_REASON else spoil(row, REASONS[fate - FIRST_REASON], rng)
                data += text.encode() + b"\n"
            # Without a modification time the archive depends on nothing but its content.
            (directory / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)


def write_side(path: Path, key: str, features: dict[str, list[Any]], rng: np.random.Generator) -> None:
    """Write a side file: one row per item or user (`key` is item_id or user_id), fields missing at random."""
    rows: list[dict[str, Any]] = [{key: f"{key[0]}{i}"} for i in range(len(next(iter(features.values()))))]
    for name, values in features.items():
        for row, value, state in zip(rows, values, draw_at_random(name, len(rows), rng).tolist(), strict=True):
            put(row, name, value, state)
    path.write_text("".join(dump(row) + "\n" for row in rows), encoding="utf-8")


def schema_change(raw: RawLog, event: Ints, arrival: Ints) -> dict[str, Any] | None:
    """What `truth.json` says of the change, over the accepted events and their arrivals; None without one."""
    if raw.turn is None:
        return None
    after = arrival >= raw.turn
    old, new = next(iter(RENAMED.items()))

    def missing(name: str, chosen: Flags) -> int:
        return int((raw.missing[name][event[chosen]] != PRESENT).sum())

    return {
        "arrival": (raw.start + timedelta(days=raw.turn)).isoformat(),
        "events": {"before": int((~after).sum()), "after": int(after.sum())},
        "missing": {old: missing(old, ~after), new: missing(old, after), ADDED: missing(ADDED, after)},
        "contract_fields": {
            "before": [{"name": old, "kind": "categorical"}],
            "after": [
                {"name": old, "kind": "categorical", "column": new},
                {"name": ADDED, "kind": "categorical"},
            ],
        },
    }
