"""Expected values: resamples enumerated by hand, the normal approximation, scipy's bootstrap."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import evaluate.decision.statistics as statistics
from evaluate.decision.statistics import Interval, mean_interval, paired_bootstrap
from infra.errors import UsageError

GENERATOR = np.random.default_rng(5)
BASELINE = GENERATOR.random(400)
CANDIDATE = BASELINE * 0.9 + 0.1 * GENERATOR.random(400)


def test_enumerated_resamples() -> None:
    # [0, 0, 1] has 27 resamples: mean 0 in 8, 1/3 in 12, 2/3 in 6, 1 in 1. P(mean = 1) = 3.7 % lies
    # above the 5 % tail's cut and inside the 2.5 % tail's.
    ninety = mean_interval([0.0, 0.0, 1.0], seed=0, resamples=20_000, level=0.90)
    assert astuple(ninety) == pytest.approx((0, 1 / 3, 2 / 3))
    ninety_five = mean_interval([0.0, 0.0, 1.0], seed=0, resamples=20_000, level=0.95)
    assert astuple(ninety_five) == pytest.approx((0, 1 / 3, 1))


def test_the_mean_of_many_users_is_normal() -> None:
    values = np.random.default_rng(1).random(4000)
    half = 1.959964 * values.std(ddof=1) / math.sqrt(4000)
    found = mean_interval(values, seed=2, resamples=4000)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(values.mean() + half, abs=half / 10)


def test_agrees_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")

    def relative(c: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return c.mean(axis=axis) / b.mean(axis=axis) - 1

    reference = scipy_stats.bootstrap(
        (CANDIDATE, BASELINE), relative, paired=True, method="percentile", n_resamples=9999, rng=8
    ).confidence_interval
    found = paired_bootstrap(CANDIDATE, BASELINE, seed=0, resamples=9999).relative
    width = reference.high - reference.low
    assert found.low == pytest.approx(reference.low, abs=width / 20)
    assert found.high == pytest.approx(reference.high, abs=width / 20)
    assert found.estimate == pytest.approx(CANDIDATE.mean() / BASELINE.mean() - 1)


def test_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    intervals = [mean_interval(generator.random(60), seed=i, resamples=400) for i in range(300)]
    share = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert 0.90 <= share <= 0.985


def test_users_are_paired() -> None:
    # The candidate is 10 % better for every user: however users vary, no resample says otherwise.
    difference = paired_bootstrap(BASELINE * 1.1, BASELINE, seed=0)
    assert astuple(difference.relative) == pytest.approx((0.1, 0.1, 0.1))
    shifted = paired_bootstrap(BASELINE + 0.25, BASELINE, seed=0)
    assert astuple(shifted.absolute) == pytest.approx((0.25, 0.25, 0.25))
    # Shuffling one side breaks the pairs and the interval opens.
    unpaired = paired_bootstrap(np.sort(BASELINE) * 1.1, BASELINE, seed=0).relative
    assert unpaired.high - unpaired.low > 0.05


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=20), seed=st.integers(0, 2**32))
def test_an_interval_holds_its_estimate_and_stays_within_the_values(values: list[float], seed: int) -> None:
    found = mean_interval(values, seed, resamples=200, level=0.999)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found.low - 1e-12 <= found.estimate <= found.high + 1e-12


@pytest.mark.parametrize("draws", [1, 400, 1001, 100_000])
def test_blocking_does_not_change_the_draws(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = paired_bootstrap(CANDIDATE, BASELINE, seed=4, resamples=50)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", draws)
    assert paired_bootstrap(CANDIDATE, BASELINE, seed=4, resamples=50) == expected


def test_the_seed_decides() -> None:
    assert mean_interval(BASELINE, 1) == mean_interval(BASELINE, 1)
    assert mean_interval(BASELINE, 1) != mean_interval(BASELINE, 2)


def test_memory_is_bounded() -> None:
    values = np.random.default_rng(0).random(10_000)
    tracemalloc.start()
    try:
        paired_bootstrap(values, values[::-1], seed=0, resamples=2000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6  # all draws at once would be 160 MB


def test_a_baseline_of_zero_has_no_relative_difference() -> None:
    difference = paired_bootstrap([0.5, 0.5], [0.0, 0.0], seed=0)
    assert all(math.isnan(end) for end in astuple(difference.relative))
    assert difference.absolute == Interval(0.5, 0.5, 0.5)


def test_single_resamples_with_a_baseline_of_zero_are_infinite_or_no_difference() -> None:
    # A quarter of the resamples draws the first user twice: baseline 0.
    better = paired_bootstrap([0.5, 0.5], [0.0, 1.0], seed=0).relative
    assert astuple(better) == (-0.5, 0.0, math.inf)
    both_zero = paired_bootstrap([0.0, 0.5], [0.0, 1.0], seed=0).relative
    assert astuple(both_zero) == (-0.5, -0.5, 0.0)
    below_zero = paired_bootstrap([-0.5, 0.5], [0.0, 1.0], seed=0).relative
    assert astuple(below_zero) == (-math.inf, -1.0, -0.5)


def test_no_users_have_no_interval() -> None:
    difference = paired_bootstrap([], [], seed=0)
    ends = astuple(difference.relative) + astuple(difference.absolute) + astuple(mean_interval([], 0))
    assert all(math.isnan(end) for end in ends)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap([1.0], [1.0, 2.0], seed=0), "1 users for the candidate, 2 for"),
        (lambda: paired_bootstrap([1.0, math.nan], [1.0, 2.0], seed=0), "candidate: 1 of 2"),
        (lambda: paired_bootstrap([1.0, 1.0], [math.inf, 2.0], seed=0), "baseline: 1 of 2"),
        (lambda: mean_interval([[1.0]], 0), r"\(1, 1\)"),
        (lambda: mean_interval([1.0], 0, resamples=0), "resamples=0"),
        (lambda: mean_interval([1.0], 0, level=95), "level=95"),
    ],
)
def test_wrong_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
