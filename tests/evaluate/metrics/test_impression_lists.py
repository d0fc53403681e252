"""Expected values: every order of the ties, scikit-learn, and lists by hand."""

from __future__ import annotations

import math
from itertools import permutations

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, P, R, Success, nDCG

from evaluate.metrics.impression_lists import list_metrics
from infra.errors import UsageError

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-math.inf, 0.0, -0.0, 0.5, 2.0]), st.sampled_from("ab")), max_size=9
)


NAMES = ("hr", "ndcg", "mrr", "recall", "precision", "map")


def in_every_order(rows: list[tuple[int, float]], k: int) -> list[float]:
    """Each of NAMES at k, means over all orders that the scores allow."""
    relevant = sum(label for label, _ in rows)
    if not relevant:
        return [math.nan] * len(NAMES)
    ideal = sum(1 / math.log2(2 + i) for i in range(min(k, relevant)))
    found = []
    for order in permutations(rows):
        scores = [score for _, score in order]
        if scores == sorted(scores, reverse=True):
            first = [label for label, _ in order][:k]
            gain = sum(label / math.log2(2 + i) for i, label in enumerate(first)) / ideal
            down_to = [sum(first[: i + 1]) / (i + 1) for i in range(len(first))]
            found.append(
                [
                    float(any(first)),
                    gain,
                    1 / (1 + first.index(1)) if any(first) else 0.0,
                    sum(first) / relevant,
                    sum(first) / k,
                    sum(share for label, share in zip(first, down_to, strict=True) if label) / relevant,
                ]
            )
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


@given(rows=ROWS.filter(lambda rows: all(sum(r[2] == u for r in rows) <= 6 for u in "ab")), k=st.integers(1, 7))
def test_expected_over_the_orders_of_ties(rows: list[tuple[int, float, str]], k: int) -> None:
    names, found = list_metrics([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], [k], NAMES)
    assert names.tolist() == sorted({user for *_, user in rows})
    expected = [in_every_order([r[:2] for r in rows if r[2] == name], k) for name in names]
    for place, name in enumerate(NAMES):
        assert found[f"{name}_at_{k}"].tolist() == pytest.approx([row[place] for row in expected], nan_ok=True), name


@given(labels=st.lists(st.integers(0, 1), min_size=1, max_size=30).filter(any), k=st.integers(1, 40))
def test_agrees_with_ir_measures_without_ties(labels: list[int], k: int) -> None:
    qrels = [ir_measures.Qrel("u", f"d{i}", label) for i, label in enumerate(labels)]
    run = [ir_measures.ScoredDoc("u", f"d{i}", -float(i)) for i in range(len(labels))]
    measures = {"hr": Success @ k, "ndcg": nDCG @ k, "mrr": RR @ k, "recall": R @ k, "precision": P @ k, "map": AP @ k}
    reference = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    _, found = list_metrics(labels, [-float(i) for i in range(len(labels))], ["u"] * len(labels), [k], NAMES)
    for name, measure in measures.items():
        assert found[f"{name}_at_{k}"][0] == pytest.approx(reference[measure]), name


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
