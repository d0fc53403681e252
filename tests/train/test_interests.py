"""Several interests of a history. B batch, L length, Q queries, D width, K interests."""

import math
from dataclasses import replace

import pytest
import torch

from tests.train.models.contract import PACKED, TRAINING, histories, seeded
from train.interests import ROUNDS, History, Interests, LatestItems, RoutedInterests, SelfAttentiveInterests, squash
from train.protocol import SequenceBatch

D, K = 8, 3
WAYS = {
    "attention": lambda k=K: SelfAttentiveInterests(D, k, 9, recency=True),
    "attention by place": lambda k=K: SelfAttentiveInterests(D, k, 9, recency=False),
    "routing": lambda k=K: RoutedInterests(D, k, 9, shared=False),
    "shared routing": lambda k=K: RoutedInterests(D, k, 9, shared=True),
    "adaptive routing": lambda k=K: RoutedInterests(D, k, 9, shared=True, adaptive=True),
    "latest": lambda k=K: LatestItems(k),
}


def made(way: str, k: int = K) -> torch.nn.Module:
    torch.manual_seed(0)
    module = WAYS[way](k)
    for parameter in module.parameters():  # far from uniform weights
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def vectors(batch: SequenceBatch) -> torch.Tensor:
    """h_BLD: the same item has the same vector, padding 0."""
    table = torch.randn(14, D, generator=seeded(1))
    table[0] = 0
    return table[batch.items_BL]


def of(module, batch: SequenceBatch, latest: bool = False) -> Interests:
    return module(History.of(vectors(batch), batch, latest))


@pytest.mark.parametrize("way", WAYS)
class TestEveryWay:
    def test_a_position_sees_what_an_inference_on_its_prefix_sees(self, way):
        module = made(way)
        found = of(module, PACKED)
        for row, start, end in ((0, 0, 3), (0, 3, 9), (1, 0, 1)):
            for place in range(start, end):
                prefix = histories(PACKED.items_BL[row, start : place + 1].tolist(), length=9)
                alone = of(module, prefix, latest=True).g_BQKD[0, 0]
                torch.testing.assert_close(found.g_BQKD[row, place], alone, rtol=1e-5, atol=1e-6)

    def test_padding_changes_nothing(self, way):
        module = made(way)
        short, long = (of(module, histories([4, 5, 6], length=n), latest=True).g_BQKD for n in (3, 9))
        torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)

    def test_without_a_history_all_are_zero(self, way):
        found = of(made(way), histories([]), latest=True)
        assert torch.equal(found.filled(), torch.zeros(1, 1, K, D))

    @pytest.mark.parametrize("k", [1, 12])
    def test_more_interests_than_events_are_finite(self, way, k):
        module = made(way, k)
        found = of(module, PACKED)
        found.filled().sum().backward() if list(module.parameters()) else None
        assert found.g_BQKD.shape == (2, 9, k, D)
        assert found.filled().isfinite().all()
        assert found.matching(torch.randn(2, 9, D)).isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())

    def test_what_comes_later_is_not_seen(self, way):
        module, other = made(way), replace(TRAINING, items_BL=TRAINING.items_BL.clone())
        other.items_BL[:, -1] = 11
        one, two = of(module, TRAINING).g_BQKD, of(module, other).g_BQKD
        assert torch.equal(one[:, :-1], two[:, :-1])
        assert not torch.equal(one[:, -1], two[:, -1])


@pytest.mark.parametrize("way", ["attention", "attention by place"])
def test_attention_by_hand(way):
    module, batch = made(way), histories([4, 7, 9], length=3)
    h_LD = vectors(batch)[0]
    first, _, second = module.score
    score_LK = torch.tanh((h_LD + module.places.weight[:3]) @ first.weight.T) @ second.weight.T
    if module.recency_KL is not None:
        score_LK = score_LK + module.recency_KL[:, [2, 1, 0]].T
    expected = [sum(score_LK[:, k].softmax(0)[i] * h_LD[i] for i in range(3)) for k in range(K)]
    torch.testing.assert_close(of(module, batch, latest=True).g_BQKD[0, 0], torch.stack(expected))


def test_interests_begin_at_scales_from_the_latest_event_to_dozens():
    module, batch = SelfAttentiveInterests(D, 4, 60, recency=True), histories([2, 3, 4] * 6, length=18)
    torch.nn.init.zeros_(module.score[2].weight)
    h_LD, back_L = vectors(batch)[0], torch.arange(17.0, -1, -1)
    expected = [(-slope * back_L).softmax(0) @ h_LD for slope in (4, 1, 1 / 4, 1 / 16)]
    torch.testing.assert_close(of(module, batch, latest=True).g_BQKD[0, 0], torch.stack(expected))


