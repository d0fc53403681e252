"""The second cross-entropy of `history_weight`: the target among itself and what its user has taken before."""

import math

import pytest
import torch

from tests.train.models.contract import CATALOGUE, PACKED, TRAINING, histories, seeded
from train.configs import ADRecConfig, GRU4RecConfig, SASRecConfig
from train.models import build_sequence
from train.protocol import SequenceBatch

TINY = {"width": 16, "max_length": 6, "history_weight": 2.0}
MODELS = [SASRecConfig(**TINY), ADRecConfig(**TINY), GRU4RecConfig(**TINY)]


def built(config):
    torch.manual_seed(0)
    return build_sequence(config, CATALOGUE).eval()


def term(batch: SequenceBatch, scores: dict[int, float]) -> float:
    """Of SASRec's `history_terms`, where item i scores scores[i] at every position, over the batch's targets."""
    model = built(MODELS[0])
    with torch.no_grad():
        model.items.weight.zero_()
        for item, score in scores.items():
            model.items.weight[item, 0] = score
    x_BLD = torch.zeros(*batch.items_BL.shape, 16)
    x_BLD[..., 0] = 1
    (found,) = model.history_terms(x_BLD, model.items(batch.items_BL), batch).values()
    assert (found.over, found.weight) == ("targets", 2.0)
    return found.sum.item()


def expected(own: float, *taken: float) -> float:
    return math.log(1 + sum(math.exp(score - own) for score in taken))


def test_by_hand():
    # 3 -> 4 after nothing but 3; 4 -> 5 after 3 and 4; of the second sequence 6 -> 3 after 6 alone.
    batch = SequenceBatch(torch.tensor([[3, 4, 6]]), torch.tensor([[4, 5, 3]]), torch.tensor([[0, 1, 0]]))
    scores = {3: 0.5, 4: -1.0, 5: 2.0, 6: 1.5}
    wanted = expected(-1.0, 0.5) + expected(2.0, 0.5, -1.0) + expected(0.5, 1.5)
    assert term(batch, scores) == pytest.approx(wanted)


def test_context_events_unknown_items_and_positions_without_a_target_do_not_count():
    # 4 is a context event (nobody was asked for it), 1 is unknown, and after 1 nothing is asked.
    items, targets = torch.tensor([[3, 4, 5, 1]]), torch.tensor([[0, 5, 1, 0]])
    batch = SequenceBatch(items, targets, torch.tensor([[0, 1, 2, 3]]))
    assert term(batch, {3: 0.5, 4: 9.0, 5: 1.0}) == pytest.approx(expected(1.0, 0.5))


def test_what_is_taken_again_costs_at_least_log_two():
    batch = SequenceBatch(torch.tensor([[3]]), torch.tensor([[3]]), torch.tensor([[0]]))
    assert term(batch, {3: 0.7}) == pytest.approx(math.log(2))


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.model)
class TestModels:
    def test_packing_changes_nothing(self, config):
        values = []
        for batch in (TRAINING, PACKED):
            model = built(config)
            if config.model == "adrec":
                model.noise_scale = 0.0
            values.append(model.loss(batch, seeded()).parts["history"])
        torch.testing.assert_close(*values)

    def test_it_is_left_out_without_weight(self, config):
        model = built(config.model_copy(update={"history_weight": 0.0}))
        assert "history" not in model.loss(TRAINING, seeded()).terms

    def test_it_teaches_not_to_repeat(self, config):
        """Two items by turns, so the last one is never next: the term grows its distance from what is."""
        torch.manual_seed(0)
        model = build_sequence(config, CATALOGUE)
        batch = SequenceBatch.left_padded(torch.tensor([[2, 3], [4, 5]]), torch.tensor([[3, 6], [5, 7]]))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            optimizer.zero_grad()
            model.loss(batch, seeded(step)).total.backward()
            optimizer.step()
        u_BRD = model.eval().user_vectors(histories([2, 3], [4, 5]), None, seeded())
        scores_BV = u_BRD[:, 0] @ model.item_table().T
        for user, (taken, following) in enumerate((((2, 3), 6), ((4, 5), 7))):
            assert scores_BV[user, following] > scores_BV[user, list(taken)].max() + 1
