"""P-values of paired comparisons: the sign-flip permutation test over users, and Holm's correction for several.

Shapes: B users, of which N differ; R permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from evaluate.decision.statistics import checked_pair
from infra.errors import UsageError

PERMUTATIONS = 9999
"""The smallest p-value is then 1 / 10,000."""

#: Signs held at once (8 bytes each).
_SIGNS_AT_ONCE = 1 << 20


def sign_flip_p(candidate: ArrayLike, baseline: ArrayLike, *, seed: int, permutations: int = PERMUTATIONS) -> float:
    """Two-sided p-value of "which of the two models a user's value came from does not matter"; (B,) each.

    With d = candidate - baseline and s_r of B random signs each,
        p = (1 + #{r : |sum_b s_rb d_b| >= |sum_b d_b|}) / (1 + R)
    (Fisher's randomisation test; the 1 counts the signs that were found, so p is never 0). Users without a difference
    change no sum. NaN for no users. UsageError as `paired_bootstrap`; the same seed gives the same value.

    >>> sign_flip_p([1.0, 2.0], [1.0, 2.0], seed=0)
    1.0
    """
    if permutations < 1:
        raise UsageError(f"permutations={permutations}: must be at least 1")
    candidate_B, baseline_B = checked_pair(candidate, baseline)
    if not candidate_B.size:
        return float("nan")
    difference_N = (candidate_B - baseline_B)[candidate_B != baseline_B]
    found = difference_N.sum()
    least = abs(found) - 1e-12 * np.abs(difference_N).sum()  # the same sum in another order may round otherwise
    generator = np.random.default_rng(seed)
    rows = max(1, _SIGNS_AT_ONCE // max(1, len(difference_N)))
    as_far = 0
    for start in range(0, permutations, rows):
        shape = (min(rows, permutations - start), len(difference_N))
        positive_RN = generator.integers(0, 2, size=shape, dtype=np.int8).astype(np.float64)
        as_far += int((np.abs(2 * (positive_RN @ difference_N) - found) >= least).sum())
    return (1 + as_far) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several (Holm 1979), in the order given; below alpha, the chance of even one false
    finding among all of them is at most alpha, however they depend on each other.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_(j)).

    >>> holm([0.25, 0.01, 0.03])
    [0.25, 0.03, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[position]))
        adjusted[position] = largest
    return adjusted
