"""Seeds first, users then: by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluate.decision.repeated import Spread, compare, spread
from evaluate.decision.significance import sign_flip_p
from evaluate.decision.statistics import paired_bootstrap
from infra.errors import UsageError


def test_spread_is_the_samples() -> None:
    assert spread([2.0, 4.0, 9.0]) == Spread(5.0, pytest.approx(math.sqrt(13)))
    assert spread([3.0]) == Spread(3.0, None)
    assert spread([]) is None


def test_a_users_value_is_the_mean_over_seeds() -> None:
    generator = np.random.default_rng(2)
    candidate_SB, baseline_SB = generator.random((3, 50)) + 0.1, generator.random((3, 50))
    found = compare(candidate_SB, baseline_SB, seed=4)
    means = candidate_SB.mean(axis=0), baseline_SB.mean(axis=0)
    assert found.difference == paired_bootstrap(*means, seed=4).absolute
    assert found.p == sign_flip_p(*means, seed=4)
    assert found.difference.estimate == pytest.approx(candidate_SB.mean() - baseline_SB.mean())
    assert (found.users, found.seeds) == (50, 3)


def test_seeds_are_not_users() -> None:
    """The same values from more seeds are no more evidence."""
    once_SB, none_SB = np.array([[0.5, 0.1, 0.4, -0.2]]), np.zeros((1, 4))
    several = compare(np.repeat(once_SB, 10, axis=0), np.repeat(none_SB, 10, axis=0))
    assert several.p == compare(once_SB, none_SB).p


def test_nobody_and_others() -> None:
    nobody = compare(np.zeros((2, 0)), np.zeros((2, 0)))
    assert math.isnan(nobody.p)
    assert math.isnan(nobody.difference.estimate)
    with pytest.raises(UsageError, match="score both on the same users"):
        compare(np.zeros((2, 3)), np.zeros((2, 4)))
