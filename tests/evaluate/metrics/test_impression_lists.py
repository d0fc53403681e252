"""Expected values: every order of the ties, scikit-learn, and lists by hand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.impression_lists import list_metrics
from infra.errors import UsageError

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-math.inf, 0.0, -0.0, 0.5, 2.0]), st.sampled_from("ab")), max_size=9
)


def in_every_order(rows: list[tuple[int, float]], k: int) -> tuple[float, float]:
    """(HR@k, NDCG@k), means over all orders that the scores allow."""
    relevant = sum(label for label, _ in rows)
    if not relevant:
        return math.nan, math.nan
    ideal = sum(1 / math.log2(2 + i) for i in range(min(k, relevant)))
    hits, gains = [], []
    for order in permutations(rows):
        scores = [score for _, score in order]
        if scores == sorted(scores, reverse=True):
            first = [label for label, _ in order][:k]
            hits.append(float(any(first)))
            gains.append(sum(label / math.log2(2 + i) for i, label in enumerate(first)) / ideal)
    return sum(hits) / len(hits), sum(gains) / len(gains)


@given(rows=ROWS.filter(lambda rows: all(sum(r[2] == u for r in rows) <= 6 for u in "ab")), k=st.integers(1, 7))
def test_expected_over_the_orders_of_ties(rows: list[tuple[int, float, str]], k: int) -> None:
    names, found = list_metrics([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], [k])
    assert names.tolist() == sorted({user for *_, user in rows})
    expected = [in_every_order([r[:2] for r in rows if r[2] == name], k) for name in names]
    assert found[f"hr_at_{k}"].tolist() == pytest.approx([hr for hr, _ in expected], nan_ok=True)
    assert found[f"ndcg_at_{k}"].tolist() == pytest.approx([ndcg for _, ndcg in expected], nan_ok=True)


def test_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    users = rng.integers(0, 30, 2000)
    labels, scores = rng.integers(0, 2, 2000), np.round(rng.random(2000), 1)
    names, found = list_metrics(labels, scores, users, [5, 20])
    for name, *values in zip(names, found["ndcg_at_5"], found["ndcg_at_20"], strict=True):
        of = users == name
        for k, value in zip((5, 20), values, strict=True):
            assert value == pytest.approx(metrics.ndcg_score([labels[of]], [scores[of]], k=k))


def test_by_hand() -> None:
    labels, scores = [0, 1, 1, 0], [4.0, 3.0, 2.0, 1.0]
    _, found = list_metrics(labels, scores, ["u"] * 4, ks=[1, 2, 10**9])
    assert found["hr_at_1"].tolist() == [0.0]
    assert found["hr_at_2"].tolist() == [1.0]
    best = 1 + 1 / math.log2(3)
    assert found["ndcg_at_2"].tolist() == pytest.approx([1 / math.log2(3) / best])
    assert found["ndcg_at_1000000000"].tolist() == pytest.approx([(1 / math.log2(3) + 0.5) / best])


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="k=0"):
        list_metrics([1], [0.5], ["u"], ks=[0])
    with pytest.raises(UsageError, match="NaN"):
        list_metrics([1], [math.nan], ["u"], ks=[1])
    with pytest.raises(UsageError, match="neither 0 nor 1"):
        list_metrics([2], [0.1], ["u"], ks=[1])
