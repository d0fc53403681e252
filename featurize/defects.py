"""What goes wrong on a clean log's way to the raw files: planted, written, and counted exactly.

A plan says for every physical line of the raw log which event it carries, what became of it, and
where it lies; the counts are read off the plan. Letters: N events of the clean log, R physical lines, M copies.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REASONS = ("malformed", "empty_line", "null_user", "null_item", "bad_time", "bad_field", "too_late")
"""Why a line is quarantined; the names that `truth.json` counts under."""

EVENT, LATE, DUPLICATE, FIRST_REASON = 0, 1, 2, 3
"""Fates of a line: accepted on its own day, accepted later, a copy, or FIRST_REASON + i for REASONS[i]."""
_TOO_LATE = FIRST_REASON + REASONS.index("too_late")

MISSING_RATES = {
    "device": 0.08,
    "country": 0.12,
    "age": 0.25,
    "price": 0.10,
    "channel": 0.05,
    "category": 0.06,
    "tags": 0.20,
    "quality": 0.30,
    "segment": 0.15,
    "joined": 0.18,
}
"""Chance that a field is missing from its row, whatever the row: half absent, half null."""
PRESENT, ABSENT, NULL = 0, 1, 2
"""States of a field in a row: there, key left out, JSON null."""

PARTS = ("part-0.jsonl.gz", "part-1.jsonl")
"""The files of each arrival day, in the order in which the lower one wins among copies."""

_LATE_SHARE, _TOO_LATE_SHARE, _DUPLICATE_SHARE, _SPOILT_SHARE = 0.01, 0.002, 0.01, 0.01
_LATE_DAYS = 2  # late events and copies come at most this many days after their original's day
_WINDOW_DAYS = 3  # what comes later than this is too late
_AT_LEAST_ONE_FROM = 300  # events from which on every kind of defect occurs


@dataclass(frozen=True)
class Plan:
    """The physical lines in the order of (arrival, part, position).

    event_R: which event of the clean log the line carries; fate_R: what becomes of it;
    arrival_R: days after the log's start; part_R: position in PARTS.
    """

    event_R: NDArray[np.int64]
    fate_R: NDArray[np.int64]
    arrival_R: NDArray[np.int64]
    part_R: NDArray[np.int64]

    def accepted(self) -> NDArray[np.int64]:
        """The events that a correct reader keeps, each once."""
        return self.event_R[self.fate_R <= LATE]


def plan(day_N: NDArray[np.int64], place_N: NDArray[np.float64], days: int, rng: np.random.Generator) -> Plan:
    """Decide what becomes of each event.

    `day_N` is the event's day (0 = the log's start) and `place_N`, in [0, 1), its place among the
    lines of that day. Events that are spoilt or too late are lost: no good copy of them exists.
    """
    count = len(day_N)
    least = 1 if count >= _AT_LEAST_ONE_FROM else 0
    fate_N, arrival_N, place_N = np.zeros(count, np.int64), day_N.copy(), place_N.copy()

    def take(fate: int, share: float, eligible_N: NDArray[np.bool_]) -> NDArray[np.int64]:
        pool = np.flatnonzero(eligible_N & (fate_N == EVENT))
        chosen = rng.choice(pool, min(len(pool), max(least, round(share * count))), replace=False)
        fate_N[chosen] = fate
        return chosen

    def delay(chosen: NDArray[np.int64], first: int, last: int) -> None:
        by = rng.integers(first, last + 1, len(chosen))
        arrival_N[chosen] = np.minimum(day_N[chosen] + by, days - 1)
        place_N[chosen] = rng.random(len(chosen))

    too_late = take(_TOO_LATE, _TOO_LATE_SHARE, day_N + _WINDOW_DAYS + 1 < days)
    delay(too_late, _WINDOW_DAYS + 1, _WINDOW_DAYS + 3)
    delay(take(LATE, _LATE_SHARE, day_N + 1 < days), 1, _LATE_DAYS)
    spoilt = [reason for reason in REASONS if reason != "too_late"]
    for reason in spoilt:
        take(FIRST_REASON + REASONS.index(reason), _SPOILT_SHARE / len(spoilt), np.ones(count, bool))

    part_N = rng.integers(0, len(PARTS), count)
    copied = np.flatnonzero(fate_N <= LATE)
    copied = rng.choice(copied, min(len(copied), max(least, round(_DUPLICATE_SHARE * count))), replace=False)
    arrival_M, part_M, place_M = _copies(
        arrival_N[copied], part_N[copied], place_N[copied], fate_N[copied] == EVENT, days, rng
    )
    event_R = np.concatenate([np.arange(count), copied])
    fate_R = np.concatenate([fate_N, np.full(len(copied), DUPLICATE)])
    arrival_R, part_R = np.concatenate([arrival_N, arrival_M]), np.concatenate([part_N, part_M])
    # Stable, and copies stand behind the originals: a copy never overtakes its original within a file.
    order_R = np.lexsort((np.concatenate([place_N, place_M]), part_R, arrival_R))
    return Plan(event_R[order_R], fate_R[order_R], arrival_R[order_R], part_R[order_R])


def _copies(
    arrival_M: NDArray[np.int64],
    part_M: NDArray[np.int64],
    place_M: NDArray[np.float64],
    on_time_M: NDArray[np.bool_],
    days: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Arrival, part and place of a copy of each line: same file, the other file, or up to two days on.

    Copies of late events stay on their day, so that no copy comes after the window of its event.
    """
    count = len(arrival_M)
    by_M = np.where(on_time_M & (rng.random(count) < 0.4), rng.integers(1, _LATE_DAYS + 1, count), 0)
    by_M[arrival_M + by_M >= days] = 0
    other_M = rng.random(count) < 0.5
    after_M = place_M + rng.random(count) * (1 - place_M)
    same_file_M = (by_M == 0) & ~other_M
    place = np.where(same_file_M, after_M, rng.random(count))
    return arrival_M + by_M, np.where(other_M, 1 - part_M, part_M), place


