"""The simulated world: who its users are, what its items are, and what moves a click.

How they act is in featurize/behaviour.py. Letters: U users, I items, C categories, S successors of an
item, D days, V devices, H channels, G segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEVICES = ("phone", "tablet", "desktop", "tv")
CHANNELS = ("search", "home", "mail", "push")
COUNTRIES = ("de", "fr", "us", "br", "in", "jp", "ng", "se")
SEGMENTS = ("student", "family", "professional", "senior")
TAGS = ("new", "sale", "classic", "limited", "local", "imported", "award", "bulk")

CHANNEL_SHARES = np.array([0.35, 0.4, 0.1, 0.15])

_DEVICE_SHARES = np.array([0.5, 0.12, 0.28, 0.1])  # of favourites
_DRIFT = 0.06  # share of the way to the interest's destination covered in a day
_SEGMENT_AGES = (22, 37, 45, 67)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Users:
    """Who uses the shop."""

    segment_U: Ints
    age_U: Ints
    country_U: Ints
    joined_U: Ints  # days before the log's start
    device_U: Ints  # the favourite
    activity_U: Floats  # chance of being active on a day
    interest_UC: Floats  # on the first day
    heading_UC: Floats  # where the interest drifts to
    taste_U: Floats  # log-odds of a click that are the user's own

    def interest(self, day: int) -> Floats:
        """(U, C) shares of each user's interest on a day; rows sum to 1."""
        left = (1 - _DRIFT) ** day
        return left * self.interest_UC + (1 - left) * self.heading_UC


@dataclass(frozen=True)
class Items:
    """What the shop shows."""

    shelf_I: Ints  # items ordered by (category, popularity rank): position -> item
    bounds_C: Ints  # category c stands at shelf positions bounds_C[c] .. bounds_C[c + 1] - 1
    category_I: Ints
    successors_IS: Ints
    launched_I: Ints  # day from which on the item is shown
    tags_I: list[list[str]]
    quality_I: Floats
    price_I: Floats


@dataclass(frozen=True)
class World:
    """Users, items, and what moves a click beside interest."""

    users: Users
    items: Items
    price_DI: Floats  # of the day: an item is reduced on some days
    comfort_VH: Floats  # log-odds of a click on a device through a channel
    thrift_G: Floats  # how much each segment minds a high price

    def dearness(self, price: Floats) -> Floats:
        """A price on the scale that `thrift_G` is for: mean 0, deviation 1 over what is shown."""
        return (np.log(price) - 3) / 0.8


