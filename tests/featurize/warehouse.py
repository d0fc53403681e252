"""A lake whose log comes day by day, and the plain lists that its histories and sequences must equal."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any

from featurize import histories, sequences
from featurize.contract import Contract
from featurize.histories import AsOf, Built, State
from featurize.settings import SequenceSettings
from infra.errors import DataRefused
from infra.lake import Lake
from infra.tables import HISTORIES, ITEMS, events
from tests.conftest import put

LOG = events([])
FORM: dict[str, Any] = {
    "name": "log",
    "source": {"path": "{date}", "format": "json"},
    "user": "u",
    "item": "i",
    "time": {"column": "t", "unit": "s"},
}
"""The contract of a log, as short as it can be; tests add what they are about."""
TYPED = {
    **FORM,
    "type": {"column": "e"},
    "targets": ["click"],
    "context": ["view"],
    "label": {"column": "r", "at_least": 1},
}
CONTRACT = Contract.model_validate({**TYPED, "rules": {"window_days": 2}})
SETTINGS = SequenceSettings(buckets=2, base_every=2, history_cap=4, max_length=2)
Row = dict[str, Any]


def days(count: int) -> list[str]:
    return [(date(2024, 1, 1) + timedelta(days=n)).isoformat() for n in range(count)]


def random_log(rng: random.Random, arrivals: list[str], count: int) -> list[Row]:
    """Events of few users at few instants, so that times tie; some arrive up to two days late."""
    rows = []
    for n in range(count):
        ds = rng.randrange(len(arrivals))
        arrival = min(ds + rng.choice([0, 0, 0, 1, 2]), len(arrivals) - 1)
        at = datetime.fromisoformat(arrivals[ds]).replace(tzinfo=UTC) + timedelta(hours=rng.randrange(3))
        rows.append(
            {
                "arrival": arrivals[arrival],
                "ds": arrivals[ds],
                "event_id": f"{rng.randrange(10**6):06d}-{n}",
                "user": rng.choice(["ann", "bob", "é", "dan", "a much longer name"]),
                "item": rng.choice("abcdef"),
                "ts": at,
                "type": rng.choice(["click", "click", "view", "scroll"]),
                "label": rng.choice([0, 1, 1, None]),
                "file": "f",
                "position": n,
            }
        )
    return rows


def vocabulary(rng: random.Random, log: list[Row], arrivals: list[str]) -> list[Row]:
    """Each item enters some days after it is first seen, or never: a minimum count."""
    out = []
    for index, item in enumerate("abcde"):
        first = min((r["arrival"] for r in log if r["item"] == item), default=None)
        if first is not None:
            at = min(arrivals.index(first) + rng.choice([0, 0, 1]), len(arrivals) - 1)
            out.append({"arrival": arrivals[at], "index": index + 2, "key": item})
    return out or [{"arrival": arrivals[0], "index": 2, "key": "a"}]


def plain(log: list[Row], items: list[Row], day: str, cap: int) -> dict[str, list[Row]]:
    """Each user's last events as of a day, by sorting a list."""
    entered = {r["key"]: (r["arrival"], r["index"]) for r in items}
    out: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(log, key=lambda r: (r["ts"], r["event_id"])):
        if row["arrival"] <= day and row["ds"] <= day and row["type"] != "scroll":
            since, index = entered.get(row["item"], ("9", 1))
            out[row["user"]].append({**row, "index": index if since <= row["arrival"] else 1})
    return dict(out)


