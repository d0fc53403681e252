"""Expected values: by hand, and plain sets and pairwise sums for random lists."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import evaluate.metrics.diversity as diversity
from evaluate.metrics.diversity import (
    ItemCategories,
    catalogue_coverage,
    category_count,
    embedding_distance,
    exposure_entropy,
    gini,
    intra_list_distance,
)
from infra.errors import UsageError

ITEMS = 9
GENRES = ItemCategories.from_lists([[], [], [4], [4, 5], [6, 4, 6], [], [7], [5, 6], [2**31 - 1]])

lists_of_items = arrays(np.int32, st.tuples(st.integers(0, 7), st.integers(1, 4)), elements=st.integers(0, ITEMS - 1))


def test_coverage_by_hand() -> None:
    # 2, 3, 5, 8 out of 10 candidates
    assert catalogue_coverage([[2, 3, 5], [3, 8, 0]], 10) == 0.4
    assert catalogue_coverage([[0, 0]], 10) == 0.0


def test_gini_by_hand() -> None:
    # exposures 0, 1, 3: mean absolute difference over all ordered pairs / (2 mean) = (12 / 9) / (8 / 3)
    assert gini([[2, 2], [2, 3]], catalogue_items=3) == pytest.approx(0.5)
    assert gini([[2, 3], [4, 5]], catalogue_items=4) == 0.0
    assert math.isnan(gini([[0, 0]], catalogue_items=4))


@given(lists=lists_of_items, extra=st.integers(0, 5))
def test_gini_is_the_mean_absolute_difference(lists: np.ndarray, extra: int) -> None:
    shown = [int((lists == item).sum()) for item in range(1, ITEMS)] + [0] * extra
    if not sum(shown):
        return
    differences = sum(abs(a - b) for a in shown for b in shown)
    assert gini(lists, len(shown)) == pytest.approx(differences / (2 * len(shown) * sum(shown)))


def test_category_count_by_hand() -> None:
    lists = [[2, 3, 4], [5, 0, 0], [4, 4, 8], [0, 0, 0]]
    assert category_count(lists, GENRES).tolist() == [3, 0, 3, 0]


@pytest.mark.parametrize("users_at_once", [1, 2, 65_536])
@given(lists=lists_of_items)
def test_category_count_is_the_size_of_the_union(users_at_once: int, lists: np.ndarray) -> None:
    rows = [set(GENRES.values[a:b].tolist()) for a, b in zip(GENRES.offsets, GENRES.offsets[1:], strict=False)]
    expected = [len(set().union(*(rows[item] for item in row if item))) for row in lists]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "_USERS_AT_ONCE", users_at_once)
        assert category_count(lists, GENRES).tolist() == expected


def test_entropy_by_hand() -> None:
    # shares 1/2, 1/4, 1/4 of four candidates: (ln 2 / 2 + ln 4 / 2) / ln 4
    assert exposure_entropy([[2, 2], [3, 4]], catalogue_items=4) == pytest.approx(0.75)
    assert exposure_entropy([[2, 3], [4, 5]], catalogue_items=4) == pytest.approx(1.0)
    assert exposure_entropy([[2, 2]], catalogue_items=1) == 1.0
    assert math.isnan(exposure_entropy([[0, 0]], catalogue_items=4))


@given(lists=lists_of_items, extra=st.integers(0, 5))
def test_entropy_is_that_of_scipy(lists: np.ndarray, extra: int) -> None:
    shown = [int((lists == item).sum()) for item in range(1, ITEMS)] + [0] * extra
    if sum(shown):
        expected = scipy.stats.entropy(shown) / math.log(len(shown))
        assert exposure_entropy(lists, len(shown)) == pytest.approx(expected, abs=1e-12)


def test_distance_by_hand() -> None:
    # {4} {4 5}: 1/2; {4} {4 6}: 1/2; {4 5} {4 6}: 2/3
    assert intra_list_distance([[2, 3, 4]], GENRES).tolist() == pytest.approx([5 / 9])
    # nothing shared with an item that has none; one item and none at all
    assert intra_list_distance([[2, 5], [2, 0], [0, 0]], GENRES).tolist() == [1.0, 0.0, 0.0]


def test_nobody_has_a_category() -> None:
    nothing = ItemCategories.from_lists([[]] * 5)
    assert intra_list_distance([[2, 3], [4, 0]], nothing).tolist() == [1.0, 0.0]
    assert category_count([[2, 3]], nothing).tolist() == [0]


@given(lists=lists_of_items)
def test_distance_is_the_mean_over_pairs_of_sets(lists: np.ndarray) -> None:
    rows = [set(GENRES.values[a:b].tolist()) for a, b in zip(GENRES.offsets, GENRES.offsets[1:], strict=False)]
    expected = []
    for row in lists:
        pairs = list(combinations([rows[item] for item in row if item], 2))
        distances = [1 - len(a & b) / len(a | b) if a | b else 1.0 for a, b in pairs]
        expected.append(sum(distances) / len(pairs) if pairs else 0.0)
    assert intra_list_distance(lists, GENRES).tolist() == pytest.approx(expected)


def test_an_empty_slot_has_no_category_even_if_the_table_gives_padding_one() -> None:
    assert category_count([[0, 1]], ItemCategories.from_lists([[9], [3]])).tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: catalogue_coverage([[2, 3]], 1), "2 distinct items"),
        (lambda: catalogue_coverage([[2, 3]], 0), "catalogue_items=0"),
        (lambda: gini([2, 3], 4), r"\(2,\)"),
        (lambda: gini([[2.0, 3.0]], 4), "whole numbers"),
        (lambda: gini([[2, -3]], 4), "from 0"),
        (lambda: category_count([[2, 9]], GENRES), "item index 9"),
        (lambda: intra_list_distance([[2, 9]], GENRES), "item index 9"),
        (lambda: exposure_entropy([[2, 3]], 1), "2 distinct items"),
        (lambda: ItemCategories(np.array([0, 2]), np.array([5])), "from 0 to 1"),
        (lambda: ItemCategories(np.array([0, 2, 1]), np.array([5])), "must not decrease"),
        (lambda: ItemCategories.from_lists([[-1]]), "no vocabulary index"),
        (lambda: ItemCategories.from_lists([[2**31]]), "no vocabulary index"),
    ],
)
def test_wrong_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_embedding_distance_by_hand() -> None:
    e_VD = np.array([[9, 9], [9, 9], [2, 0], [0, 3], [5, 5], [0, 0], [-1, 0]], np.float32)
    half = 1 - math.sqrt(0.5)
    lists = [[2, 3, 0], [2, 4, 3], [2, 5, 0], [2, 6, 0], [4, 0, 0], [4, 4, 4]]
    expected = [1, (half + half + 1) / 3, 1, 2, 0, 0]
    assert embedding_distance(lists, e_VD).tolist() == pytest.approx(expected, abs=1e-6)


def test_embedding_distance_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    lists, e_VD = generator.integers(0, 9, (17, 4)), generator.standard_normal((9, 3)).astype(np.float32)
    whole = embedding_distance(lists, e_VD)
    monkeypatch.setattr(diversity, "_NUMBERS_AT_ONCE", 30)
    assert embedding_distance(lists, e_VD).tolist() == whole.tolist()
    for row, found in zip(lists, whole, strict=True):
        pairs = [(a, b) for a, b in combinations(row, 2) if a and b]
        cosines = [e_VD[a] @ e_VD[b] / np.linalg.norm(e_VD[a]) / np.linalg.norm(e_VD[b]) for a, b in pairs]
        assert found == pytest.approx(1 - sum(cosines) / len(pairs) if pairs else 0, abs=1e-5)