def draw_world(users: int, items: int, days: int, rng: np.random.Generator) -> World:
    """A world of that size."""
    categories = min(12, items // 5)
    people = _draw_users(users, categories, rng)
    goods = _draw_items(items, categories, days, rng)
    comfort_VH = rng.normal(0, 0.7, (len(DEVICES), len(CHANNELS)))
    comfort_VH -= _DEVICE_SHARES @ comfort_VH @ CHANNEL_SHARES
    return World(
        users=people,
        items=goods,
        price_DI=np.round(goods.price_I * rng.choice([1.0, 0.75], (days, items), p=[0.85, 0.15]), 2),
        comfort_VH=comfort_VH,
        thrift_G=rng.permutation([-0.3, 0.2, 0.7, 1.2]),
    )


def _zipf(count: int) -> Floats:
    weight = 1.0 / np.arange(1, count + 1)
    return weight / weight.sum()


def popularity(bounds_C: Ints) -> Floats:
    """Chance of each shelf position within its category; a category's chances sum to 1."""
    return np.concatenate([_zipf(size) for size in np.diff(bounds_C)])


def _draw_users(users: int, categories: int, rng: np.random.Generator) -> Users:
    segment_U = rng.integers(0, len(SEGMENTS), users)

    def interest() -> Floats:
        """A Dirichlet draw per user around the segment's mean; its concentration of 2 leaves few categories."""
        mean_UC = rng.dirichlet(np.ones(categories), len(SEGMENTS))[segment_U]
        weight_UC = rng.standard_gamma(2.0 * mean_UC) + 1e-3
        return weight_UC / weight_UC.sum(axis=1, keepdims=True)

    country_U = rng.choice(len(COUNTRIES), users, p=_zipf(len(COUNTRIES)))
    joined_U = rng.exponential(400, users).astype(np.int64)
    taste_U = rng.normal(0, 0.3, len(COUNTRIES))[country_U] + 0.15 * np.log1p(joined_U)
    return Users(
        segment_U=segment_U,
        age_U=np.clip(rng.normal(np.array(_SEGMENT_AGES)[segment_U], 6), 16, 95).astype(np.int64),
        country_U=country_U,
        joined_U=joined_U,
        device_U=rng.choice(len(DEVICES), users, p=_DEVICE_SHARES),
        activity_U=np.clip(rng.lognormal(np.log(0.42), 0.9, users), 0.03, 0.95),
        interest_UC=interest(),
        heading_UC=interest(),
        taste_U=taste_U - taste_U.mean(),
    )


def _draw_items(items: int, categories: int, days: int, rng: np.random.Generator) -> Items:
    shelf_I = rng.permutation(items)
    bounds_C = np.arange(categories + 1) * items // categories
    category_I, launched_I = np.empty(items, np.int64), np.zeros(items, np.int64)
    category_I[shelf_I] = np.repeat(np.arange(categories), np.diff(bounds_C))
    new = rng.random(items) < 0.1
    launched_I[new] = rng.integers(1, days, int(new.sum()))
    launched_I[shelf_I[bounds_C[:-1]]] = 0  # no category is ever empty
    tags_I = [[TAGS[t] for t in rng.choice(len(TAGS), count, replace=False)] for count in rng.integers(0, 4, items)]
    worth = dict(zip(TAGS, rng.normal(0, 0.5, len(TAGS)), strict=True))
    appeal_I = np.array([sum(worth[tag] for tag in tags) for tags in tags_I]) + rng.normal(0, 0.8, items)
    # Centred by what is shown, not by item, so that few popular items cannot shift the rate of clicks.
    shown_I = np.empty(items)
    shown_I[shelf_I] = popularity(bounds_C) / categories
    dearness_I = rng.normal(0, 0.8, items)
    return Items(
        shelf_I=shelf_I,
        bounds_C=bounds_C,
        category_I=category_I,
        successors_IS=np.stack([_successors(i, category_I[i], shelf_I, bounds_C, rng) for i in range(items)]),
        launched_I=launched_I,
        tags_I=tags_I,
        quality_I=np.round(3 + (appeal_I - shown_I @ appeal_I) / appeal_I.std(), 2),
        price_I=np.exp(3 + dearness_I - shown_I @ dearness_I),
    )


def _successors(item: int, category: int, shelf_I: Ints, bounds_C: Ints, rng: np.random.Generator) -> Ints:
    """3 to 5 other items of the category, for half of the items one of them foreign; cycled to width 5."""
    first, end = bounds_C[category], bounds_C[category + 1]
    own = shelf_I[first:end]
    own = own[own != item]
    chosen = rng.choice(own, min(len(own), int(rng.integers(3, 6))), replace=False)
    if rng.random() < 0.5:
        foreign = rng.integers(0, len(shelf_I) - (end - first))
        chosen[-1] = shelf_I[foreign if foreign < first else foreign + end - first]
    return np.resize(chosen, 5)


def side_features(world: World) -> dict[str, dict[str, list[Any]]]:
    """Values of the side files' fields: `items` and `users`, field -> one value per item or user."""
    items, users = world.items, world.users
    return {
        "items": {
            "category": [f"c{c}" for c in items.category_I],
            "tags": items.tags_I,
            "quality": items.quality_I.tolist(),
        },
        "users": {"segment": [SEGMENTS[s] for s in users.segment_U], "joined": users.joined_U.tolist()},
    }
