"""SASRec. B batch, L length, D width."""

import pytest
import torch

from tests.train.models.contract import (
    CATALOGUE,
    TRAINING,
    TrainedSequenceModelContract,
    cycle_batch,
    found_in_cycle,
    histories,
    seeded,
    shifted,
    train,
)
from train.configs import SASRecConfig
from train.models.sasrec import SASRec


class SASRecTests(TrainedSequenceModelContract):
    positions = True

    def build(self):
        config = SASRecConfig(width=16, blocks=2, heads=2, max_length=6, positions=self.positions)
        return SASRec(config, CATALOGUE)

    def test_later_events_change_no_earlier_summary(self):
        model = self.fresh()
        one, two = (
            model._encode(batch, model.items(batch.items_BL))
            for batch in (histories([2, 3, 4, 5], length=5), histories([2, 3, 9, 8], length=5))
        )
        torch.testing.assert_close(one[:, :3], two[:, :3], rtol=0, atol=0)
        assert (one[:, 3] - two[:, 3]).abs().max() > 1e-3

    def test_the_order_of_the_history_matters(self):
        model = self.fresh()
        u = self.vectors(model, histories([2, 3, 4, 5], [3, 2, 4, 5]))
        assert (u[0] - u[1]).abs().max() > 1e-4

    def test_it_learns_a_cycle(self):
        """2 -> 3 -> ... -> 13 -> 2: after training the next item is always first."""
        model = self.fresh()
        batch = cycle_batch()
        values = train(model, lambda: model.loss(batch, seeded()), 120)
        assert values[-1] < 0.5 * values[0]
        assert found_in_cycle(model) >= 0.9


class TestWithPositions(SASRecTests):
    def test_places_are_learned(self):
        model = self.fresh()
        assert model.places.weight.shape == (6, 16)


class TestWithoutPositions(SASRecTests):
    positions = False

    def test_there_are_none(self):
        assert not [name for name, _ in self.fresh().named_parameters() if name.startswith("places")]


def test_the_loss_is_the_cross_entropy_of_the_next_items_by_hand():
    torch.manual_seed(0)
    model = SASRec(SASRecConfig(width=8, blocks=1, heads=2, max_length=4), 7).eval()
    batch = shifted([2, 3, 6], [5, 4], length=4)
    terms = []
    for history, target in (([2], 3), ([2, 3], 6), ([5], 4)):
        u = model.user_vectors(histories(history, length=4), None, seeded())[0, 0]
        terms.append(-(model.items.weight[2:] @ u).log_softmax(0)[target - 2])
    assert model.loss(batch, seeded()).total.item() == pytest.approx(sum(terms).item() / 3, rel=1e-5)


class TestPretrained(SASRecTests):
    """The table from a stage of its own, under an encoder that is then left behind."""

    def build(self):
        return SASRec(SASRecConfig(width=16, blocks=2, heads=2, max_length=6, pretrain_share=0.25), CATALOGUE)

    def test_the_stages_in_order(self):
        pretrain, main = self.fresh().stages()
        assert (pretrain.name, pretrain.share, main.name, main.share) == ("pretrain", 0.25, "main", 0.75)
        assert pretrain.frozen == ("encoder.", "places.")
        assert main.frozen == ("pretrain_encoder.",)

    def test_the_first_stage_knows_no_places(self):
        model = self.fresh()
        before = model.pretrain_loss(TRAINING, seeded()).total
        torch.nn.init.ones_(model.places.weight)
        assert model.pretrain_loss(TRAINING, seeded()).total == before
        assert model.loss(TRAINING, seeded()).total != before
