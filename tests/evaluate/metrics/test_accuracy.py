"""Expected values: a table worked out by hand, and ir_measures on runs that realise the ranks."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from evaluate.metrics.accuracy import MISS, hr, mean, ndcg, reciprocal_rank, summarise
from infra.errors import UsageError

# rank: HR@1, HR@5, NDCG@1, NDCG@5, reciprocal rank. log2(3) = 1.5849625, log2(6) = 2.5849625
HAND = {
    1: (1, 1, 1.0, 1.0, 1.0),
    2: (0, 1, 0.0, 0.63092975, 0.5),
    3: (0, 1, 0.0, 0.5, 0.33333333),
    5: (0, 1, 0.0, 0.38685281, 0.2),
    6: (0, 0, 0.0, 0.0, 0.16666667),
    MISS: (0, 0, 0.0, 0.0, 0.0),
}


def test_the_hand_table() -> None:
    ranks = np.array(list(HAND))
    expected = np.array(list(HAND.values())).T
    found = [hr(ranks, 1), hr(ranks, 5), ndcg(ranks, 1), ndcg(ranks, 5), reciprocal_rank(ranks)]
    for column, vector in zip(expected, found, strict=True):
        np.testing.assert_allclose(vector, column, atol=1e-8)


@given(ranks=st.lists(st.integers(1, 40), min_size=1, max_size=8), k=st.integers(1, 30))
def test_agrees_with_ir_measures(ranks: list[int], k: int) -> None:
    users = [f"u{i:02d}" for i in range(len(ranks))]
    qrels = [ir_measures.Qrel(user, "target", 1) for user in users]
    run = [
        ir_measures.ScoredDoc(user, "target" if place == rank else f"other{place}", -float(place))
        for user, rank in zip(users, ranks, strict=True)
        for place in range(1, 41)
    ]
    measured: dict[str, dict[str, float]] = {}
    for one in ir_measures.iter_calc([RR, nDCG @ k, Success @ k, R @ k, P @ k, AP @ k, RR @ k], qrels, run):
        measured.setdefault(str(one.measure), {})[one.query_id] = one.value

    def reference(name: str) -> list[float]:
        return [measured[name][user] for user in users]

    np.testing.assert_allclose(reciprocal_rank(ranks), reference("RR"), atol=1e-12)
    np.testing.assert_allclose(ndcg(ranks, k), reference(f"nDCG@{k}"), atol=1e-12)
    np.testing.assert_allclose(hr(ranks, k), reference(f"Success@{k}"), atol=1e-12)
    named = {"recall": "R", "precision": "P", "map": "AP", "mrr": "RR", "hr": "Success", "ndcg": "nDCG"}
    vectors = summarise(ranks, [k], named)
    for name, theirs in named.items():
        np.testing.assert_allclose(vectors[f"{name}_at_{k}"], reference(f"{theirs}@{k}"), atol=1e-12, err_msg=name)


def test_summarise_names_and_vectors() -> None:
    vectors = summarise(np.array([1, 7, MISS]), ks=(5, 10))
    assert set(vectors) == {"hr_at_5", "ndcg_at_5", "hr_at_10", "ndcg_at_10", "mrr"}
    assert vectors["hr_at_5"].tolist() == [1, 0, 0]
    assert vectors["hr_at_10"].tolist() == [1, 1, 0]
    assert vectors["ndcg_at_10"] == pytest.approx([1, 1 / 3, 0])
    assert vectors["mrr"] == pytest.approx([1, 1 / 7, 0])


def test_a_miss_is_what_the_ranking_says() -> None:
    from train.ranking import MISS as RANKING_MISS

    assert MISS == RANKING_MISS


def test_no_users_give_empty_vectors_and_an_undefined_mean() -> None:
    vectors = summarise(np.array([]), ks=[5])
    assert [len(vector) for vector in vectors.values()] == [0, 0, 0]
    assert math.isnan(mean(vectors["mrr"]))


@pytest.mark.parametrize("k", [0, -1])
def test_a_cut_off_below_one_is_refused(k: int) -> None:
    for metric in (hr, ndcg):
        with pytest.raises(UsageError, match=f"k={k}"):
            metric([1, 2], k)


@pytest.mark.parametrize(
    ("ranks", "message"), [([0, 3, -1], "2 below 1"), ([1.0, 2.5], "whole numbers"), ([[1, 2]], r"\(1, 2\)")]
)
def test_ranks_that_are_no_ranks_are_refused(ranks: list, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reciprocal_rank(ranks)
