"""Lists against a loop over users and items, written down as the definition reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluate.publish.candidates import Candidates
from evaluate.publish.lists import (
    ANYBODY,
    RANKING,
    SOURCES,
    Bucket,
    Catalogue,
    Lists,
    Models,
    audit,
    for_anybody,
    lists,
    rows,
)  # fmt: skip
from evaluate.settings import ScoringSettings
from infra.errors import AuditError
from infra.tables import Kind
from train.artifact import Loaded
from train.configs import SASRecConfig
from train.protocol import FieldSpec, RankingBatch, SequenceBatch
from train.ragged import Ragged

V = 12
SPECS = (
    FieldSpec("user", Kind.CATEGORICAL, size=9),
    FieldSpec("item", Kind.CATEGORICAL, size=V),
    FieldSpec("device", Kind.CATEGORICAL, size=5),
    FieldSpec("price", Kind.NUMERIC),
    FieldSpec("tags", Kind.MULTI, size=6),
    FieldSpec("history", Kind.MULTI, size=V),
)


class Last(nn.Module):
    """Likes the items after the last one it sees: vectors of whole numbers, so that sums are exact."""

    def __init__(self, catalogue: int, table: bool) -> None:
        super().__init__()
        self.catalogue, self.table = catalogue, table

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        last_B = batch.items_BL[:, -1]
        scores_BV = -((torch.arange(self.catalogue) - last_B[:, None]) % self.catalogue).float()
        return scores_BV[:, None]

    def item_table(self) -> Tensor | None:
        return torch.eye(self.catalogue) if self.table else None


class Cheap(nn.Module):
    """Likes what is cheap, whoever asks; nobody's price is NaN."""

    def logits(self, batch: RankingBatch) -> Tensor:
        return -batch.numeric_BG[:, 0] - 10.0 * batch.missing_BN[:, 3]


def loaded(model: nn.Module, catalogue: int | None, fields: tuple[FieldSpec, ...] = ()) -> Loaded:
    kind: Any = "sequence" if catalogue else "ranking"
    config = SASRecConfig(max_length=3)
    return Loaded(model.eval(), kind, config, catalogue, fields, None, "", {}, {}, {})


def ragged(lists_: list[list[int]]) -> Ragged:
    return Ragged.from_arrow(pa.chunked_array([pa.array(lists_, pa.list_(pa.int32()))]))


def bucket(histories: list[list[int]], taken: list[list[int]] | None = None) -> Bucket:
    users = pa.array([f"u{i}" for i in range(len(histories))], pa.string())
    return Bucket(users, ragged(histories), ragged(histories if taken is None else taken))


def catalogue(eligible: list[int], takers: dict[int, int] | None = None) -> Catalogue:
    eligible_V, takers_V = np.zeros(V, bool), np.zeros(V, np.int64)
    eligible_V[eligible] = True
    for item, count in (takers or {}).items():
        takers_V[item] = count
    return Catalogue.of(pa.array([f"i{n}" for n in range(2, V)]), eligible_V, takers_V)


def expected(
    last: int, seen: set[int], allowed: Catalogue, known: int, k: int, price: dict[int, float] | None, retrieve: int
) -> list[int]:
    """By the definition: candidates, their order, and the popular behind them."""
    able = [i for i in range(2, known) if allowed.eligible_V[i] and i not in seen]
    found = sorted(able, key=lambda i: ((i - (last if last < known else 1)) % known, i))[:retrieve]
    if price is not None:
        found = sorted(found, key=lambda i: (price.get(i, 10.0), i))
    found = found[:k]
    more = [int(i) for i in allowed.popular if i not in seen and i not in found]
    return [*found, *more][:k]


histories_ = st.lists(st.lists(st.integers(1, V - 1), min_size=1, max_size=6), min_size=1, max_size=7)


@given(
    histories=histories_, eligible=st.sets(st.integers(2, V - 1), min_size=1), known=st.integers(3, V),
    k=st.integers(1, 5), more=st.integers(0, 6), batch_size=st.integers(1, 4), keep=st.booleans(), table=st.booleans(),
    takers=st.dictionaries(st.integers(2, V - 1), st.integers(0, 3)), ranked=st.booleans(),
    price=st.dictionaries(st.integers(2, V - 1), st.integers(0, 3)),
)  # fmt: skip
def test_as_the_definition_reads(
    histories: list[list[int]], eligible: set[int], known: int, k: int, more: int, batch_size: int, keep: bool,
    table: bool, takers: dict[int, int], ranked: bool, price: dict[int, float],
) -> None:  # fmt: skip
    settings = ScoringSettings(retrieve=k + more, k=k, batch_size=batch_size, keep_seen=keep)
    allowed = catalogue(sorted(eligible), takers)
    pairs, ranking = None, None
    if ranked:
        items = {"f_item": pa.array(range(V), pa.int32()), "f_price": pa.array([price.get(i) for i in range(V)])}
        pairs = Candidates.of(SPECS, {"f_user": pa.array([2] * len(histories), pa.int32())}, items)
        ranking = loaded(Cheap(), None, SPECS)
    models = Models(loaded(Last(known, table), known), ranking, ("7", "3"))
    made = lists(models, allowed, bucket(histories), pairs, settings, number=0)
    for row, history in enumerate(histories):
        seen = set() if keep else set(history)
        want = expected(history[-1], seen, allowed, known, k, price if ranked else None, k + more)
        assert made.items_UK[row].tolist() == [*want, *[0] * (k - len(want))]
    assert made.items_UK.shape == (len(histories), k)


