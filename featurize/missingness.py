"""Which fields are missing from which rows: at random, or depending on what would have stood there.

Three mechanisms, by the usual names: missing completely at random; at random given another field
(country, by device); not at random, but by the value itself (age, price). None looks at the click.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.behaviour import Log
from featurize.world import DEVICES, Ints, World

PRESENT, ABSENT, NULL = 0, 1, 2
"""States of a field in a row: there, key left out, JSON null."""

MISSING_RATES = {
    "device": 0.08,
    "channel": 0.05,
    "app_version": 0.10,
    "category": 0.06,
    "tags": 0.20,
    "quality": 0.30,
    "segment": 0.15,
    "joined": 0.18,
}
"""Chance that a field is missing from its row, whatever the row: half absent, half null."""


@dataclass(frozen=True)
class Mechanism:
    """What a field's chance of being missing depends on."""

    depends_on: str
    groups: tuple[tuple[str, float], ...]
    """(name, chance) of each group of rows."""


NOT_AT_RANDOM = {
    "country": Mechanism("device", (("tv", 0.40), ("other devices", 0.09))),
    "age": Mechanism("age", (("under 30", 0.45), ("30 and over", 0.18))),
    "price": Mechanism("price", (("above 25", 0.22), ("25 or less", 0.05))),
}
"""The log's fields that are missing more often in some rows than in others."""


def groups_of(world: World, log: Log) -> dict[str, Ints]:
    """For each field of NOT_AT_RANDOM the group that each event belongs to."""
    return {
        "country": (log.device_N != DEVICES.index("tv")).astype(np.int64),
        "age": (world.users.age_U[log.user_N] >= 30).astype(np.int64),
        "price": (log.price_N <= 25).astype(np.int64),
    }


def draw_at_random(name: str, count: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """PRESENT, ABSENT or NULL for field `name` of MISSING_RATES in each of `count` rows."""
    return _draw(np.full(count, MISSING_RATES[name]), rng)


def draw_by_group(name: str, group_N: Ints, rng: np.random.Generator) -> NDArray[np.int8]:
    """PRESENT, ABSENT or NULL for field `name` of NOT_AT_RANDOM in rows of those groups."""
    return _draw(np.array([chance for _, chance in NOT_AT_RANDOM[name].groups])[group_N], rng)


def _draw(chance_N: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int8]:
    point_N = rng.random(len(chance_N))
    return (point_N < chance_N).astype(np.int8) + (point_N < chance_N / 2).astype(np.int8)


def account(states: dict[str, NDArray[np.int8]], groups: dict[str, Ints], kept: Ints) -> dict[str, Any]:
    """Counts over the accepted events `kept`: `missing` by field, and `missing_by_group` with the chances."""
    by_group: dict[str, Any] = {}
    for name, group_N in groups.items():
        mechanism, missing = NOT_AT_RANDOM[name], states[name][kept] != PRESENT
        by_group[name] = {"depends_on": mechanism.depends_on} | {
            label: {
                "chance": chance,
                "events": int((group_N[kept] == number).sum()),
                "missing": int((missing & (group_N[kept] == number)).sum()),
            }
            for number, (label, chance) in enumerate(mechanism.groups)
        }
    return {
        "missing": {name: int((state_N[kept] != PRESENT).sum()) for name, state_N in states.items()},
        "missing_by_group": by_group,
    }


def put(row: dict[str, Any], name: str, value: Any, state: int) -> None:
    """Write a field into a row in the state that was drawn for it.

    >>> row = {"item_id": "i3"}
    >>> put(row, "age", 31, ABSENT); put(row, "price", 2.5, NULL); put(row, "device", "tv", PRESENT)
    >>> row
    {'item_id': 'i3', 'price': None, 'device': 'tv'}
    """
    if state == PRESENT:
        row[name] = value
    elif state == NULL:
        row[name] = None
