"""Population stability against hand calculation and numpy; what chance makes of it against the chi-square table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.drift import PSI_LARGE, PSI_MODERATE, SMOOTHING, Level, chance, compare, level, psi

COUNTS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=1, max_size=25).filter(
    lambda pairs: sum(a for a, _ in pairs) > 0 and sum(b for _, b in pairs) > 0
)


def test_two_bins_by_hand() -> None:
    # (0.8 - 0.5) ln(0.8 / 0.5) + (0.2 - 0.5) ln(0.2 / 0.5) = 0.3 * 0.47000 + 0.3 * 0.91629
    assert psi([50, 50], [80, 20]) == pytest.approx(0.41589, abs=3e-4)


def test_a_bin_that_empties_by_hand() -> None:
    # shares 1/2, 1/2 -> 1, 0; each with 1e-4 added and divided by 1.0002
    p, q = 1.0001 / 1.0002, 0.5001 / 1.0002
    r = 0.0001 / 1.0002
    by_hand = (p - q) * np.log(p / q) + (r - q) * np.log(r / q)
    assert psi([7, 7], [9, 0]) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(4.604, abs=0.001)


@given(COUNTS)
def test_the_formula_in_numpy(pairs: list[tuple[int, int]]) -> None:
    q, p = (np.array(c, float) / sum(c) + SMOOTHING for c in zip(*pairs, strict=True))
    q, p = q / q.sum(), p / p.sum()
    expected = np.sum((p - q) * (np.log(p) - np.log(q)))
    assert psi(*zip(*pairs, strict=True)) == pytest.approx(expected, abs=1e-9)


@given(COUNTS, st.integers(2, 9))
def test_it_is_symmetric_never_negative_and_blind_to_size(pairs: list[tuple[int, int]], times: int) -> None:
    before, now = (list(c) for c in zip(*pairs, strict=True))
    index = psi(before, now)
    assert index >= 0
    assert psi(now, before) == pytest.approx(index)
    assert psi([times * n for n in before], now) == pytest.approx(index)
    assert psi(before, [times * n for n in before]) == pytest.approx(0, abs=1e-12)


def test_a_day_without_rows_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="without counts"):
        psi([0, 0], [1, 2])
    assert compare(["a", "b"], [0, 0], [1, 2]) is None
    assert compare(["a", "b"], [1, 2], [0, 0]) is None


@pytest.mark.parametrize(("free", "quantile"), [(1, 10.828), (2, 13.816), (5, 20.515), (10, 29.588), (50, 86.661)])
def test_chance_is_the_chi_square_quantile(free: int, quantile: float) -> None:
    # From the printed table of the chi-square distribution, upper tail 0.001.
    assert chance(free + 1, 1000, 500) == pytest.approx(quantile * (1 / 1000 + 1 / 500), rel=0.04)


def test_samples_of_one_distribution_stay_below_chance() -> None:
    generator = np.random.default_rng(5)
    shares = [0.4, 0.3, 0.2, 0.1]
    beyond = 0
    for _ in range(2000):
        before, now = generator.multinomial(400, shares), generator.multinomial(300, shares)
        drift = compare(list("abcd"), before.tolist(), now.tolist())
        assert drift is not None
        beyond += drift.psi > drift.chance
    assert beyond <= 10  # two are expected


@pytest.mark.parametrize(
    ("index", "limit", "expected"),
    [
        (PSI_MODERATE - 1e-9, 0.0, Level.STABLE),
        (PSI_MODERATE, 0.05, Level.MODERATE),
        (PSI_LARGE - 1e-9, 0.05, Level.MODERATE),
        (PSI_LARGE, 0.05, Level.LARGE),
        (0.9, 1.0, Level.UNCLEAR),
        (0.05, 1.0, Level.STABLE),
    ],
)
def test_levels(index: float, limit: float, expected: Level) -> None:
    assert level(index, limit) is expected


def test_bins_that_are_empty_on_both_days_count_for_nothing() -> None:
    few, many = compare(["a", "b"], [60, 40], [50, 50]), compare(["a", "b", "c"], [60, 40, 0], [50, 50, 0])
    assert few is not None
    assert many is not None
    assert many.chance == few.chance
    assert many.psi == pytest.approx(few.psi, abs=1e-4)
