"""How simulated users act: the laws by which items are shown and clicked, day by day.

About half of what is shown follows from the item clicked last, the rest from the user's interest and
the items' popularity. The laws are `shown` and `click_logit`; featurize/oracle.py holds the
chances that they give. Letters as in featurize/world.py, and A users active on a day, N events,
B recently shown items, T steps of a user-day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from featurize.world import CHANNEL_SHARES, CHANNELS, DEVICES, Flags, Floats, Ints, Items, World, popularity

DAY_MS = 86_400_000
SUCCESSOR_SHARE = 0.5  # of what is shown after a user's first click
STRAY_SHARE = 0.2  # of user-days on any device instead of the favourite
RECENT = 6  # items shown last that give way

EVENTS_LEAST, EVENTS_MOST = 8, 14  # of an active user-day
_INTERCEPT = -0.75  # brings clicks to about 40 % of what is shown


@dataclass(frozen=True)
class Log:
    """Clean events, before anything goes wrong with them."""

    time_N: Ints  # true milliseconds since the log's start
    step_N: Ints  # within the user's day
    user_N: Ints
    item_N: Ints
    clicked_N: Flags
    device_N: Ints
    channel_N: Ints
    price_N: Floats

    @property
    def days(self) -> Ints:
        """(N,) the true day, 0 = the log's start."""
        return self.time_N // DAY_MS

    @classmethod
    def joined(cls, parts: Sequence[Log]) -> Log:
        """All events of the parts in the order of (time, step)."""
        whole = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)}
        order_N = np.lexsort((whole["step_N"], whole["time_N"]))
        return cls(**{name: column[order_N] for name, column in whole.items()})


class Catalogue:
    """What can be shown on one day: by category, in proportion to Zipf's weights."""

    def __init__(self, items: Items, day: int) -> None:
        self.items = items
        self.on_sale_I = items.launched_I <= day
        self._weight = popularity(items.bounds_C) * self.on_sale_I[items.shelf_I]
        self._cumulated = np.concatenate([[0.0], np.cumsum(self._weight)])

    def draw(self, category_A: Ints, rng: np.random.Generator) -> Ints:
        """One item of each category named."""
        first_A, end_A = self.items.bounds_C[category_A], self.items.bounds_C[category_A + 1]
        low_A, high_A = self._cumulated[first_A], self._cumulated[end_A]
        point_A = low_A + rng.random(len(category_A)) * (high_A - low_A)
        position_A = np.searchsorted(self._cumulated, point_A, side="right") - 1
        return self.items.shelf_I[np.clip(position_A, first_A, end_A - 1)]

    def of_interest(self, interest_AC: Floats, rng: np.random.Generator) -> Ints:
        """One item for each row of interests."""
        cumulated_AC = np.cumsum(interest_AC, axis=1)
        point_A1 = rng.random((len(interest_AC), 1)) * cumulated_AC[:, -1:]
        return self.draw((point_A1 >= cumulated_AC[:, :-1]).sum(axis=1), rng)

    def chances(self) -> Floats:
        """(I,): chance of each item to be the one that `draw` gives for its category."""
        totals_C = np.add.reduceat(self._weight, self.items.bounds_C[:-1])
        chance_I = np.empty(len(self._weight))
        chance_I[self.items.shelf_I] = self._weight
        return chance_I / totals_C[self.items.category_I]


def shown(catalogue: Catalogue, interest_AC: Floats, last_A: Ints, recent_AB: Ints, rng: np.random.Generator) -> Ints:
    """The next item of each user: a successor of the item clicked last, or an item of their interest.

    What was shown just before gives way to another item of their interest (once: it may recur).
    `last_A` and `recent_AB` hold -1 where there is none.
    """
    successors_AS = catalogue.items.successors_IS[last_A]
    next_A = successors_AS[np.arange(len(last_A)), rng.integers(0, successors_AS.shape[1], len(last_A))]
    follow_A = (last_A >= 0) & catalogue.on_sale_I[next_A] & (rng.random(len(last_A)) < SUCCESSOR_SHARE)
    item_A = np.where(follow_A, next_A, catalogue.of_interest(interest_AC, rng))
    again_A = (recent_AB == item_A[:, None]).any(axis=1)
    return np.where(again_A, catalogue.of_interest(interest_AC, rng), item_A)


def click_logit(
    items: Items, interest_AC: Floats, user_N: Ints, last_N: Ints, item_N: Ints, context_N: Floats
) -> Floats:
    """Log-odds of a click: affinity of the user to the category + successor bonus + quality + context.

    `user_N` are rows of `interest_AC`. The context holds device x channel, price x segment and the user's
    own inclination.
    """
    affinity_N = interest_AC[user_N, items.category_I[item_N]] / interest_AC.max(axis=1)[user_N]
    follows_N = (items.successors_IS[last_N] == item_N[:, None]).any(axis=1) & (last_N >= 0)
    logit_N = _INTERCEPT + 2.0 * (affinity_N - 0.6) + 1.2 * (follows_N - 0.4)
    return logit_N + 0.8 * (items.quality_I[item_N] - 3) + context_N


def sigmoid(logit: Floats) -> Floats:
    """The chance that log-odds stand for."""
    return 1 / (1 + np.exp(-logit))


def play(world: World, human_U: Flags, rng: np.random.Generator) -> Log:
    """All days of those users who act by the laws; within a day, step by step over the active ones together."""
    users, items = world.users, world.items
    count = len(users.segment_U)
    last_U = np.full(count, -1)
    recent_UB = np.full((count, RECENT), -1)
    steps: list[Log] = []
    for day, price_I in enumerate(world.price_DI):
        interest_UC, catalogue = users.interest(day), Catalogue(items, day)
        active_A = np.flatnonzero((rng.random(count) < users.activity_U) & human_U)
        length_A = rng.integers(EVENTS_LEAST, EVENTS_MOST + 1, len(active_A))
        time_AT = day * DAY_MS + _times(len(active_A), rng)
        stray_A = rng.random(len(active_A)) < STRAY_SHARE
        device_A = np.where(stray_A, rng.integers(0, len(DEVICES), len(active_A)), users.device_U[active_A])
        for step in range(EVENTS_MOST):
            on = length_A > step
            user, device = active_A[on], device_A[on]
            item = shown(catalogue, interest_UC[user], last_U[user], recent_UB[user], rng)
            channel = rng.choice(len(CHANNELS), len(user), p=CHANNEL_SHARES)
            context = world.comfort_VH[device, channel] + users.taste_U[user]
            context -= world.thrift_G[users.segment_U[user]] * world.dearness(price_I[item])
            clicked = rng.random(len(user)) < sigmoid(
                click_logit(items, interest_UC, user, last_U[user], item, context)
            )
            last_U[user[clicked]] = item[clicked]
            recent_UB[user] = np.column_stack([recent_UB[user, 1:], item])
            at = np.full(len(user), step)
            steps.append(Log(time_AT[on, step], at, user, item, clicked, device, channel, price_I[item]))
    return Log.joined(steps)


def _times(active: int, rng: np.random.Generator) -> Ints:
    """Milliseconds of the day, rising along a row: about a minute apart, 2 % of them ties."""
    gap_AT = np.minimum(rng.exponential(60_000, (active, EVENTS_MOST)), 600_000).astype(np.int64)
    gap_AT[rng.random(gap_AT.shape) < 0.02] = 0
    after_AT = np.cumsum(gap_AT, axis=1)
    return rng.integers(0, DAY_MS - after_AT[:, -1:], (active, 1)) + after_AT
