"""GRU4Rec. B batch, L length, D width, H state."""

import pytest
import torch

from tests.train.models.contract import (
    CATALOGUE,
    PACKED,
    TRAINING,
    TrainedSequenceModelContract,
    cycle_batch,
    found_in_cycle,
    histories,
    seeded,
    shifted,
    train,
)
from train.configs import GRU4RecConfig
from train.models.gru4rec import GRU4Rec, by_place


class GRU4RecTests(TrainedSequenceModelContract):
    hidden, layers = 16, 1

    def build(self):
        config = GRU4RecConfig(width=16, hidden=self.hidden, layers=self.layers, max_length=6, dropout=0.1)
        return GRU4Rec(config, CATALOGUE)

    def test_each_sequence_is_run_alone(self):
        """Against torch's GRU on one sequence at a time."""
        model = self.fresh()
        c = model._encode(PACKED)
        for row, places in ((0, range(3)), (0, range(3, 9)), (1, range(1))):
            alone, _ = model.gru(model.items(PACKED.items_BL[row, places])[:, None])
            torch.testing.assert_close(c[row, places], model.out(alone[:, 0]), rtol=1e-5, atol=1e-6)

    def test_padding_costs_no_step(self):
        for batch in (TRAINING, PACKED):
            _, sizes = by_place(batch)
            assert sizes.tolist() == [3, 2, 2, 1, 1, 1]

    def test_nothing_but_padding(self):
        model = self.fresh()
        assert torch.equal(model._encode(histories([]))[0, -1], model.out(torch.zeros(self.hidden)))

    def test_the_order_of_the_history_matters(self):
        u = self.vectors(self.fresh(), histories([2, 3, 4, 5], [3, 2, 4, 5]))
        assert (u[0] - u[1]).abs().max() > 1e-4

    def test_it_learns_a_cycle(self):
        """2 -> 3 -> ... -> 13 -> 2: after training the next item is always first."""
        model = self.fresh()
        batch = cycle_batch()
        values = train(model, lambda: model.loss(batch, seeded()), 150, lr=1e-2)
        assert values[-1] < 0.5 * values[0]
        assert found_in_cycle(model) >= 0.9


class TestOneLayer(GRU4RecTests):
    def test_a_state_as_wide_as_an_item_needs_no_layer_behind_it(self):
        assert not [name for name, _ in self.fresh().named_parameters() if name.startswith("out")]


class TestTwoWideLayers(GRU4RecTests):
    hidden, layers = 24, 2


def test_the_loss_is_the_cross_entropy_of_the_next_items_by_hand():
    torch.manual_seed(0)
    model = GRU4Rec(GRU4RecConfig(width=8, hidden=5, max_length=4), 7).eval()
    batch = shifted([2, 3, 6], [5, 4], length=4)
    terms = []
    for history, target in (([2], 3), ([2, 3], 6), ([5], 4)):
        u = model.user_vectors(histories(history, length=4), None, seeded())[0, 0]
        terms.append(-(model.items.weight[2:] @ u).log_softmax(0)[target - 2])
    assert model.loss(batch, seeded()).total.item() == pytest.approx(sum(terms).item() / 3, rel=1e-5)