@pytest.mark.parametrize("way", ["routing", "shared routing"])
def test_routing_by_hand(way):
    """Event by event, as the box of the paper has it."""
    module, events = made(way), [4, 7, 9]
    batch = histories(events, length=3)
    h_LD, maps = vectors(batch)[0], module.bilinear.weight.view(-1, D, D)
    low = [[(maps[k if len(maps) > 1 else 0] @ h_LD[i]) for i in range(3)] for k in range(K)]
    logit = [[module.first_LK[i, k] for i in range(3)] for k in range(K)]
    for _ in range(ROUNDS):
        capsules = []
        for k in range(K):
            weights = [torch.stack([logit[j][i] for j in range(K)]).softmax(0)[k] for i in range(3)]
            z = sum(weights[i] * low[k][i] for i in range(3))
            capsules.append(z.norm() ** 2 / (1 + z.norm() ** 2) * z / z.norm())
        logit = [[logit[k][i] + low[k][i] @ capsules[k] for i in range(3)] for k in range(K)]
    found = of(module, batch, latest=True).g_BQKD[0, 0]
    torch.testing.assert_close(found, torch.stack(capsules).detach(), rtol=1e-4, atol=1e-5)


def test_adaptive_routing_is_that_of_fewer_interests():
    """Of 4 to 7 events there are two, and nothing of an event goes to a third."""
    whole, two = made("adaptive routing"), RoutedInterests(D, 2, 9, shared=True)
    two.load_state_dict({"bilinear.weight": whole.bilinear.weight, "first_LK": whole.first_LK[:, :2]})
    batch = histories([4, 7, 9, 2, 3], length=5)
    found = of(whole, batch, latest=True)
    torch.testing.assert_close(found.g_BQKD[:, :, :2], of(two, batch, latest=True).g_BQKD)
    assert found.g_BQKD[0, 0, 2].tolist() == [0.0] * D
    assert found.real_BQK.tolist() == [[[True, True, False]]]


def test_shared_routing_tells_interests_apart_by_its_first_logits():
    found = of(made("shared routing"), PACKED).g_BQKD
    assert (found[0, 8, 0] - found[0, 8, 1]).abs().max() > 1e-3
    module = made("shared routing")
    assert torch.equal(module.state_dict()["first_LK"], made("shared routing").first_LK), "it is part of the weights"


def test_the_latest_items_are_the_last_of_the_sequence_itself():
    found = of(LatestItems(3), PACKED)
    h = vectors(PACKED)
    assert torch.equal(found.g_BQKD[0, 4], torch.stack([h[0, 4], h[0, 3], torch.zeros(D)]))
    assert found.real_BQK[0, 4].tolist() == [True, True, False]
    assert torch.equal(found.filled()[0, 4, 2], h[0, 4])


def test_matching_takes_the_highest_inner_product_of_those_that_are_there():
    g = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]]])
    target = torch.tensor([[[-1.0, -3.0]]])
    assert Interests(g).matching(target).tolist() == [[[0.0, 0.0]]]
    there = torch.tensor([[[True, True, False]]])
    assert Interests(g, there).matching(target).tolist() == [[[1.0, 0.0]]]
    assert Interests(g, there).matching(-target).tolist() == [[[0.0, 2.0]]]


def test_the_choice_of_the_matching_interest_has_no_gradient_but_it_has():
    g = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]], requires_grad=True)
    e = torch.tensor([[[1.0, 1.0]]], requires_grad=True)
    Interests(g).matching(e).sum().backward()
    assert g.grad.tolist() == [[[[0.0, 0.0], [1.0, 1.0]]]]
    assert e.grad is None


def test_attended_interests_are_a_weighted_mean_and_in_the_limit_the_best():
    g, e = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]]), torch.tensor([[[0.5, 0.0]]])
    weight = math.exp(2 * 0.5) / (math.exp(2 * 0.5) + 1)
    assert Interests(g).attended(e, 2.0)[0, 0].tolist() == pytest.approx([weight, 2 * (1 - weight)])
    torch.testing.assert_close(Interests(g).attended(e, 1000.0), Interests(g).matching(e))


def test_squash_keeps_the_direction_and_its_gradient_is_finite_at_zero():
    x = torch.tensor([[0.0, 0.0], [30.0, 40.0]], requires_grad=True)
    y = squash(x)
    y.sum().backward()
    assert y[1].norm().item() == pytest.approx(2500 / 2501)
    assert x.grad.isfinite().all()