def plain_sequences(log: list[Row], items: list[Row], day: str, cap: int, length: int) -> set[tuple[Any, ...]]:
    """The temporal split from the plain histories."""
    before = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
    users = plain(log, items, day, cap)
    seen = {e["index"] for of in users.values() for e in [e for e in of if e["ds"] < before][-cap:]}
    out: set[tuple[Any, ...]] = set()
    for user, of in users.items():
        past = [e for e in of if e["ds"] < before][-cap:]
        while len(past) > 1:
            chunk = past[-length - 1 :]
            marks = tuple(e["type"] == "click" for e in chunk)
            out.add(("train", user, tuple(e["index"] for e in chunk), marks, None, None, None))
            past = past[: -length - 1]
        for split, window in (("valid", before), ("test", day)):
            history = [e for e in of if e["ds"] < window][-cap:]
            targets = [e for e in of if e["ds"] == window and e["type"] == "click"]
            if history and targets:
                item = targets[0]["index"]
                marks = tuple(e["type"] == "click" for e in history)
                items_ = tuple(e["index"] for e in history)
                out.add((split, user, items_, marks, item, targets[0]["ts"], item != 1 and item in seen))
    return out


def sequence_rows(lake: Lake, version: int, day: str) -> list[tuple[Any, ...]]:
    """What the table holds, in the form of `plain_sequences`."""
    rows = lake.read("sequences", version, {"as_of": day}).to_pylist()
    names = ("split", "user", "items", "is_target", "target", "target_ts", "target_known")
    return [tuple(tuple(r[n]) if isinstance(r[n], list) else r[n] for n in names) for r in rows]


def as_of_rows(lake: Lake, as_of: AsOf, cap: int) -> dict[str, list[tuple[int, datetime, bool]]]:
    """The histories as a reader of the table finds them."""
    out: dict[str, list[tuple[int, datetime, bool]]] = defaultdict(list)
    for ds, kind in [(as_of.base, "base"), *((t, "tail") for t in as_of.tails)]:
        table = lake.read(HISTORIES.name, as_of.version, {"ds": ds, "kind": kind})
        for row in table.to_pylist():
            assert len(row["items"]) <= cap
            out[row["user"]] += zip(row["items"], row["ts"], row["is_target"], strict=True)
    return {user: found[-cap:] for user, found in out.items()}


class Warehouse:
    """A lake that gets its log day by day, and what the runs left behind."""

    def __init__(self, lake: Lake, log: list[Row], items: list[Row], arrivals: list[str]) -> None:
        self.lake, self.log, self.items, self.arrivals = lake, log, items, arrivals
        self.state: State | None = None

    def load(self, arrivals: list[str]) -> dict[str, int]:
        """Put these arrivals into the tables, over what was there."""
        versions = {}
        for table, rows in ((LOG, self.log), (ITEMS, self.items)):
            some = [r for r in rows if r["arrival"] in arrivals]
            versions[table.name] = put(self.lake, table, some) if some else self.lake.version(table.name) or 0
        return versions

    def run(self, versions: dict[str, int], day: str, **options: Any) -> tuple[Built, set[tuple[Any, ...]]]:
        arrivals = [a for a in self.arrivals if a <= day]
        state = options.pop("state", self.state)
        built = histories.build(
            None,
            self.lake,
            CONTRACT,
            SETTINGS,
            versions,
            arrivals,
            day,
            state,
            {},
            **options,  # type: ignore[arg-type]
        )
        self.state = built.state
        return built, self.sequences(built.as_of, day)

    def sequences(self, as_of: AsOf, day: str) -> set[tuple[Any, ...]]:
        try:
            versions, _ = sequences.build(None, self.lake, SETTINGS, as_of, day, {})  # type: ignore[arg-type]
        except DataRefused:
            return set()
        return set(sequence_rows(self.lake, versions["sequences"], day))

    def check(self, built: Built, made: set[tuple[Any, ...]], day: str) -> None:
        cap = SETTINGS.history_cap
        expected = {
            user: [(e["index"], e["ts"], e["type"] == "click") for e in of][-cap:]
            for user, of in plain(self.log, self.items, day, cap).items()
        }
        assert as_of_rows(self.lake, built.as_of, cap) == expected, day
        sequences_ = plain_sequences(self.log, self.items, day, cap, SETTINGS.max_length)
        if any(row[0] == "train" for row in sequences_):
            assert made == sequences_, day
