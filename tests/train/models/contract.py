"""What every model keeps, one contract per kind, inherited by one test class per model.

Shapes: B batch, L length, D width, R vectors per user, V catalogue rows, N feature fields.
"""

import math
from dataclasses import replace
from itertools import chain, permutations

import numpy as np
import pytest
import torch

from infra.tables import Kind
from train.field_model import FieldModel
from train.models.asymdiffrec import AsymDiffRec
from train.protocol import FieldSpec, RankingBatch, RankingModel, SequenceBatch, SequenceModel
from train.ragged import Ragged
from train.ranking import target_ranks, top_k
from train.ranking_configs import AsymDiffRecConfig, FieldShape
from train.settings import TrainingSettings
from train.stages import stages_of
from train.step import Stepper

CATALOGUE = 14


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ragged(*rows: list[int]) -> Ragged:
    """Training chunks, for models that are counted."""
    return Ragged(np.array([*chain(*rows)], np.int32), np.cumsum([0, *map(len, rows)]))


def histories(*rows: list[int], length: int = 6) -> SequenceBatch:
    """Left-padded histories for inference."""
    items = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    return SequenceBatch.left_padded(items)


def shifted(*rows: list[int], length: int = 6) -> SequenceBatch:
    """Left-padded training batch: every event but the last predicts the next."""
    items = torch.tensor([[0] * (length + 1 - len(row)) + row for row in rows])
    targets = torch.where(items[:, :-1] == 0, 0, items[:, 1:])
    return SequenceBatch.left_padded(items[:, :-1], targets)


TRAINING = shifted([2, 3, 4, 5, 6, 7, 8], [9, 10, 1, 12], [3, 5])


#: The same three sequences in two rows of nine: what follows what differs, what belongs together does not.
PACKED = SequenceBatch(
    torch.tensor([[9, 10, 1, 2, 3, 4, 5, 6, 7], [3, 0, 0, 0, 0, 0, 0, 0, 0]]),
    torch.tensor([[10, 0, 12, 3, 4, 5, 6, 7, 8], [5, 0, 0, 0, 0, 0, 0, 0, 0]]),
    torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0, 0, 0, 0]]),
)


CYCLE = list(range(2, CATALOGUE))
"""2 -> 3 -> ... -> 13 -> 2."""


def cycle_batch() -> SequenceBatch:
    """Pieces of the cycle, of 2 to 7 events, from every place."""
    return shifted(*[[CYCLE[(s + i) % 12] for i in range(2 + s % 6)] for s in range(12)])


def found_in_cycle(model) -> float:
    """The share of items after which the next one comes first."""
    with torch.no_grad():
        u = model.user_vectors(histories(*[[item] for item in CYCLE]), None, seeded(4))
        rank = target_ranks(u, model.item_table(), torch.tensor([*CYCLE[1:], 2]))
    return (rank == 1).float().mean().item()


def groups_batch() -> SequenceBatch:
    """Three groups of four items, each in every order."""
    return shifted(*[list(order) for first in (2, 6, 10) for order in permutations(range(first, first + 4))])


