"""ComiRec. B batch, L length, D width, K interests."""

import math

import pytest
import torch

from tests.train.models.contract import (
    CATALOGUE,
    TRAINING,
    TrainedSequenceModelContract,
    cycle_batch,
    found_in_cycle,
    found_in_group,
    groups_batch,
    histories,
    seeded,
    shifted,
    train,
)
from train.configs import ComiRecConfig
from train.models.comirec import ComiRec
from train.ranking import top_k


def comirec(**settings) -> ComiRec:
    torch.manual_seed(0)
    shape = {"width": 16, "max_length": 6, "embedding_dropout": 0.1, "temperature": None}
    return ComiRec(ComiRecConfig(**(shape | settings)), CATALOGUE).eval()


class TestAttention(TrainedSequenceModelContract):
    vectors_per_user = 4

    def build(self):
        return comirec()

    def test_it_learns_which_items_go_together(self):
        """An interest is a mean of the history's own vectors, and scores are symmetric: it learns no direction."""
        model, batch = self.fresh(), groups_batch()
        train(model, lambda: model.loss(batch, seeded()), 100, lr=1e-2)
        assert found_in_group(model) >= 0.9


class TestRouting(TrainedSequenceModelContract):
    vectors_per_user = 4

    def build(self):
        return comirec(extraction="routing")

    def test_it_learns_a_cycle(self):
        """2 -> 3 -> ... -> 13 -> 2: after training the next item is always first."""
        model, batch = self.fresh(), cycle_batch()
        values = train(model, lambda: model.loss(batch, seeded()), 600, lr=1e-2)
        assert values[-1] < 0.5 * values[0]
        assert found_in_cycle(model) >= 0.9


class TestCosines(TestRouting):
    def build(self):
        return comirec(extraction="routing", temperature=0.1)

    def table(self, model):
        return model.items.weight

    def test_an_untrained_loss_is_near_that_of_a_uniform_guess(self):
        """At a temperature that makes cosines small."""
        model = self.fresh()
        model.temperature = 10.0
        assert model.loss(TRAINING, seeded()).parts["ce"].item() == pytest.approx(math.log(12), abs=0.2)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("extraction", ["attention", "routing"])
def test_the_loss_is_that_of_the_best_interest_by_hand(extraction, temperature):
    model = comirec(extraction=extraction, temperature=temperature)
    for parameter in model.extract.parameters():
        torch.nn.init.normal_(parameter)
    table, terms = model.items.weight, []
    if temperature is not None:
        table = table / table.norm(dim=1, keepdim=True)
        assert model.user_vectors(histories([2]), None, seeded()).norm(dim=-1).allclose(torch.tensor(2.0))
    for history, target in (([2, 3], 6), ([2], 3), ([5], 4)):
        interests = model.user_vectors(histories(history), None, seeded())[0]
        best = max(interests, key=lambda g, target=target: (table[target] @ g).item())
        terms.append(-(table[2:] @ best).log_softmax(0)[target - 2])
    total = model.loss(shifted([2, 3, 6], [5, 4]), seeded()).total
    assert total.item() == pytest.approx(sum(terms).item() / 3, rel=1e-5)


def test_several_interests_are_merged_by_the_highest_score():
    model = comirec()
    torch.nn.init.normal_(model.items.weight)
    u = model.user_vectors(histories([4, 7, 9]), None, seeded())
    items, scores = top_k(u, model.item_table(), 3)
    expected = (u[0] @ model.items.weight.T).amax(dim=0)
    expected[:2] = -torch.inf
    torch.testing.assert_close(scores[0], expected.sort(descending=True).values[:3].detach())
    assert items[0].tolist() == expected.argsort(descending=True)[:3].tolist()
