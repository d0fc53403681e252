"""What is removed from samples to see what a model is worth without it: patterns of missing fields at a rate.

A cell is one field of one sample. All patterns remove the rate's share of cells in expectation, whatever the log misses
already, and what they remove at one rate they remove at every higher one.

Shapes: N samples, F fields. Removed cells are bits, as in `samples.missing`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from evaluate.settings import MissingnessSettings, Pattern
from train.ragged import Ints
from train.ranking_data import RankingData

Floats = NDArray[np.float64]
_ROWS_AT_ONCE = 2**16
LEAST_DAYS = 7
"""Of the samples, for the pattern by_day; a temporal split tests one day alone."""


def scenarios(data: RankingData, settings: MissingnessSettings) -> Iterator[tuple[str, Ints]]:
    """(name, missing_N) of every pattern at every rate and of every field alone: at_random_30, without_price."""
    for pattern in patterns(data, settings):
        for rate in settings.rates:
            yield scenario(pattern, rate), data.missing_N | removed(pattern, rate, data, settings.seed)
    if settings.fields:
        for bit, spec in enumerate(data.fields):
            yield f"without_{spec.name}", data.missing_N | np.int64(1 << bit)


def patterns(data: RankingData, settings: MissingnessSettings) -> list[Pattern]:
    """Those that are asked for and mean something: by_day needs days, or a field's loss is one throw of a coin."""
    enough = len(np.unique(data.day_N)) >= LEAST_DAYS
    return [pattern for pattern in settings.patterns if pattern != "by_day" or enough]


def scenario(pattern: str, rate: float) -> str:
    """Its name, the rate in percent.

    >>> scenario("at_random", 0.3)
    'at_random_30'
    """
    return f"{pattern}_{round(100 * rate)}"


def removed(pattern: Pattern, rate: float, data: RankingData, seed: int, stream: int = 0) -> Ints:
    """Bits (N,) of what the pattern removes at the rate.

    at_random: each cell with chance `rate`. by_activity: with the mean of (1 - q)^a over the samples whose user has as
    many samples, a = (1 - rate) / rate, q running from the share whose user has fewer to that with as many or fewer;
    the mean over all samples is `rate`. by_day: a field is removed from all samples of a day with chance `rate`.
    """
    fields, rng = len(data.fields), np.random.default_rng([seed, stream])
    if pattern == "by_day":
        days, day_N = np.unique(data.day_N, return_inverse=True)
        return _drawn(np.full(len(days), rate), fields, rng)[day_N]
    chance_N = np.full(len(data), rate)
    if pattern == "by_activity":
        fewer_N, to_N = activity(data)
        power = (1 - rate) / rate + 1
        chance_N = ((1 - fewer_N) ** power - (1 - to_N) ** power) / (power * (to_N - fewer_N))
    return _drawn(chance_N, fields, rng)


def activity(data: RankingData) -> tuple[Floats, Floats]:
    """(N,) twice: the share of samples whose user has fewer samples than this one's, and that with as many or fewer."""
    _, user_N, count_U = np.unique(data.user_N, return_inverse=True, return_counts=True)
    count_N = count_U[user_N]
    ordered = np.sort(count_N)
    fewer, to = (np.searchsorted(ordered, count_N, side) / len(data) for side in ("left", "right"))
    return fewer, to


def area(rate_R: Floats, value_RX: Floats) -> Floats:
    """Mean height of the lines through (rate, value): the area under them over its width.

    >>> area(np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.8, 0.4])).round(6).tolist()
    0.75
    """
    found: Floats = np.trapezoid(value_RX, rate_R, axis=0) / (rate_R[-1] - rate_R[0])
    return found


def _drawn(chance_N: Floats, fields: int, rng: np.random.Generator) -> Ints:
    """Bits (N,), each set with its row's chance; some rows at a time, for which the draws are the same."""
    bit_F = np.arange(fields)
    found = np.zeros(len(chance_N), np.int64)
    for start in range(0, len(chance_N), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        chance_B1 = chance_N[rows, None]
        found[rows] = ((rng.random((len(chance_B1), fields)) < chance_B1).astype(np.int64) << bit_F).sum(axis=1)
    return found