def found_in_group(model) -> float:
    """The share of items of the same group among the three that come first after an item, itself left out."""
    with torch.no_grad():
        u = model.user_vectors(histories(*[[item] for item in CYCLE]), None, seeded(4))
        found = top_k(u, model.item_table(), 3, torch.tensor(CYCLE)[:, None])[0]
    return ((found - 2) // 4 == (torch.tensor(CYCLE)[:, None] - 2) // 4).float().mean().item()


class SequenceModelContract:
    """Inherit and give `build()`: a fresh model over CATALOGUE rows that sees at most 6 events."""

    vectors_per_user = 1
    """R."""

    def build(self) -> SequenceModel:
        raise NotImplementedError

    def fresh(self) -> SequenceModel:
        torch.manual_seed(0)
        return self.build().eval()

    def vectors(self, model, batch, steps=None, seed=0):
        with torch.no_grad():
            return model.user_vectors(batch, steps, seeded(seed))

    def test_serves_the_protocol(self):
        assert isinstance(self.fresh(), SequenceModel)

    def test_shapes(self):
        model = self.fresh()
        table = model.item_table()
        u = self.vectors(model, histories([2, 3], [4, 5, 6]))
        assert table is None or table.shape[0] == CATALOGUE
        assert u.shape == (2, self.vectors_per_user, CATALOGUE if table is None else table.shape[1])

    def test_short_empty_and_columnless_histories_are_finite(self):
        model = self.fresh()
        assert self.vectors(model, histories([], [5], [1])).isfinite().all()
        empty = SequenceBatch.left_padded(torch.empty(2, 0, dtype=torch.int64))
        assert self.vectors(model, empty).isfinite().all()
        assert self.vectors(model, empty).shape[0] == 2

    def test_padding_changes_nothing(self):
        model = self.fresh()
        short = self.vectors(model, histories([4, 5, 6], length=3))
        padded = self.vectors(model, histories([4, 5, 6], length=6))
        torch.testing.assert_close(short, padded, rtol=1e-5, atol=1e-6)

    def test_only_the_latest_events_are_seen(self):
        model = self.fresh()
        long = self.vectors(model, histories([11, 12, 2, 3, 4, 5, 6, 7], length=8))
        cut = self.vectors(model, histories([2, 3, 4, 5, 6, 7]))
        torch.testing.assert_close(long, cut)

    def test_a_user_does_not_depend_on_the_others_in_the_batch(self):
        model = self.fresh()
        together = self.vectors(model, histories([4, 5, 6], [7, 8]))[:1]
        torch.testing.assert_close(together, self.vectors(model, histories([4, 5, 6], [2, 2]))[:1])

    def test_targets_in_the_batch_never_enter_the_answer(self):
        model = self.fresh()
        batch = histories([4, 5, 6], [7, 8])
        leaking = replace(batch, targets_BL=torch.full_like(batch.items_BL, 9))
        assert torch.equal(self.vectors(model, batch), self.vectors(model, leaking))

    def test_one_generator_one_answer(self):
        model = self.fresh()
        batch = histories([4, 5, 6], [7, 8])
        assert torch.equal(self.vectors(model, batch, seed=3), self.vectors(model, batch, seed=3))

    def test_it_survives_a_state_dict(self):
        model, other = self.fresh(), self.build().eval()
        other.load_state_dict(model.state_dict())
        batch = histories([4, 5, 6])
        assert torch.equal(self.vectors(model, batch), self.vectors(other, batch))


class TrainedSequenceModelContract(SequenceModelContract):
    """For models with a gradient."""

    def test_the_loss_is_finite_and_so_is_every_gradient(self):
        model = self.fresh().train()
        parts = model.loss(TRAINING, seeded())
        parts.total.backward()
        assert parts.total.isfinite()
        assert all(not value.requires_grad for value in parts.parts.values())
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)

    def test_one_generator_one_loss(self):
        model = self.fresh()
        assert model.loss(TRAINING, seeded(1)).total == model.loss(TRAINING, seeded(1)).total

    def table(self, model):
        """The parameter that holds the item vectors."""
        return model.item_table()

    def silent(self, model):
        """The model without the noise that depends on where in the batch a position stands."""
        return model

    def test_packing_changes_nothing(self):
        results = []
        for batch in (TRAINING, PACKED):
            model = self.silent(self.fresh())
            total = model.loss(batch, seeded()).total
            total.backward()
            results.append((total, self.table(model).grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)

    def test_what_follows_a_sequence_in_its_row_is_not_seen(self):
        model = self.silent(self.fresh())
        other = replace(PACKED, items_BL=torch.where(PACKED.place_BL > 3, 11, PACKED.items_BL))
        only_first = torch.tensor([[10, 0, 12, *[0] * 6], [0] * 9])
        losses = [model.loss(replace(b, targets_BL=only_first), seeded()).total for b in (PACKED, other)]
        assert losses[0] == losses[1]

    def test_a_batch_without_targets_costs_nothing(self):
        model = self.fresh()
        parts = model.loss(replace(TRAINING, targets_BL=torch.zeros_like(TRAINING.items_BL)), seeded())
        parts.total.backward()
        assert parts.total.item() == 0

    def test_an_untrained_loss_is_near_that_of_a_uniform_guess(self):
        ce = self.fresh().loss(TRAINING, seeded()).parts["ce"].item()
        assert ce == pytest.approx(math.log(CATALOGUE - 2), abs=0.3)

    def test_padding_rows_do_not_move(self):
        model = self.fresh().train()
        model.loss(TRAINING, seeded()).total.backward()
        assert self.table(model)[0].abs().max() == 0
        assert self.table(model).grad[0].abs().max() == 0


def train(model, losses, steps: int, lr: float = 3e-3) -> list[float]:
    """Minimise in a plain loop; the losses, step by step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    values = []
    for _ in range(steps):
        total = losses().total
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        values.append(total.item())
    model.eval()
    return values


FIELDS = (
    FieldSpec("user", Kind.CATEGORICAL, size=6),
    FieldSpec("age", Kind.NUMERIC, mean=30.0, std=10.0),
    FieldSpec("genres", Kind.MULTI, size=7),
    FieldSpec("item", Kind.CATEGORICAL, size=5),
)


def impressions(count: int = 8, seed: int = 0, missing: float = 0.2) -> RankingBatch:
    """Random impressions over FIELDS; label = (the item's index is even)."""
    g = seeded(seed)
    item = torch.randint(2, 5, (count,), generator=g)
    return RankingBatch(
        categorical_BF=torch.stack([torch.randint(1, 6, (count,), generator=g), item], dim=1),
        numeric_BG=30 + 10 * torch.randn(count, 1, generator=g),
        multi=(torch.randint(0, 7, (count, 3), generator=g),),
        missing_BN=torch.rand(count, 4, generator=g) < missing,
        label_B=(item % 2 == 0).float(),
    )


def served_loss(model: RankingModel, batch: RankingBatch) -> float:
    """Cross-entropy of what the model serves, whatever terms it was trained with."""
    with torch.no_grad():
        sign = 2 * batch.label_B - 1
        return torch.nn.functional.softplus(-sign * model.logits(batch)).mean().item()


class RankingModelContract:
    """Inherit and give `build()`: a fresh model over FIELDS."""

    def build(self) -> RankingModel:
        raise NotImplementedError

    def fresh(self) -> RankingModel:
        torch.manual_seed(0)
        return self.build().eval()

    def test_serves_the_protocol(self):
        assert isinstance(self.fresh(), RankingModel)

    def test_shapes_and_a_finite_loss_and_gradient_for_every_parameter(self):
        model = self.fresh().train()
        batch = impressions(64)
        assert model.logits(batch).shape == (64,)
        parts = model.loss(batch, seeded())
        parts.total.backward()
        assert parts.total.isfinite()
        assert all(not value.requires_grad for value in parts.parts.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_the_first_step_of_the_trainer(self):
        """Counting FLOPs puts hooks on every module, which not every way to call one allows."""
        model = self.fresh().train()
        settings = TrainingSettings(epochs=1, batch_size=8)
        stepper = Stepper(model, stages_of(model, 1)[0], {n for n, _ in model.named_parameters()}, settings, 1, {})
        assert stepper.rehearse(impressions(), seeded()) > 0

    def test_everything_missing_is_finite(self):
        model = self.fresh()
        batch = impressions()
        everything = batch.with_missing(torch.ones(8, 4, dtype=torch.bool))
        assert model.logits(everything).isfinite().all()
        assert model.loss(everything, seeded()).total.isfinite()

    def test_the_value_of_a_missing_field_means_nothing(self):
        model = self.fresh()
        batch = impressions(missing=0.0).with_missing(torch.ones(8, 4, dtype=torch.bool))
        other = impressions(seed=9, missing=0.0).with_missing(batch.missing_BN)
        assert torch.equal(model.logits(batch), model.logits(other))

    def test_wild_values_are_finite(self):
        batch = impressions(3, missing=0.0)
        numeric = torch.tensor([[math.nan], [math.inf], [3e38]])
        wild = RankingBatch(batch.categorical_BF * 1000, numeric, batch.multi, batch.missing_BN, batch.label_B)
        assert self.fresh().logits(wild).isfinite().all()

    def test_a_sample_does_not_depend_on_the_others_in_the_batch(self):
        model = self.fresh()
        b = impressions()
        one = RankingBatch(b.categorical_BF[:1], b.numeric_BG[:1], (b.multi[0][:1],), b.missing_BN[:1], b.label_B[:1])
        torch.testing.assert_close(model.logits(b)[:1], model.logits(one))

    def test_one_generator_one_loss(self):
        model = self.fresh()
        batch = impressions()
        assert model.loss(batch, seeded(1)).total == model.loss(batch, seeded(1)).total

    def test_it_learns_a_simple_rule(self):
        model, unseen = self.fresh(), impressions(256, seed=1, missing=0.0)
        before = served_loss(model, unseen)
        batch, generator = impressions(256, missing=0.0), seeded(5)
        train(model, lambda: model.loss(batch, generator), 150, lr=1e-2)
        assert served_loss(model, unseen) < 0.3 * before
        with torch.no_grad():
            right = (model.logits(unseen) > 0) == (unseen.label_B == 1)
        assert right.float().mean() > 0.97

    def test_it_survives_a_state_dict(self):
        model, other = self.fresh(), self.build().eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(model.logits(impressions()), other.logits(impressions()))


class FieldModelContract(RankingModelContract):
    """Of f(h(x)) over feature fields: give `config`, and `width` of h(x) with it; `model` is the class."""

    config: FieldShape
    model: type[FieldModel]
    width: int
    fields = FIELDS

    def build(self) -> FieldModel:
        return self.model(self.config, self.fields)

    def test_it_is_a_head_on_an_encoding(self):
        model, batch = self.fresh(), impressions()
        z = model.encode(batch)
        assert z.shape == (8, model.width) == (8, self.width)
        assert torch.equal(model.head(z), model.logits(batch))

    def test_the_loss_is_the_binary_cross_entropy(self):
        model, batch = self.fresh(), impressions()
        p = model.logits(batch).sigmoid()
        by_hand = -(batch.label_B * p.log() + (1 - batch.label_B) * (1 - p).log()).mean()
        assert model.loss(batch, seeded()).total.item() == pytest.approx(by_hand.item(), rel=1e-5)

    @pytest.mark.parametrize("place", range(4))
    def test_a_missing_field_changes_the_answer(self, place):
        model, batch = self.fresh(), impressions(missing=0.0)
        gone = batch.missing_BN.clone()
        gone[:, place] = True
        assert not torch.equal(model.logits(batch), model.logits(batch.with_missing(gone)))

    def test_it_can_be_wrapped(self):
        wrapped = AsymDiffRec(AsymDiffRecConfig(base=self.config, hidden=12), self.fields)
        assert type(wrapped.base) is self.model
        assert wrapped.reverse[2].out_features == self.width
        assert wrapped.loss(impressions(), seeded()).total.isfinite()