class TestWhatIsSeen:
    def test_context_events_are_shown_to_the_model_and_may_be_recommended(self) -> None:
        settings = ScoringSettings(retrieve=3, k=3)
        one = bucket([[4, 5]], taken=[[4, 0]])
        made = lists(
            Models(loaded(Last(V, True), V), None, ("1", None)), catalogue([4, 5, 6, 7]), one, None, settings, 0
        )
        assert made.items_UK.tolist() == [[5, 6, 7]]


class TestRows:
    def test_named_ranked_and_with_their_source(self) -> None:
        settings = ScoringSettings(retrieve=3, k=3)
        allowed = catalogue([3, 9, 11], {9: 2, 11: 5})
        models = Models(loaded(Last(5, True), 5), None, ("7", None))
        made = lists(models, allowed, bucket([[2], [9, 11, 3]]), None, settings, 0)
        table = rows(made, pa.array(["u0", "u1"]), allowed.keys, models.versions)
        assert table.to_pylist() == [
            {"user": "u0", "rank": 1, "item": "i3", "score": -1.0, "source": "retrieval", "model_version": "7"},
            {"user": "u0", "rank": 2, "item": "i11", "score": 5.0, "source": "popular", "model_version": None},
            {"user": "u0", "rank": 3, "item": "i9", "score": 2.0, "source": "popular", "model_version": None},
        ]  # and u1 has seen everything

    def test_nobody_is_an_empty_bucket(self) -> None:
        made = lists(
            Models(loaded(Last(V, True), V), None, ("1", None)), catalogue([3]), bucket([]), None, ScoringSettings(), 0
        )
        assert made.items_UK.shape == (0, 20)
        assert len(rows(made, pa.array([], pa.string()), catalogue([3]).keys, ("1", None))) == 0

    def test_for_whoever_has_no_list(self) -> None:
        allowed = catalogue([2, 3, 4], {2: 1, 3: 4, 4: 4, 5: 9})
        table = rows(for_anybody(allowed, 5), pa.array([ANYBODY]), allowed.keys, (None, None))
        assert table["item"].to_pylist() == ["i3", "i4", "i2"]
        assert set(table["source"].to_pylist()) == {"popular"}


class TestRanking:
    def test_probabilities_that_are_no_numbers_come_last_and_go(self) -> None:
        class Broken(nn.Module):
            def logits(self, batch: RankingBatch) -> Tensor:
                item_P = batch.categorical_BF[:, 1]
                return torch.where(item_P == 5, torch.nan, item_P.float())

        users = {"f_user": pa.array([2], pa.int32())}
        pairs = Candidates.of(SPECS, users, {"f_item": pa.array(range(V), pa.int32())})
        models = Models(loaded(Last(V, True), V), loaded(Broken(), None, SPECS), ("1", "2"))
        settings = ScoringSettings(retrieve=4, k=4)
        made = lists(models, catalogue([4, 5, 6, 7]), bucket([[3]]), pairs, settings, 0)
        assert made.items_UK.tolist() == [[7, 6, 4, 0]]
        assert made.score_UK[0, :3].tolist() == pytest.approx([1 / (1 + np.exp(-i)) for i in (7, 6, 4)])
        assert [SOURCES[s] for s in made.source_UK[0, :3]] == [RANKING] * 3


class TestCandidates:
    def test_fields_of_the_user_of_the_item_and_of_the_event(self) -> None:
        users = {"f_user": pa.array([2, 3], pa.int32()), "f_history": pa.array([[4, 5], None], pa.list_(pa.int32()))}
        tags = pa.array([None, None, [2], [3, 4], []], pa.list_(pa.int32()))
        items = {
            "f_item": pa.array(range(5), pa.int32()), "f_price": pa.array([None, None, 1.5, float("nan"), 3.0]),
            "f_tags": tags,
        }  # fmt: skip
        batch = Candidates.of(SPECS, users, items).batch(np.array([1, 0]), np.array([[2, 3], [4, 2]]))
        assert batch.categorical_BF.tolist() == [[3, 2, 0], [3, 3, 0], [2, 4, 0], [2, 2, 0]]
        assert batch.numeric_BG[:, 0].tolist() == [1.5, 0.0, 3.0, 1.5]
        assert batch.multi[0].tolist() == [[0, 2], [3, 4], [0, 0], [0, 2]]
        assert batch.multi[1].tolist() == [[0, 0], [0, 0], [4, 5], [4, 5]]
        missing = {name: batch.missing_BN[:, n].tolist() for n, name in enumerate(spec.name for spec in SPECS)}
        assert missing == {
            "user": [False] * 4, "item": [False] * 4, "device": [True] * 4, "price": [False, True, False, False],
            "tags": [False] * 4, "history": [True, True, False, False],
        }  # fmt: skip


class TestAudit:
    @pytest.mark.parametrize(
        ("items", "message"),
        [
            ([[3, 3]], "1 lists have an item twice, that of 'u0'"),
            ([[3, 6]], "an item that is not eligible"),
            ([[0, 3]], "a gap"),
            ([[4, 3]], "an item that was seen"),
        ],
    )
    def test_what_must_not_be_published(self, items: list[list[int]], message: str) -> None:
        made = Lists(np.array(items), np.zeros((1, 2)), np.zeros((1, 2), np.int8))
        settings = ScoringSettings(retrieve=2, k=2)
        with pytest.raises(AuditError, match=message):
            audit(made, catalogue([3, 4]), bucket([[5, 4]]), settings)
        audit(replace(made, items_UK=np.array([[3, 0]])), catalogue([3, 4]), bucket([[5, 4]]), settings)
