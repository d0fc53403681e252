"""Expected values: bin by bin in plain Python, and torchmetrics-free cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.calibration import calibration_error, calibration_ratio
from infra.errors import UsageError

ROWS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.74, 1.0])), max_size=20)


@given(rows=ROWS, bins=st.integers(1, 20))
def test_bin_by_bin(rows: list[tuple[int, float]], bins: int) -> None:
    expected = 0.0
    for b in range(bins):
        inside = [(y, p) for y, p in rows if b <= p * bins < b + 1 or (b == bins - 1 and p == 1)]
        if inside:
            confidence = sum(p for _, p in inside) / len(inside)
            share = sum(y for y, _ in inside) / len(inside)
            expected += len(inside) / len(rows) * abs(confidence - share)
    found = calibration_error([y for y, _ in rows], [p for _, p in rows], bins)
    assert found == pytest.approx(expected if rows else math.nan, nan_ok=True)


def test_probabilities_that_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    labels = (rng.random(200_000) < p).astype(int)
    assert calibration_error(labels, p) < 0.005
    assert calibration_ratio(labels, p) == pytest.approx(1, abs=0.01)
    assert calibration_ratio(labels, p / 2) == pytest.approx(0.5, abs=0.01)


def test_what_has_no_value_and_what_is_refused() -> None:
    assert math.isnan(calibration_ratio([0, 0], [0.1, 0.2]))
    assert math.isnan(calibration_ratio([], []))
    with pytest.raises(UsageError, match="outside"):
        calibration_error([1], [1.5])
    with pytest.raises(UsageError, match="neither 0 nor 1"):
        calibration_ratio([2], [0.5])
