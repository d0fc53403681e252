"""Exact ranks and lists against a naive numpy ranking, ties included."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError
from train.ranking import MISS, hr_at, ndcg_at, target_ranks, top_k


def naive_order(u_RD, e_VD, history, target=None):
    """Candidates of one user, best first: integer scores, sorted by (-score, index)."""
    scores = (u_RD @ e_VD.T).max(axis=0)
    candidates = [i for i in range(2, len(e_VD)) if i not in set(history) or i == target]
    return sorted(candidates, key=lambda i: (-scores[i], i)), scores


@st.composite
def problems(draw):
    users, interests, width = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    catalogue, history = draw(st.integers(2, 15)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return (
        rng.integers(-2, 3, (users, interests, width)),
        rng.integers(-2, 3, (catalogue, width)),
        rng.integers(0, catalogue + 2, users),
        rng.integers(0, catalogue, (users, history)),
        draw(st.sampled_from([1, 2, 5, 100])),
    )


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans())
def test_ranks_equal_a_naive_ranking(problem, remove):
    u, e, target, history, at_once = problem
    vectors, table, seen = torch.tensor(u).float(), torch.tensor(e).float(), torch.tensor(history) if remove else None
    got = target_ranks(vectors, table, torch.tensor(target), seen, at_once).tolist()
    assert target_ranks(vectors @ table.T, None, torch.tensor(target), seen, at_once).tolist() == got
    for b in range(len(u)):
        if not 2 <= target[b] < len(e):
            assert got[b] == MISS
            continue
        order, _ = naive_order(u[b], e, history[b] if remove else [], target[b])
        assert got[b] == order.index(target[b]) + 1


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.integers(1, 20))
def test_lists_equal_a_naive_ranking(problem, remove, k):
    u, e, _, history, at_once = problem
    vectors, table, seen = torch.tensor(u).float(), torch.tensor(e).float(), torch.tensor(history) if remove else None
    items, scores = top_k(vectors, table, k, seen, at_once)
    assert torch.equal(top_k(vectors @ table.T, None, k, seen, at_once)[0], items)
    assert items.shape == scores.shape == (len(u), k)
    for b in range(len(u)):
        order, score = naive_order(u[b], e, history[b] if remove else [])
        expected = order[:k]
        fill = k - len(expected)
        assert items[b].tolist() == expected + [0] * fill
        assert scores[b].tolist() == [float(score[i]) for i in expected] + [-math.inf] * fill


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([7, 64, 10**6]))
def test_the_rank_is_the_place_in_the_list_for_real_valued_vectors(seed, at_once):
    g = torch.Generator().manual_seed(seed)
    u, e = torch.randn(3, 2, 16, generator=g), torch.randn(60, 16, generator=g)
    target = torch.randint(2, 60, (3,), generator=g)
    rank = target_ranks(u, e, target, at_once=at_once)
    items, scores = top_k(u, e, 58, at_once=at_once)
    assert items.gather(1, rank[:, None] - 1)[:, 0].tolist() == target.tolist()
    assert (scores.diff(dim=1) <= 0).all()


def scored(*scores):
    """(u, e) with these scores for the items from 2; rows 0 and 1 would win if they could."""
    return torch.ones(1, 1, 1), torch.tensor([[99.0], [99.0], *[[s] for s in scores]])


def test_a_nan_candidate_beats_nothing_and_is_not_listed():
    u, e = scored(1.0, math.nan, 2.0)
    assert target_ranks(u, e, torch.tensor([2])).tolist() == [2]
    items, scores = top_k(u, e, 3)
    assert items.tolist() == [[4, 2, 0]]
    assert scores.tolist() == [[2.0, 1.0, -math.inf]]


@pytest.mark.parametrize("at_once", [10**6, 1])
def test_a_nan_target_is_last(at_once):
    u, e = scored(1.0, math.nan, 2.0, -math.inf)
    assert target_ranks(u, e, torch.tensor([3]), at_once=at_once).tolist() == [4]
    removed = torch.tensor([[2, 2, 3, 0]])  # the target itself never leaves, nor does it count twice
    assert target_ranks(u, e, torch.tensor([3]), removed, at_once).tolist() == [3]


def test_a_nan_interest_spoils_the_item_instead_of_lifting_it():
    u = torch.tensor([[[1.0], [math.nan]]])
    assert target_ranks(u, torch.ones(5, 1), torch.tensor([2])).tolist() == [3]


def test_minus_infinity_is_a_candidate_and_ties_by_index():
    u, e = scored(-math.inf, 0.0, -math.inf)
    assert target_ranks(u, e, torch.tensor([4])).tolist() == [3]
    assert target_ranks(u, e, torch.tensor([2])).tolist() == [2]
    assert top_k(u, e, 4)[0].tolist() == [[3, 2, 4, 0]]


def test_plus_and_minus_zero_are_a_tie():
    u, e = scored(-0.0, 0.0, -0.0)
    assert top_k(u, e, 3)[0].tolist() == [[2, 3, 4]]


@pytest.mark.parametrize("target", [-1, 0, 1, 5, 10**9])
def test_no_candidate_is_a_miss_at_any_cut(target):
    u, e = scored(1.0, 2.0, 3.0)
    rank = target_ranks(u, e, torch.tensor([target]))
    assert rank.tolist() == [MISS]
    assert hr_at(rank, 10**6).item() == 0
    assert ndcg_at(rank, 10**6).item() == 0


def test_an_empty_catalogue_gives_empty_lists():
    items, scores = top_k(torch.ones(2, 1, 1), torch.ones(2, 1), 2)
    assert items.tolist() == [[0, 0], [0, 0]]
    assert scores.tolist() == [[-math.inf] * 2] * 2


def test_k_below_one_is_refused():
    with pytest.raises(UsageError, match="k: "):
        top_k(*scored(1.0), k=0)


def test_metrics_by_hand():
    rank = torch.tensor([1, 2, 3, 7, 8])
    assert hr_at(rank, 7).tolist() == [1, 1, 1, 1, 0]
    assert ndcg_at(rank, 7).tolist() == pytest.approx([1, 1 / math.log2(3), 0.5, 1 / 3, 0])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**16), st.integers(1, 9), st.sampled_from([3, 40, 2000]), st.sampled_from([0.0, 0.01, 0.6]),
    st.sampled_from([2000, 10**6]),
)  # fmt: skip
def test_long_catalogues_with_ties_nan_and_infinities(seed, k, levels, spoilt, at_once):
    """Where lists begin at a bound: few levels are ties in numbers, which go by their keys."""
    rng = np.random.default_rng(seed)
    s = rng.integers(0, levels, (5, 1002)).astype(np.float32)
    odd = rng.random(s.shape) < spoilt
    s[odd] = rng.choice([math.nan, math.inf, -math.inf], int(odd.sum()))
    target, seen = rng.integers(2, 1002, 5), rng.integers(0, 1002, (5, 7))
    u = torch.from_numpy(s)[:, None]
    items, scores = top_k(u, None, k, torch.from_numpy(seen), at_once)
    rank = target_ranks(u, None, torch.from_numpy(target), torch.from_numpy(seen), at_once)
    for b in range(5):
        candidates = [i for i in range(2, 1002) if i not in set(seen[b]) or i == target[b]]
        order = sorted((i for i in candidates if not math.isnan(s[b, i])), key=lambda i: (-s[b, i], i))
        own = s[b, target[b]]
        assert rank[b] == (len(candidates) if math.isnan(own) else order.index(target[b]) + 1)
        expected = [i for i in order if i not in set(seen[b])][:k]
        assert items[b].tolist() == expected + [0] * (k - len(expected))
        assert scores[b].tolist() == [s[b, i] for i in expected] + [-math.inf] * (k - len(expected))
