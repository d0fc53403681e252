"""A plain reader of simulated logs, for tests: Python's json over the raw bytes, nothing of the code under test."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

LOG_FIELDS = ("device", "country", "age", "price", "channel")
REASONS = {
    *("malformed", "empty_line", "duplicate_key", "null_user", "null_item", "bad_time", "time_out_of_bounds"),
    *("bad_field", "too_late", "from_the_future", "id_conflict"),
}
NAMES = ("rows", "events", "duplicates", "quarantined", "late")


def physical_lines(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """(arrival, file, line) in the order in which the lower one wins."""
    for file in sorted(root.glob("events/*/*")):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert not data or data.endswith(b"\n")
        for line in data.split(b"\n")[:-1]:
            yield file.parent.name, file.name, line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise KeyError("a key is repeated")
    return dict(pairs)


def milliseconds(time: Any) -> int | None:
    """Whole milliseconds, the unit told by the number of digits; None: no time."""
    digits = {9: 10**3, 10: 10**3, 13: 1, 16: 10**-3, 19: 10**-6}
    if type(time) is not int or len(str(time)) not in digits:
        return None
    per = digits[len(str(time))]
    if per >= 1:
        return int(time * per)
    whole, rest = divmod(time, round(1 / per))
    assert rest == 0, "the simulator's times are whole milliseconds"
    return whole


def verdict(line: bytes, arrival: str) -> tuple[str | None, dict[str, Any], int]:
    """The reason to refuse a line by itself (None: valid), its row, and how many days after its event it came.

    The row's time is in milliseconds, whatever the line's unit; `digits` is how many the line's time has.
    """
    if not line:
        return "empty_line", {}, 0
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError:
        return "malformed", {}, 0
    except KeyError:
        return "duplicate_key", {}, 0
    if row.get("user_id") is None:
        return "null_user", row, 0
    if row.get("item_id") is None:
        return "null_item", row, 0
    ms = milliseconds(row.get("time"))
    if ms is None:
        return "bad_time", row, 0
    day = datetime.fromtimestamp(ms // 1000, UTC).date()
    if day.year < 1990:
        return "time_out_of_bounds", row, 0
    age = (date.fromisoformat(arrival) - day).days
    if age > 3:
        return "too_late", row, age
    if age < -1:
        return "from_the_future", row, age
    if isinstance(row.get("price"), str):
        return "bad_field", row, age
    return None, row | {"time": ms, "digits": len(str(row["time"]))}, age


def accounted(root: Path) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """(arrival, fate, row, age) of every physical line; the fate is event, duplicate, or a reason."""
    kept: dict[str, dict[str, Any]] = {}
    for arrival, _, line in physical_lines(root):
        reason, row, age = verdict(line, arrival)
        if reason is None and row["event_id"] in kept:
            reason = "duplicate" if kept[row["event_id"]] == row else "id_conflict"
        elif reason is None:
            kept[row["event_id"]] = row
        yield arrival, reason or "event", row, age


def recount(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What truth.json should say of the log, and the accepted rows in the order of (time, event_id).

    Each row has its `arrival` too.
    """
    arrivals: dict[str, Counter[str]] = {directory.name: Counter() for directory in (root / "events").iterdir()}
    reasons: dict[str, Counter[str]] = {arrival: Counter() for arrival in arrivals}
    rows = []
    for arrival, fate, row, age in accounted(root):
        here = arrivals[arrival]
        here["rows"] += 1
        if fate == "event":
            here["events"] += 1
            here["late"] += age > 0
            rows.append(row | {"arrival": arrival})
        elif fate == "duplicate":
            here["duplicates"] += 1
        else:
            here["quarantined"] += 1
            reasons[arrival][fate] += 1
    rows.sort(key=lambda row: (row["time"], row["event_id"]))
    total = sum(reasons.values(), Counter())
    assert set(total) <= REASONS
    counted: dict[str, Any] = {name: sum(day[name] for day in arrivals.values()) for name in NAMES}
    counted["quarantined"] = {reason: total[reason] for reason in REASONS}
    counted["arrivals"] = {day: {name: count[name] for name in NAMES} for day, count in arrivals.items()}
    counted["quarantined_by_arrival"] = {day: dict(count) for day, count in reasons.items()}
    counted["event_dates"] = dict(Counter(day_of(row) for row in rows))
    counted["clicks"] = sum(row["event"] == "click" for row in rows)
    counted["missing"] = {name: sum(row.get(name) is None for row in rows) for name in LOG_FIELDS}
    counted["users_seen"] = len({row["user_id"] for row in rows})
    counted["items_seen"] = len({row["item_id"] for row in rows})
    return counted, rows


def day_of(row: dict[str, Any]) -> str:
    """The date of an accepted row."""
    return datetime.fromtimestamp(row["time"] // 1000, UTC).date().isoformat()
