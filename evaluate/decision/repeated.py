"""One model trained several times: how its figures spread over seeds, and two such models compared over users.

Shapes: S seeds, B users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evaluate.decision.significance import sign_flip_p
from evaluate.decision.statistics import Interval, paired_bootstrap


@dataclass(frozen=True)
class Spread:
    """Mean over repetitions, and their sample standard deviation (n - 1); None with a single one."""

    mean: float
    deviation: float | None


def spread(values: Sequence[float]) -> Spread | None:
    """Of one figure, a value per seed; None without any.

    >>> spread([1.0, 2.0, 3.0]), spread([4.0]), spread([])
    (Spread(mean=2.0, deviation=1.0), Spread(mean=4.0, deviation=None), None)
    """
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation)


@dataclass(frozen=True)
class Comparison:
    """Candidate minus baseline in the mean over users, with its 95 % interval and p-value."""

    difference: Interval
    p: float
    users: int
    seeds: int
    relative: Interval
    """The difference over the baseline's mean; NaN where that is 0."""


def compare(candidate_SB: ArrayLike, baseline_SB: ArrayLike, *, seed: int = 0) -> Comparison:
    """Two models on the same users in the same order; each user's value is first averaged over the model's seeds.

    The user is the unit of both the interval (paired bootstrap) and the test (sign flips): they speak of other users
    for these trained models, not of models from other seeds. UsageError as `paired_bootstrap`.
    """
    candidate_SB, baseline_SB = np.asarray(candidate_SB, np.float64), np.asarray(baseline_SB, np.float64)
    candidate_B, baseline_B = candidate_SB.mean(axis=0), baseline_SB.mean(axis=0)
    found = paired_bootstrap(candidate_B, baseline_B, seed=seed)
    p = sign_flip_p(candidate_B, baseline_B, seed=seed)
    return Comparison(found.absolute, p, len(candidate_B), len(candidate_SB), found.relative)
