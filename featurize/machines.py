"""Users who do not act as people do: bots, and one hot user with a share of all events.

Both click without looking: every item shown is as likely to be clicked as any other, so that the chance
of the next click is the chance of the next item shown (`next_shown`). Letters as in featurize/behaviour.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurize.behaviour import DAY_MS, Catalogue, Log
from featurize.world import CHANNEL_SHARES, CHANNELS, DEVICES, Flags, Floats, Ints, World

HUMAN, BOT, HOT = 0, 1, 2
"""Kinds of users."""

_BOTS_FROM = 200  # users from which on there is at least one bot
_BOT_DAYS = 0.2  # share of the days on which a bot works
_BOT_EVENTS_LEAST, _BOT_EVENTS_MOST = 150, 300  # of a bot's day
_BOT_GAP_LEAST, _BOT_GAP_MOST = 5, 60  # whole seconds between a bot's events
_BOT_CLICKS, _HOT_CLICKS = 0.5, 0.4


@dataclass(frozen=True)
class Cast:
    """Which user is of which kind."""

    kind_U: Ints

    @property
    def humans(self) -> Flags:
        """(U,) the users who act by the laws."""
        return self.kind_U == HUMAN

    def of_kind(self, kind: int) -> list[int]:
        """The users of a kind, ascending."""
        return np.flatnonzero(self.kind_U == kind).tolist()


def cast(users: int, bots: float, hot: bool, rng: np.random.Generator) -> Cast:
    """Choose the hot user and the bots: the share `bots` of the users, one at least from 200 users on."""
    count = round(bots * users)
    if bots > 0 and users >= _BOTS_FROM:
        count = max(1, count)
    kind_U = np.full(users, HUMAN)
    chosen = rng.permutation(users)
    kind_U[chosen[: int(hot)]] = HOT
    kind_U[chosen[int(hot) : int(hot) + count]] = BOT
    return Cast(kind_U)


def play_bots(world: World, cast: Cast, rng: np.random.Generator) -> list[Log]:
    """Bursts of events at regular intervals, over all items on sale alike, from a desktop."""
    days, logs = len(world.price_DI), []
    for bot in cast.of_kind(BOT):
        for day in np.sort(rng.choice(days, max(1, round(_BOT_DAYS * days)), replace=False)).tolist():
            count = int(rng.integers(_BOT_EVENTS_LEAST, _BOT_EVENTS_MOST + 1))
            gap = 1000 * int(rng.integers(_BOT_GAP_LEAST, _BOT_GAP_MOST + 1))
            first = int(rng.integers(0, DAY_MS - count * gap))
            time_N = day * DAY_MS + first + gap * np.arange(count)
            item_N = rng.choice(np.flatnonzero(Catalogue(world.items, day).on_sale_I), count)
            clicked_N = rng.random(count) < _BOT_CLICKS
            logs.append(_log(world, bot, DEVICES.index("desktop"), time_N, item_N, clicked_N, rng))
    return logs


def play_hot(world: World, cast: Cast, others: Log, share: float, rng: np.random.Generator) -> list[Log]:
    """One user's events, `share` of all with those of the others, spread over the days as those are.

    A terminal that everybody uses: the mean interest of all users, and no memory.
    """
    logs = []
    for hot in cast.of_kind(HOT):
        count_D = np.bincount(others.days, minlength=len(world.price_DI)) * share / (1 - share)
        end_D = np.round(np.cumsum(count_D)).astype(np.int64)  # the rounding of days may not add up
        for day, count in enumerate(np.diff(end_D, prepend=0).tolist()):
            interest_NC = np.broadcast_to(
                world.users.interest(day).mean(axis=0), (count, world.users.interest_UC.shape[1])
            )
            item_N = Catalogue(world.items, day).of_interest(interest_NC, rng)
            time_N = day * DAY_MS + np.sort(rng.integers(0, DAY_MS, count))
            clicked_N = rng.random(count) < _HOT_CLICKS
            logs.append(_log(world, hot, DEVICES.index("phone"), time_N, item_N, clicked_N, rng))
    return logs


def next_shown(world: World, kind: int, day: int) -> Floats:
    """(I,): chance of each item to be the next that a bot or the hot user is shown, or clicks."""
    catalogue = Catalogue(world.items, day)
    if kind == BOT:
        return catalogue.on_sale_I / catalogue.on_sale_I.sum()
    interest_C = world.users.interest(day).mean(axis=0)
    return interest_C[world.items.category_I] * catalogue.chances()


def _log(
    world: World, user: int, device: int, time_N: Ints, item_N: Ints, clicked_N: Flags, rng: np.random.Generator
) -> Log:
    count = len(time_N)
    return Log(
        time_N=time_N,
        step_N=np.arange(count),
        user_N=np.full(count, user),
        item_N=item_N,
        clicked_N=clicked_N,
        device_N=np.full(count, device),
        channel_N=rng.choice(len(CHANNELS), count, p=CHANNEL_SHARES),
        price_N=world.price_DI[time_N // DAY_MS, item_N],
    )
