"""Expected values: counting pairs one by one, scikit-learn, and tables by hand."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.binary import auc, auc_by_user, log_loss, uauc, user_auc
from infra.errors import UsageError

# Few distinct scores, so that ties are common; infinities are scores too.
SCORES = st.sampled_from([-math.inf, -1.5, -0.0, 0.0, 0.25, 3.0, math.inf])
ROWS = st.lists(st.tuples(st.integers(0, 1), SCORES, st.sampled_from("abcd")), max_size=30)


def by_pairs(rows: list[tuple]) -> float:
    positives = [score for label, score, _ in rows if label == 1]
    negatives = [score for label, score, _ in rows if label == 0]
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positives, negatives)]
    return sum(wins) / len(wins) if wins else math.nan


def columns(rows: list[tuple]) -> tuple[list, list, list]:
    return [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]


@given(rows=ROWS)
def test_auc_counts_every_pair(rows: list[tuple]) -> None:
    labels, scores, _ = columns(rows)
    assert auc(labels, scores) == pytest.approx(by_pairs(rows), nan_ok=True, abs=1e-15)


@given(rows=ROWS)
def test_user_auc_counts_every_pair_of_each_user(rows: list[tuple]) -> None:
    names, values = user_auc(*columns(rows))
    assert names.tolist() == sorted({user for _, _, user in rows})
    expected = [by_pairs([row for row in rows if row[2] == name]) for name in names]
    assert values.tolist() == pytest.approx(expected, nan_ok=True, abs=1e-15)
    counted = [value for value in expected if not math.isnan(value)]
    value, users = uauc(*columns(rows))
    assert users == len(counted)
    assert value == pytest.approx(sum(counted) / len(counted) if counted else math.nan, nan_ok=True)


def test_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 4000)
    probabilities = np.round(generator.random(4000) * 0.6 + 0.4 * labels * generator.random(4000), 3)
    assert len(np.unique(probabilities)) < 1000  # there are ties
    assert auc(labels, probabilities) == pytest.approx(metrics.roc_auc_score(labels, probabilities), abs=1e-12)
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    assert log_loss(labels, probabilities) == pytest.approx(metrics.log_loss(labels, clipped), abs=1e-12)


def test_uauc_weighs_users_alike_and_leaves_one_class_users_out() -> None:
    # a: 3 of 4 pairs right; b: its one pair is a tie; c and d have one class only.
    labels = [1, 1, 0, 0, 1, 0, 1, 1, 0]
    scores = [0.9, 0.4, 0.5, 0.1, 0.3, 0.3, 0.2, 0.8, 0.9]
    users = ["a", "a", "a", "a", "b", "b", "c", "c", "d"]
    names, values = user_auc(labels, scores, users)
    assert names.tolist() == ["a", "b", "c", "d"]
    assert values.tolist() == pytest.approx([0.75, 0.5, math.nan, math.nan], nan_ok=True)
    assert uauc(labels, scores, users) == (0.625, 2)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], []])
def test_one_class_has_no_auc(labels: list[int]) -> None:
    scores = [0.5] * len(labels)
    assert math.isnan(auc(labels, scores))
    value, users = uauc(labels, scores, ["a"] * len(labels))
    assert math.isnan(value)
    assert users == 0


def test_log_loss_by_hand() -> None:
    # -(ln 0.8 + ln 0.75) / 2
    assert log_loss([1, 0], [0.8, 0.25]) == pytest.approx((0.2231435513 + 0.2876820724) / 2)
    # certain and wrong: -ln 1e-7 = 16.118...; also in float32, where 1 - 1e-7 is not a number of its own
    assert log_loss([1], [0.0]) == pytest.approx(16.11809565)
    assert log_loss([0], np.array([1.0], dtype=np.float32)) == pytest.approx(16.11809565)
    assert math.isnan(log_loss([], []))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([1, 0, 1], [math.nan, 0.5, math.nan]), "scores: 2 of 3 are NaN"),
        (lambda: uauc([1, 0], [math.nan, 0.5], ["a", "a"]), "scores: 1 of 2 are NaN"),
        (lambda: log_loss([1, 0], [math.nan, 0.5]), "probabilities: 1 of 2 are NaN"),
        (lambda: log_loss([1, 0], [2.5, 0.5]), "1 of 2 outside"),
        (lambda: auc([1, 2], [0.1, 0.2]), "labels: 1 of 2"),
        (lambda: auc([[1, 0]], [[0.1, 0.2]]), r"labels.*\(1, 2\)"),
        (lambda: auc([1, 0], [0.1]), r"scores.*2 labels"),
        (lambda: uauc([1, 0], [0.1, 0.2], ["a"]), r"users.*2 labels"),
    ],
)
def test_wrong_input_is_refused_by_name(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


class TestAucByUser:
    @given(rows=ROWS)
    def test_the_mean_is_the_auc(self, rows: list[tuple]) -> None:
        names, values = auc_by_user(*columns(rows))
        assert names.tolist() == sorted({user for _, _, user in rows})
        expected = by_pairs(rows)
        if rows:
            assert np.mean(values) == pytest.approx(expected, nan_ok=True)
        assert np.isnan(values).all() == (not rows or math.isnan(expected))

    def test_the_deviation_is_that_of_drawing_users(self) -> None:
        rng = np.random.default_rng(5)
        users = np.repeat(np.arange(200), rng.integers(1, 30, 200))
        taste = rng.normal(size=200)[users]  # makes rows of one user alike
        scores = np.round(taste + rng.normal(size=len(users)), 1)
        labels = (taste + scores + rng.normal(size=len(users)) > 0.5).astype(int)
        _, values = auc_by_user(labels, scores, users)
        rows_of = [np.flatnonzero(users == u) for u in range(200)]
        drawn = []
        for _ in range(400):
            rows = np.concatenate([rows_of[u] for u in rng.integers(0, 200, 200)])
            drawn.append(auc(labels[rows], scores[rows]))
        assert values.std(ddof=1) / math.sqrt(200) == pytest.approx(np.std(drawn), rel=0.15)

    def test_rows_that_are_users_give_the_variance_of_delong(self) -> None:
        """By the textbook: S10 / P + S01 / N of the components of two classes."""
        rng = np.random.default_rng(6)
        labels, scores = rng.integers(0, 2, 60), np.round(rng.random(60), 1)
        positive, negative = scores[labels == 1], scores[labels == 0]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
        by_hand = v10.var() / len(v10) + v01.var() / len(v01)
        _, values = auc_by_user(labels, scores, np.arange(60))
        assert values.var() / 60 == pytest.approx(by_hand)
