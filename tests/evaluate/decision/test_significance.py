"""Expected values: all sign flips enumerated by hand, scipy's permutation and binomial tests, Holm's own rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.decision import significance
from evaluate.decision.significance import holm, sign_flip_p
from infra.errors import UsageError

GENERATOR = np.random.default_rng(5)
BASELINE = GENERATOR.random(200)
CANDIDATE = BASELINE + 0.1 * GENERATOR.normal(0.12, 1, 200)


def test_enumerated_flips() -> None:
    # Differences 1, 2, 3: of 8 sign patterns only +++ and --- reach 6; with 1, 2, -3 the sum is 0, which all reach.
    assert sign_flip_p([1, 2, 3], [0, 0, 0], seed=0, permutations=40_000) == pytest.approx(2 / 8, abs=0.01)
    assert sign_flip_p([1, 2, 0], [0, 0, 3], seed=0) == 1
    assert sign_flip_p([5], [0], seed=0) == 1


def test_users_without_a_difference_change_nothing() -> None:
    few = sign_flip_p([1, 2, 3, 1], [0, 0, 0, 0], seed=3)
    assert sign_flip_p([1, 0.5, 2, 3, 0.5, 1], [0, 0.5, 0, 0, 0.5, 0], seed=3) == few


def test_equal_differences_are_the_sign_test() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    found = sign_flip_p([1.0] * 14 + [0.0] * 6, [0.0] * 14 + [1.0] * 6, seed=1, permutations=40_000)
    assert found == pytest.approx(scipy_stats.binomtest(14, 20).pvalue, abs=0.006)


def test_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    reference = scipy_stats.permutation_test(
        (CANDIDATE - BASELINE,), np.mean, permutation_type="samples", n_resamples=20_000, rng=2
    ).pvalue
    found = sign_flip_p(CANDIDATE, BASELINE, seed=0, permutations=20_000)
    assert 0.01 < reference < 0.5
    assert found == pytest.approx(reference, abs=4 * math.sqrt(reference / 20_000))
    assert sign_flip_p(BASELINE, CANDIDATE, seed=0, permutations=20_000) == found  # two-sided
    monkeypatch.setattr(significance, "_SIGNS_AT_ONCE", 1)  # a permutation at a time
    assert sign_flip_p(CANDIDATE, BASELINE, seed=0, permutations=500) == pytest.approx(found, abs=0.08)


def test_a_clear_difference_has_the_smallest_p_there_is() -> None:
    assert sign_flip_p(BASELINE + 1, BASELINE, seed=0, permutations=999) == 1 / 1000


def test_false_alarms_are_as_rare_as_they_should_be() -> None:
    generator = np.random.default_rng(8)
    found = [sign_flip_p(generator.random(40), generator.random(40), seed=n, permutations=199) for n in range(400)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.085


def test_nobody_and_wrong_input() -> None:
    assert math.isnan(sign_flip_p([], [], seed=0))
    with pytest.raises(UsageError, match="2 users for the candidate, 1 for the baseline"):
        sign_flip_p([1, 2], [1], seed=0)
    with pytest.raises(UsageError, match="permutations=0"):
        sign_flip_p([1], [1], seed=0, permutations=0)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, and never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_values=st.lists(st.floats(0, 1), max_size=8), alpha=st.floats(0.001, 0.5))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], alpha: float) -> None:
    rejected = set()
    for place, position in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[position] * (len(p_values) - place) > alpha:
            break
        rejected.add(position)
    assert {n for n, p in enumerate(holm(p_values)) if p <= alpha} == rejected
