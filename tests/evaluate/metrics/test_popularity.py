"""Expected values: by hand, and plain loops for random lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluate.metrics.popularity import head, head_share, novelty, serendipity
from infra.errors import UsageError

#: Of items 2 to 6: 16 events.
COUNTS = np.array([0, 0, 8, 4, 2, 2, 0])
lists_of_items = arrays(np.int64, st.tuples(st.integers(0, 6), st.integers(1, 4)), elements=st.integers(0, 6))


def test_the_head_by_hand() -> None:
    # 8 + 4 = 12 are not yet 80 % of 16; with the first of the two at 2 events 14 are.
    assert np.flatnonzero(head(COUNTS)).tolist() == [2, 3, 4]
    assert np.flatnonzero(head(COUNTS, 0.5)).tolist() == [2]
    assert np.flatnonzero(head(COUNTS, 1.0)).tolist() == [2, 3, 4, 5]  # what nobody took is never head


def test_the_share_of_the_head_by_hand() -> None:
    assert head_share([[2, 5], [6, 0], [3, 0]], COUNTS) == 0.5
    assert math.isnan(head_share([[0, 0]], COUNTS))


def test_novelty_by_hand() -> None:
    # 16 events: -log2(8/16) = 1, -log2(2/16) = 3; nobody's item counts as one event: -log2(1/16) = 4
    assert novelty([[2, 4], [6, 0], [0, 0]], COUNTS).tolist() == [2.0, 4.0, 0.0]


def test_serendipity_by_hand() -> None:
    targets = np.array([2, 3, 4, 5, 6])
    assert serendipity([1, 2, 2, 1, 3], targets, COUNTS, k=2).tolist() == [0, 0, 1, 1, 0]
    # Where fewer than k items have events the rest is nobody's list: a hit on item 6 is never obvious.
    assert serendipity([1] * 5, targets, COUNTS, k=5).tolist() == [0, 0, 0, 0, 1]


@given(lists=lists_of_items, counts=arrays(np.int64, 5, elements=st.integers(0, 9)).filter(lambda c: c.sum() > 0))
def test_against_plain_loops(lists: np.ndarray, counts: np.ndarray) -> None:
    counts_V = np.concatenate([[0, 0], counts])
    lists = np.where(lists == 1, 0, lists)
    total = counts.sum()
    for row, found in zip(lists, novelty(lists, counts_V), strict=True):
        bits = [-math.log2(max(1, counts_V[i]) / total) for i in row if i]
        assert found == pytest.approx(sum(bits) / len(bits) if bits else 0.0)
    ranked, held, top = sorted(range(7), key=lambda i: (-counts_V[i], i)), 0, set()
    for item in ranked:
        if held < 0.8 * total:
            top.add(item)
            held += counts_V[item]
    filled = [i for row in lists for i in row if i]
    if filled:
        assert head_share(lists, counts_V) == pytest.approx(sum(i in top for i in filled) / len(filled))


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no item has a training event"):
        novelty([[2]], np.zeros(3, np.int64))
    with pytest.raises(UsageError, match="the counts hold indices up to 6"):
        head_share([[7]], COUNTS)
