"""What goes wrong on a clean log's way to the raw files: planned line by line, and counted exactly.

A plan says for every physical line of the raw log which event it carries, what became of it, and
where it lies; the counts are read off the plan. No line has two defects.
Letters: N events of the clean log, R physical lines, M lines added to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np

from featurize.world import Flags, Floats, Ints

SPOILT = (
    *("malformed", "empty_line", "duplicate_key", "null_user", "null_item"),
    *("bad_time", "time_out_of_bounds", "bad_field"),
)
REASONS = (*SPOILT, "too_late", "from_the_future", "id_conflict")
"""Why a line is quarantined; the names that `truth.json` counts under."""

EVENT, LATE, DUPLICATE, FIRST_REASON = 0, 1, 2, 3
"""Fates of a line: accepted by its date, accepted later, a copy, or FIRST_REASON + i for REASONS[i]."""
TOO_LATE, FUTURE, CONFLICT = (
    FIRST_REASON + REASONS.index(reason) for reason in ("too_late", "from_the_future", "id_conflict")
)

PARTS = ("part-0.jsonl.gz", "part-1.jsonl")
"""The files of each arrival day, in the order in which the lower one wins among copies."""

WINDOW_DAYS = 3  # what comes later than this is too late
GRACE_DAYS = 1  # what comes from further ahead than this is from the future

_LATE_SHARE, _TOO_LATE_SHARE, _DUPLICATE_SHARE, _SPOILT_SHARE = 0.01, 0.002, 0.01, 0.01
_CONFLICT_SHARE = 0.001
_LATE_DAYS = 2  # late events and copies come at most this many days after their original's day
_IN_MINUTES = 29_453_760  # a time in no unit that a contract knows
_FACTORY_SETTING = 315_964_800  # seconds: a clock that was never set
_AT_LEAST_ONE_FROM = 300  # events from which on every kind of defect occurs


@dataclass(frozen=True)
class Plan:
    """The physical lines in the order of (arrival, part, position).

    event_R: which event of the clean log the line carries; fate_R: what becomes of it;
    arrival_R: days after the log's start; part_R: position in PARTS.
    """

    event_R: Ints
    fate_R: Ints
    arrival_R: Ints
    part_R: Ints

    def accepted(self) -> tuple[Ints, Ints]:
        """(event, arrival) of what a correct reader keeps, each event once."""
        kept_R = self.fate_R <= LATE
        return self.event_R[kept_R], self.arrival_R[kept_R]


def plan(
    sent_N: Ints, logged_N: Ints, place_N: Floats, days: int, rng: np.random.Generator, turn: int | None = None
) -> Plan:
    """Decide what becomes of each event.

    `sent_N` is the day on which the event happens and, if nothing goes wrong, arrives (0 = the log's
    start), `logged_N` the day that its logged time falls on, `place_N` in [0, 1) its place among the lines
    of its arrival. Events that are spoilt or outside the window are lost: no good copy of them exists.
    Copies and conflicts of what arrives before day `turn` arrive before it, too.
    """
    count = len(sent_N)
    least = 1 if count >= _AT_LEAST_ONE_FROM else 0
    fate_N, arrival_N, place_N = np.zeros(count, np.int64), sent_N.copy(), place_N.copy()
    true_N = logged_N == sent_N

    def take(fate: int, share: float, eligible_N: Flags) -> Ints:
        pool = np.flatnonzero(eligible_N & (fate_N == EVENT))
        chosen = rng.choice(pool, min(len(pool), max(least, round(share * count))), replace=False)
        fate_N[chosen] = fate
        return chosen

    def delay(chosen: Ints, first: int, last: int) -> None:
        by = rng.integers(first, last + 1, len(chosen))
        arrival_N[chosen] = np.minimum(sent_N[chosen] + by, days - 1)
        place_N[chosen] = rng.random(len(chosen))

    too_late = take(TOO_LATE, _TOO_LATE_SHARE, true_N & (sent_N + WINDOW_DAYS + 1 < days))
    delay(too_late, WINDOW_DAYS + 1, WINDOW_DAYS + 3)
    delay(take(LATE, _LATE_SHARE, true_N & (sent_N + 1 < days)), 1, _LATE_DAYS)
    age_N = arrival_N - logged_N
    for fate, due_N in ((TOO_LATE, age_N > WINDOW_DAYS), (FUTURE, age_N < -GRACE_DAYS), (LATE, age_N > 0)):
        fate_N[due_N & (fate_N == EVENT)] = fate
    on_its_day_N = arrival_N == sent_N
    for i in range(len(SPOILT)):
        take(FIRST_REASON + i, _SPOILT_SHARE / len(SPOILT), fate_N == EVENT)

    part_N = rng.integers(0, len(PARTS), count)
    good = rng.permutation(np.flatnonzero(fate_N <= LATE))
    copies = min(len(good), max(least, round(_DUPLICATE_SHARE * count)))
    copied = good[:copies]
    opposed = good[copies : copies + max(least, round(_CONFLICT_SHARE * count))]
    more = np.concatenate([copied, opposed])
    arrival_M, part_M, place_M = _repeats(
        arrival_N[more], part_N[more], place_N[more], on_its_day_N[more], np.arange(len(more)) < copies, days, turn, rng
    )
    event_R = np.concatenate([np.arange(count), more])
    fate_R = np.concatenate([fate_N, np.repeat([DUPLICATE, CONFLICT], [len(copied), len(opposed)])])
    arrival_R, part_R = np.concatenate([arrival_N, arrival_M]), np.concatenate([part_N, part_M])
    # Stable, and repeats stand behind the originals: none overtakes its original within a file.
    order_R = np.lexsort((np.concatenate([place_N, place_M]), part_R, arrival_R))
    return Plan(event_R[order_R], fate_R[order_R], arrival_R[order_R], part_R[order_R])


def _repeats(
    arrival_M: Ints,
    part_M: Ints,
    place_M: Floats,
    on_its_day_M: Flags,
    exact_M: Flags,
    days: int,
    turn: int | None,
    rng: np.random.Generator,
) -> tuple[Ints, Ints, Floats]:
    """Arrival, part and place of a repeat of each line: same file, the other file, or up to two days on.

    Repeats of late events stay on their day, so that none comes after the window of its event. A repeat
    that is not exact must not win: on the day of its original it stands behind it.
    """
    count = len(arrival_M)
    by_M = np.where(on_its_day_M & (rng.random(count) < 0.4), rng.integers(1, _LATE_DAYS + 1, count), 0)
    by_M[arrival_M + by_M >= days] = 0
    if turn is not None:
        by_M[(arrival_M < turn) & (arrival_M + by_M >= turn)] = 0
    other_M = (rng.random(count) < 0.5) & (exact_M | (by_M > 0) | (part_M == 0))
    after_M = place_M + rng.random(count) * (1 - place_M)
    same_file_M = (by_M == 0) & ~other_M
    place = np.where(same_file_M, after_M, rng.random(count))
    return arrival_M + by_M, np.where(other_M, 1 - part_M, part_M), place


def spoil(row: dict[str, Any], reason: str, rng: np.random.Generator) -> str:
    """The line that a good row becomes for one of REASONS (a time outside the window is in the row already).

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
    if reason == "duplicate_key":
        return dump(row)[:-1] + ',"item_id":"i0"}'
    if reason == "null_user":
        return dump(_without(row, "user_id", rng))
    if reason == "null_item":
        return dump(_without(row, "item_id", rng))
    if reason == "bad_time":
        form = int(rng.integers(3))
        return dump(_without(row, "time", rng) if form == 0 else row | {"time": ("yesterday", _IN_MINUTES)[form - 1]})
    if reason == "time_out_of_bounds":
        return dump(row | {"time": _FACTORY_SETTING})
    if reason == "bad_field":
        return dump(row | {"price": "cheap"})
    if reason == "id_conflict":
        return dump(row | _contradiction(row, rng))
    return dump(row)


