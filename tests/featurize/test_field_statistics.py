"""featurize/field_statistics.py: merged moments against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.field_statistics import merge

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=5))
def test_merged_moments_are_those_of_the_whole(parts: list[list[float]]) -> None:
    mean, std = merge([(len(p), float(np.mean(p)), float(np.var(p))) for p in parts])
    whole = np.concatenate([np.array(p) for p in parts])
    assert mean == pytest.approx(whole.mean(), rel=1e-9, abs=1e-6)
    assert std == pytest.approx(whole.std(), rel=1e-6, abs=1e-3)


def test_equal_constants_have_no_deviation_and_no_numbers_no_moments() -> None:
    assert merge([(3, 0.1, 0.0), (4, 0.1, 0.0)]) == (0.1, 0.0)
    assert merge([]) == (0.0, 0.0)
    assert merge([(1, 0.0, 0.0), (1, 1e300, 0.0)])[1] == float("inf")
