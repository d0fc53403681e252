"""Bins and counts by hand, and against numpy's and Python's own counting."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from featurize.sketch import LONGEST, Sketch, bin_counts, numeric_bins, shorten, value_counts
from infra.tables import Kind

FLOATS = st.lists(st.floats(-100, 100, width=16), max_size=60)


@given(FLOATS, FLOATS.map(set).map(sorted))
def test_every_value_lies_in_the_bin_that_its_name_says(values: list[float], edges: list[float]) -> None:
    counts = bin_counts(np.array(values, float), edges)
    assert len(counts) == len(numeric_bins(edges))
    if not edges:
        assert counts == [len(values)]
        return
    expected = [sum(v < edges[0] for v in values), sum(v == edges[0] for v in values)]
    expected += [sum(low < v <= high for v in values) for low, high in pairwise([*edges, np.inf])]
    assert counts == expected


def test_two_values_of_a_flag_have_bins_of_their_own() -> None:
    assert numeric_bins([0.0, 1.0]) == ("below 0", "0", "over 0 to 1", "above 1")
    assert bin_counts(np.array([0.0, 1.0, 1.0]), [0.0, 1.0]) == [0, 1, 2, 0]


def test_a_constant_is_told_from_what_lies_on_either_side() -> None:
    assert bin_counts(np.array([3.0, 5.0, 7.0, 7.0]), [5.0]) == [1, 1, 2]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=20))
def test_lists_count_their_elements_and_an_empty_one_once(rows: list[list[str]]) -> None:
    expected = Counter(v for row in rows for v in row or [""])
    assert dict(value_counts(pa.array(rows, pa.list_(pa.string())), Kind.MULTI)) == dict(expected)


def test_a_slice_counts_only_its_own_lists() -> None:
    rows = pa.array([["a"], ["b", "b"], ["c"]]).slice(1, 1)
    assert dict(value_counts(rows, Kind.MULTI)) == {"b": 2}


def test_long_values_are_cut_and_stay_apart() -> None:
    one, other = "x" * 4000 + "1", "x" * 4000 + "2"
    assert shorten("x" * LONGEST) == "x" * LONGEST
    assert len(shorten(one)) <= LONGEST
    assert shorten(one) != shorten(other)
    assert shorten(one) == shorten("x" * 4000 + "1")


def test_names_and_counts_belong_together() -> None:
    sketch = Sketch("categorical", 10, 2, 4, (("a", 3), ("b", 2)), 3)
    assert dict(zip(sketch.bins, sketch.tally, strict=True)) == {"a": 3, "b": 2, "(other)": 3, "(missing)": 2}
    numeric = Sketch("numeric", 6, 1, edges=(1.0, 2.5), counts=(0, 1, 4, 0))
    named = dict(zip(numeric.bins, numeric.tally, strict=True))
    assert named == {"below 1": 0, "1": 1, "over 1 to 2.5": 4, "above 2.5": 0, "(missing)": 1}