def _contradiction(row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """One column of the row with another value; it stays a row that would be accepted by itself."""
    forms: list[dict[str, Any]] = [
        {"user_id": f"{row['user_id']}0"},
        {"item_id": f"{row['item_id']}0"},
        {"event": "impression" if row["event"] == "click" else "click"},
        {"price": 0.01},
    ]
    return forms[int(rng.integers(len(forms)))]


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


def account(lines: Plan, start: date, days: int) -> dict[str, Any]:
    """The plan's counts: rows = events + duplicates + quarantined, in all and per arrival."""

    def per_day(chosen_R: Flags) -> list[int]:
        return np.bincount(lines.arrival_R[chosen_R], minlength=days).tolist()

    fate_R = lines.fate_R
    by_day = {
        "rows": per_day(fate_R >= EVENT),
        "events": per_day(fate_R <= LATE),
        "duplicates": per_day(fate_R == DUPLICATE),
        "quarantined": per_day(fate_R >= FIRST_REASON),
        "late": per_day(fate_R == LATE),
    }
    reasons = {reason: per_day(fate_R == FIRST_REASON + i) for i, reason in enumerate(REASONS)}
    arrivals = [(start + timedelta(days=day)).isoformat() for day in range(days)]
    totals: dict[str, Any] = {name: sum(counts) for name, counts in by_day.items()}
    totals["quarantined"] = {reason: sum(counts) for reason, counts in reasons.items()}
    totals["arrivals"] = {
        arrival: {name: counts[day] for name, counts in by_day.items()} for day, arrival in enumerate(arrivals)
    }
    totals["quarantined_by_arrival"] = {
        arrival: {reason: counts[day] for reason, counts in reasons.items() if counts[day]}
        for day, arrival in enumerate(arrivals)
    }
    return totals
