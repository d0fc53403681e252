"""Population stability: how far one day's distribution of a field lies from the day before.

PSI = sum over bins of (p - q) ln(p / q), p and q the bin's shares on the two days. Rules of thumb from
credit scoring: below 0.1 stable, from 0.25 on large. Between two samples of ONE distribution the index is
about chi-square times (1/n + 1/m), so on a small day a large index may mean nothing: `chance` says how
large it gets by chance alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

PSI_MODERATE = 0.1
"""From here on a field has drifted moderately."""
PSI_LARGE = 0.25
"""From here on a field has drifted much: the report warns."""
SMOOTHING = 1e-4
"""Added to every bin's share, so that a bin that is empty on one day has a finite term. On shares and not on
counts: days of different size then agree about a bin that is empty on both."""
Z_999 = 3.0902
"""Standard normal quantile of 0.999: chance exceeds what we call chance once in a thousand comparisons."""


class Level(StrEnum):
    """What an index says."""

    STABLE = "stable"
    MODERATE = "moderate"
    LARGE = "large"
    UNCLEAR = "unclear"
    """At or above `PSI_MODERATE`, but no larger than chance makes it with so few rows."""


@dataclass(frozen=True)
class Drift:
    """Both days' counts in the reference day's bins, and what follows from them."""

    bins: tuple[str, ...]
    reference: tuple[int, ...]
    current: tuple[int, ...]
    psi: float
    chance: float
    level: Level


def compare(bins: Sequence[str], reference: Sequence[int], current: Sequence[int]) -> Drift | None:
    """The drift of `current` against `reference`; None when either day is empty.

    >>> compare(["a", "b"], [500, 500], [900, 100]).level.value, compare(["a", "b"], [5, 5], [9, 1]).level.value
    ('large', 'unclear')
    """
    if not sum(reference) or not sum(current):
        return None
    index = psi(reference, current)
    filled = sum(bool(r or c) for r, c in zip(reference, current, strict=True))
    limit = chance(filled, sum(reference), sum(current))
    return Drift(tuple(bins), tuple(reference), tuple(current), index, limit, level(index, limit))


def psi(reference: Sequence[int], current: Sequence[int]) -> float:
    """sum (p - q) ln(p / q) over bins, p = (count / total + SMOOTHING) / (1 + bins * SMOOTHING).

    ValueError when a day has no counts.

    >>> round(psi([50, 50], [80, 20]), 3)  # 0.3 ln(1.6) + 0.3 ln(2.5)
    0.416
    """
    n, m = sum(reference), sum(current)
    if n <= 0 or m <= 0:
        raise ValueError("psi: a day without counts has no distribution")
    scale = 1 + len(reference) * SMOOTHING
    total = 0.0
    for before, now in zip(reference, current, strict=True):
        q, p = (before / n + SMOOTHING) / scale, (now / m + SMOOTHING) / scale
        total += (p - q) * math.log(p / q)
    return total


def chance(bins: int, n: int, m: int) -> float:
    """What the index of two samples (n and m independent rows) of one distribution stays below 999 times in 1000.

    chi2_0.999(bins - 1) * (1/n + 1/m), the quantile by Wilson and Hilferty's approximation (within 4 %).
    """
    free = bins - 1
    if free < 1:
        return 0.0
    quantile = free * (1 - 2 / (9 * free) + Z_999 * math.sqrt(2 / (9 * free))) ** 3
    return quantile * (1 / n + 1 / m)


def level(index: float, limit: float) -> Level:
    """The level of an index whose value by chance is `limit`."""
    if index < PSI_MODERATE:
        return Level.STABLE
    if index <= limit:
        return Level.UNCLEAR
    return Level.LARGE if index >= PSI_LARGE else Level.MODERATE