def missing(name: str, count: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """PRESENT, ABSENT or NULL for field `name` in each of `count` rows, at the field's rate."""
    chance, rate = rng.random(count), MISSING_RATES[name]
    return (chance < rate).astype(np.int8) + (chance < rate / 2).astype(np.int8)


def put(row: dict[str, Any], name: str, value: Any, state: int) -> None:
    """Write a field into a row in the state that `missing` gave it.

    >>> row = {"item_id": "i3"}
    >>> put(row, "age", 31, ABSENT); put(row, "price", 2.5, NULL); put(row, "device", "tv", PRESENT)
    >>> row
    {'item_id': 'i3', 'price': None, 'device': 'tv'}
    """
    if state == PRESENT:
        row[name] = value
    elif state == NULL:
        row[name] = None


def spoil(row: dict[str, Any], reason: str, rng: np.random.Generator) -> str:
    """The line that a good row becomes for one of REASONS (a row that is merely too late stays as it is).

    >>> spoil({"user_id": "u1", "price": 2.5}, "bad_field", np.random.default_rng(0))
    '{"user_id":"u1","price":"cheap"}'
    >>> spoil({"user_id": "u1"}, "empty_line", np.random.default_rng(0))
    ''
    """
    if reason == "empty_line":
        return ""
    if reason == "malformed":  # no proper prefix of an object is valid JSON
        text = dump(row)
        return text[: int(rng.integers(1, len(text)))]
    if reason == "null_user":
        return dump(_without(row, "user_id", rng))
    if reason == "null_item":
        return dump(_without(row, "item_id", rng))
    if reason == "bad_time":
        return dump(row | {"time": "yesterday"} if rng.random() < 0.5 else _without(row, "time", rng))
    if reason == "bad_field":
        return dump(row | {"price": "cheap"})
    return dump(row)


def _without(row: dict[str, Any], name: str, rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.5:
        return row | {name: None}
    return {key: value for key, value in row.items() if key != name}


def dump(row: dict[str, Any]) -> str:
    """One JSON line, keys in the row's order.

    >>> dump({"item_id": "i3", "tags": ["new", "sale"]})
    '{"item_id":"i3","tags":["new","sale"]}'
    """
    return json.dumps(row, separators=(",", ":"))


def write(
    out: Path,
    lines: Plan,
    rows_of: Callable[[NDArray[np.int64]], Iterator[dict[str, Any]]],
    start: date,
    days: int,
    rng: np.random.Generator,
) -> None:
    """Write `out`/DATE/PART for each arrival day; `rows_of` gives the rows of events, by their numbers.

    It must give an event the same row each time, for copies are to be exact.
    """
    for day in range(days):
        directory = out / (start + timedelta(days=day)).isoformat()
        directory.mkdir(parents=True)
        for part, name in enumerate(PARTS):
            here = np.flatnonzero((lines.arrival_R == day) & (lines.part_R == part))
            data = bytearray()
            for row, fate in zip(rows_of(lines.event_R[here]), lines.fate_R[here].tolist(), strict=True):
                good = fate < FIRST_REASON
                text = dump(row) if good else spoil(row, REASONS[fate - FIRST_REASON], rng)
                data += text.encode() + b"\n"
            # Without a modification time the archive depends on nothing but its content.
            (directory / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)


def account(lines: Plan, start: date, days: int) -> dict[str, Any]:
    """The plan's counts: rows = events + duplicates + quarantined, in all and per arrival."""

    def per_day(chosen_R: NDArray[np.bool_]) -> list[int]:
        return np.bincount(lines.arrival_R[chosen_R], minlength=days).tolist()

    fate_R = lines.fate_R
    by_day = {
        "rows": per_day(fate_R >= EVENT),
        "events": per_day(fate_R <= LATE),
        "duplicates": per_day(fate_R == DUPLICATE),
        "quarantined": per_day(fate_R >= FIRST_REASON),
        "late": per_day(fate_R == LATE),
    }
    totals: dict[str, Any] = {name: sum(counts) for name, counts in by_day.items()}
    totals["quarantined"] = {reason: int((fate_R == FIRST_REASON + i).sum()) for i, reason in enumerate(REASONS)}
    totals["arrivals"] = {
        (start + timedelta(days=day)).isoformat(): {name: counts[day] for name, counts in by_day.items()}
        for day in range(days)
    }
    return totals
