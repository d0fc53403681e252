"""What clients' clocks make of the true time: their unit, their skew, and jumps by days.

A client is known by its device; all devices of a user share the user's clock, so that skew never
changes the order of a user's events. Letters: U users, N events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurize.behaviour import DAY_MS
from featurize.world import DEVICES, Flags, Ints

UNITS = {"phone": "ms", "tablet": "s", "desktop": "us", "tv": "ns"}
"""The unit in which each device writes its times, all of them in one file."""

UNIT_NAMES = ("s", "ms", "us", "ns")
_NS_PER_UNIT = (10**9, 10**6, 10**3, 1)

_SKEWED_SHARE, _SKEWED_FROM = 0.03, 20  # of the users; users from which on there is at least one
_JUMP_SHARE, _JUMPS_FROM = 0.0005, 300  # of the events, in each direction; events from which on each occurs
_AHEAD = (3, 30)  # days, fewest and most; enough to lie in the future whatever the skew
_BEHIND = (6, 40)  # days; enough to be too late whatever the skew


@dataclass(frozen=True)
class Clocks:
    """Times as they are logged, in milliseconds since the log's start."""

    skew_U: Ints  # milliseconds, 0 for most users
    steady_N: Ints  # with the user's skew
    logged_N: Ints  # with jumps too
    unit_N: Ints  # position in UNIT_NAMES

    @property
    def jumped(self) -> Flags:
        """(N,) whose clock jumped: no reader can accept these."""
        return self.logged_N != self.steady_N

    @property
    def days(self) -> Ints:
        """(N,) the day that the logged time falls on, 0 = the log's start."""
        return self.logged_N // DAY_MS


def whole_seconds(time_N: Ints, device_N: Ints) -> Ints:
    """True times, cut to whole seconds where the device writes seconds: what is logged is then exact."""
    coarse_N = device_N == DEVICES.index(next(d for d, unit in UNITS.items() if unit == "s"))
    return np.where(coarse_N, time_N // 1000 * 1000, time_N)


def read_clocks(time_N: Ints, user_N: Ints, device_N: Ints, users: int, rng: np.random.Generator) -> Clocks:
    """Choose whose clocks are off, and read them at the true times.

    A skewed clock is off by whole minutes below an hour or by whole hours up to eight, ahead or behind.
    """
    skew_U = np.zeros(users, np.int64)
    count = max(int(users >= _SKEWED_FROM), round(_SKEWED_SHARE * users))
    skewed = rng.choice(users, count, replace=False)
    minutes = np.where(rng.random(count) < 0.5, rng.integers(1, 60, count), 60 * rng.integers(1, 9, count))
    skew_U[skewed] = minutes * 60_000 * rng.choice([-1, 1], count)
    steady_N = time_N + skew_U[user_N]
    logged_N = steady_N.copy()
    least = int(len(time_N) >= _JUMPS_FROM)
    each = max(least, round(_JUMP_SHARE * len(time_N)))
    ahead, behind = np.split(rng.choice(len(time_N), 2 * each, replace=False), 2)
    logged_N[ahead] += DAY_MS * rng.integers(_AHEAD[0], _AHEAD[1] + 1, each)
    logged_N[behind] -= DAY_MS * rng.integers(_BEHIND[0], _BEHIND[1] + 1, each)
    unit_of_device = np.array([UNIT_NAMES.index(UNITS[device]) for device in DEVICES])
    return Clocks(skew_U, steady_N, logged_N, unit_of_device[device_N])


def written(ms: int, unit: int) -> int:
    """Milliseconds since 1970 in the unit at that position of UNIT_NAMES.

    >>> [written(1_767_225_600_000, unit) for unit in range(2)]
    [1767225600, 1767225600000]
    """
    return ms * 10**6 // _NS_PER_UNIT[unit]
