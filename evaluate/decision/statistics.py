"""Intervals by the bootstrap, with the user as the unit: how far a mean, or a difference, could be off.

Shapes: B users, R resamples. A resample draws B users with replacement; both models are read on the
same draw (paired), so what is easy or hard about a user cancels. Percentile intervals (Efron 1979),
with order statistics rounded outwards, never interpolated: an interval is at most one resample too wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import UsageError

RESAMPLES = 2000
LEVEL = 0.95

#: Draws held at once (8 bytes each): memory stays near 24 MB however many users and resamples.
_DRAWS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Interval:
    """An estimate and the two ends of its confidence interval; all NaN where it is not defined."""

    low: float
    estimate: float
    high: float


NOT_DEFINED = Interval(float("nan"), float("nan"), float("nan"))


@dataclass(frozen=True)
class Difference:
    """Candidate against baseline, both intervals from the same resamples.

    relative: mean(candidate) / mean(baseline) - 1; NOT_DEFINED where the baseline's mean is 0 (use
    `absolute` there). absolute: mean(candidate) - mean(baseline).
    """

    relative: Interval
    absolute: Interval


def paired_bootstrap(
    candidate: ArrayLike,
    baseline: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """Relative and absolute difference of two per-user metrics, (B,) each, same users in the same order.

    A resample whose baseline mean is 0 has the relative difference +inf (-inf for a candidate below
    0), or 0 when the candidate's is 0 as well. NOT_DEFINED for no users. UsageError for shapes that
    differ, values that are not finite, or settings out of range. The same seed gives the same
    intervals.

    >>> paired_bootstrap([2.0, 4.0], [1.0, 2.0], seed=0).relative
    Interval(low=1.0, estimate=1.0, high=1.0)
    """
    candidate_B, baseline_B = checked_pair(candidate, baseline)
    if not candidate_B.size:
        return Difference(NOT_DEFINED, NOT_DEFINED)
    means_2R = _resampled_means(np.stack([candidate_B, baseline_B]), seed, resamples)
    mean_c, mean_b = float(candidate_B.mean()), float(baseline_B.mean())
    absolute = _percentiles(means_2R[0] - means_2R[1], mean_c - mean_b, level)
    if mean_b == 0:
        return Difference(NOT_DEFINED, absolute)
    relative_R = _relative(means_2R[0], means_2R[1])
    return Difference(_percentiles(relative_R, mean_c / mean_b - 1, level), absolute)


def mean_interval(values: ArrayLike, seed: int, *, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """The mean of a per-user metric (B,) and its interval; NOT_DEFINED for no users. Errors as above.

    >>> mean_interval([0.5, 0.5, 0.5], seed=0)
    Interval(low=0.5, estimate=0.5, high=0.5)
    """
    values_B = _checked(values, "values")
    if not values_B.size:
        return NOT_DEFINED
    means_1R = _resampled_means(values_B[None], seed, resamples)
    return _percentiles(means_1R[0], float(values_B.mean()), level)


def _resampled_means(values_SB: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of S vectors over R resamples of their B users: (S, R), the same draws for every vector."""
    if resamples < 1:
        raise UsageError(f"resamples={resamples}: must be at least 1")
    chunks = [
        np.stack([values_B[draws].mean(axis=1) for values_B in values_SB])
        for draws in _draws(values_SB.shape[1], seed, resamples)
    ]
    return np.concatenate(chunks, axis=1)


def _draws(users: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of resamples, each row one draw of user positions; blocking does not change the draws."""
    generator = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // users)
    for start in range(0, resamples, rows):
        yield generator.integers(0, users, size=(min(rows, resamples - start), users))


def _relative(mean_c_R: NDArray[np.float64], mean_b_R: NDArray[np.float64]) -> NDArray[np.float64]:
    relative_R = np.where(mean_c_R == 0, 0.0, np.copysign(np.inf, mean_c_R))
    defined = mean_b_R != 0
    np.divide(mean_c_R, mean_b_R, out=relative_R, where=defined)
    relative_R[defined] -= 1.0
    return relative_R


def _percentiles(statistic_R: NDArray[np.float64], estimate: float, level: float) -> Interval:
    if not 0 < level < 1:
        raise UsageError(f"level={level}: must lie between 0 and 1, e.g. 0.95")
    tail = (1 - level) / 2
    low = np.quantile(statistic_R, tail, method="lower")
    high = np.quantile(statistic_R, 1 - tail, method="higher")
    return Interval(float(low), estimate, float(high))


def checked_pair(candidate: ArrayLike, baseline: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two per-user metrics, (B,) each; UsageError for shapes that differ, and for values that are not finite."""
    candidate_B, baseline_B = _checked(candidate, "candidate"), _checked(baseline, "baseline")
    if candidate_B.shape != baseline_B.shape:
        raise UsageError(
            f"paired comparison: {len(candidate_B)} users for the candidate, {len(baseline_B)} for the baseline; "
            "score both on the same users"
        )
    return candidate_B, baseline_B


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_B = np.asarray(values, dtype=np.float64)
    if values_B.ndim != 1:
        raise UsageError(f"{name}: expected one value per user, shape (B,), found {values_B.shape}")
    wrong = int((~np.isfinite(values_B)).sum())
    if wrong:
        raise UsageError(f"{name}: {wrong} of {values_B.size} users have a value that is not finite")
    return values_B
