"""MIND. B batch, L length, D width, K interests."""

import pytest
import torch

from tests.train.models.contract import (
    CATALOGUE,
    TrainedSequenceModelContract,
    found_in_group,
    groups_batch,
    histories,
    seeded,
    shifted,
    train,
)
from train.configs import MINDConfig
from train.models.mind import MIND


def mind(**settings) -> MIND:
    torch.manual_seed(0)
    shape = {"width": 16, "max_length": 6, "embedding_dropout": 0.1, "temperature": None}
    return MIND(MINDConfig(**(shape | settings)), CATALOGUE).eval()


class TestBestInterest(TrainedSequenceModelContract):
    vectors_per_user = 4

    def build(self):
        return mind()

    def test_it_learns_which_items_go_together(self):
        """Routing leaves it what is in a history, not the order: three groups of items, every order of each."""
        model, batch = self.fresh(), groups_batch()
        train(model, lambda: model.loss(batch, seeded()), 300, lr=1e-2)
        assert found_in_group(model) >= 0.9


class TestAttendedInterests(TestBestInterest):
    def build(self):
        return mind(sharpness=1.0)


def test_there_are_as_many_interests_as_the_logarithm_of_the_events():
    model = mind(interests=4, max_length=40)
    for events, interests in ((1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (15, 3), (16, 4), (40, 4)):
        history = [2 + i % 12 for i in range(events)]
        found = model.interests(model.items(torch.tensor([history])), histories(history, length=events), latest=True)
        assert found.real_BQK.sum().item() == interests
        u = model.user_vectors(histories(history, length=events), None, seeded())[0]
        assert len(u.unique(dim=0)) == interests
    assert mind(adaptive=False).interests(torch.zeros(1, 6, 16), histories([4])).real_BQK is None


@pytest.mark.parametrize("sharpness", [None, 0.5])
def test_the_loss_by_hand(sharpness):
    model = mind(sharpness=sharpness)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    table, terms = model.items.weight, []
    for history, target in (([2, 3, 6, 4], 6), ([2, 3, 6], 4), ([2, 3], 6), ([2], 3)):
        count = 2 if len(history) == 4 else 1
        g_KD = model.user_vectors(histories(history), None, seeded())[0, :count]
        score_K = g_KD @ table[target]
        weight_K = torch.eye(count)[score_K.argmax()] if sharpness is None else (sharpness * score_K).softmax(0)
        terms.append(-(table[2:] @ (weight_K @ g_KD)).log_softmax(0)[target - 2])
    total = model.loss(shifted([2, 3, 6, 4, 6]), seeded()).total
    assert total.item() == pytest.approx(sum(terms).item() / 4, rel=1e-4)
