"""DimeRec. B batch, L length, D width, K interests, T steps."""

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

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
from train.configs import DimeRecConfig
from train.diffusion.gaussian import draw_noise
from train.diffusion.geodesic import random_points
from train.diffusion.sphere import normalised
from train.models.dimerec import DimeRec
from train.ranking import user_vectors
from train.sampled_softmax import Proposal

SHAPE = {"width": 16, "max_length": 6, "steps": 8, "hidden": 32, "heads": 2, "signal": 1.0}


def dimerec(**changes) -> DimeRec:
    torch.manual_seed(0)
    return DimeRec(DimeRecConfig(**(SHAPE | changes)), CATALOGUE).eval()


class DimeRecTests(TrainedSequenceModelContract):
    changes: ClassVar[dict] = {}

    def build(self):
        return DimeRec(DimeRecConfig(**(SHAPE | self.changes)), CATALOGUE)

    def silent(self, model):
        model._noised = lambda x0, generator: (x0, torch.zeros(x0.shape[:-1], dtype=torch.int64))
        return model

    def table(self, model):
        return model.items.weight

    def test_an_untrained_loss_is_near_that_of_a_uniform_guess(self):
        """Where scores are cosines, at a temperature that makes them small."""
        model = self.fresh()
        if model.temperature:
            model.temperature = 10.0
        parts = model.loss(TRAINING, seeded()).parts
        for name in ("gem", "ssm"):
            assert parts[name].item() == pytest.approx(math.log(12), abs=0.3)

    @pytest.mark.parametrize("steps", [0, 1, 3, 8, None])
    def test_any_number_of_steps(self, steps):
        u = self.vectors(self.fresh(), histories([4, 5], []), steps)
        assert u.isfinite().all()
        if self.fresh().on_sphere:
            assert ((u.norm(dim=-1) - 1).abs() < 1e-5).all()

    def test_another_generator_gives_another_answer(self):
        model, batch = self.fresh(), histories([4, 5, 6])
        assert not torch.equal(self.vectors(model, batch, seed=1), self.vectors(model, batch, seed=2))

    def test_the_steps_by_hand(self):
        """Algorithm 2 with the whole of f at every step, guidance concatenated."""
        model, batch, generator = self.fresh(), histories([4, 5, 6], [7]), seeded(3)
        guidance = model.interests(model.items(batch.items_BL), batch, latest=True).g_BQKD[:, 0]
        like = torch.empty(2, 16)
        x = (random_points if model.on_sphere else draw_noise)(like, generator)
        for t in reversed(range(8)):
            joined = torch.cat([x, model.dam.steps.weight[t].expand(2, -1), guidance.flatten(1)], dim=1)
            x0_hat = model.dam.second(torch.nn.functional.silu(model.dam.first(joined)))
            steps = torch.full((2,), t)
            x = model.diffusion.reverse_step(x0_hat, x, steps, generator if t else None)
        torch.testing.assert_close(self.vectors(model, batch, seed=3)[:, 0], x.detach(), rtol=1e-4, atol=1e-5)


class Learning(DimeRecTests):
    def test_it_learns_a_cycle(self):
        """2 -> 3 -> ... -> 13 -> 2: after training the next item is (nearly) always first."""
        model, batch, generator = self.fresh(), cycle_batch(), seeded(3)
        values = train(model, lambda: model.loss(batch, generator), 300, lr=1e-2)
        assert values[-1] < 0.7 * values[0]
        assert found_in_cycle(model) >= 0.8


class TestAttention(Learning):
    changes: ClassVar = {"temperature": 0.1}


class TestAsInThePaper(DimeRecTests):
    """Scores without a temperature, attention by places."""

    changes: ClassVar = {"temperature": None, "recency": False}


class TestRouting(Learning):
    changes: ClassVar = {"gem": "routing", "temperature": 0.1}


class TestLatestItems(Learning):
    changes: ClassVar = {"gem": "latest", "temperature": 0.1}


class TestBehindATransformer(Learning):
    changes: ClassVar = {"blocks": 1, "temperature": 0.1}

    def test_stages(self):
        """First table and blocks, as of a SASRec; then everything."""
        model = dimerec(blocks=1, temperature=0.1, pretrain_share=0.4)
        first, second = model.stages()
        assert (first.share, second.share) == (0.4, 0.6)
        first.loss(TRAINING, seeded()).total.backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None}
        assert moved == {n for n, _ in model.named_parameters() if not n.startswith(first.frozen)}
        assert not second.frozen
        batch = shifted([2, 3, 6])
        c = model._history(model.items(batch.items_BL), batch)
        table = normalised(model.items.weight)
        terms = [cross_entropy(table, normalised(c[0, place]) / 0.1, target) for place, target in ((4, 3), (5, 6))]
        torch.testing.assert_close(model.pretrain_loss(batch, seeded()).total, sum(terms) / 2)


class TestGaussian(DimeRecTests):
    changes: ClassVar = {"process": "gaussian", "gem": "latest", "temperature": None}


class TestLiteral(Learning):
    changes: ClassVar = {"process": "literal", "gem": "latest", "temperature": 0.1}


def cross_entropy(table: torch.Tensor, u: torch.Tensor, target: int) -> torch.Tensor:
    return -(table[2:] @ u).log_softmax(0)[target - 2]


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_the_three_losses_by_hand(temperature):
    model = dimerec(temperature=temperature, recon_weight=0.3, ssm_weight=0.7, gem_weight=0.2)
    torch.nn.init.normal_(model.items.weight)
    batch = shifted([2, 3, 1, 5], [6, 7])
    x0 = normalised(model.items(batch.targets_BL))
    x_t, t = model._noised(x0, seeded(2))
    table = model.items.weight if temperature is None else normalised(model.items.weight)
    ask = (lambda u: u) if temperature is None else (lambda u: normalised(u) / temperature)
    scale = 4.0 if temperature is None else 1.0  # the root of the width
    gem, recon, ssm = [], [], []
    for b, place, history, target in ((0, 3, [2], 3), (0, 5, [2, 3, 1], 5), (1, 5, [6], 7)):  # not the unknown 1
        prefix = histories(history)
        g_KD = model.interests(model.items(prefix.items_BL), prefix, latest=True).g_BQKD[0, 0]
        best = max(g_KD, key=lambda g, target=target: (ask(g) @ table[target]).item())
        gem.append(cross_entropy(table, ask(best), target))
        x0_hat = model.dam(x_t[b, place], t[b, place], g_KD)
        recon.append((x0_hat - normalised(model.items.weight[target])).square().sum())
        ssm.append(cross_entropy(table, scale * ask(x0_hat), target))
    parts = model.loss(batch, seeded(2))
    for name, values in (("gem", gem), ("recon", recon), ("ssm", ssm)):
        torch.testing.assert_close(parts.parts[name], (sum(values) / 3).detach(), rtol=1e-4, atol=1e-5)
    total = (0.2 * sum(gem) + 0.3 * sum(recon) + 0.7 * sum(ssm)) / 3
    torch.testing.assert_close(parts.total, total, rtol=1e-4, atol=1e-5)


def test_a_term_without_weight_is_not_worked_out():
    assert set(dimerec(gem_weight=0).loss(TRAINING, seeded()).terms) == {"recon", "ssm"}
    assert set(dimerec(ssm_weight=0).loss(TRAINING, seeded()).terms) == {"recon", "gem"}
    with pytest.raises(ValidationError, match="nothing trains the denoiser"):
        dimerec(ssm_weight=0, recon_weight=0)


def test_the_candidates_are_on_the_sphere_where_scores_are_cosines():
    torch.testing.assert_close(dimerec(temperature=0.1).item_table().norm(dim=-1), torch.ones(CATALOGUE))
    plain = dimerec(temperature=None)
    assert torch.equal(plain.item_table(), plain.items.weight)


@pytest.mark.parametrize(
    "wrong", [{"blocks": 1, "heads": 3}, {"pretrain_share": 0.5}, {"width": 1}, {"temperature": 0}, {"interests": 0}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValidationError):
        DimeRecConfig(**(SHAPE | wrong))


def test_gaussian_vectors_are_cosines_too_where_scores_are():
    model = dimerec(process="gaussian", temperature=0.1)
    u = user_vectors(model, histories([4, 5]), None, seeded(), draws=3)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(1, 3))


def test_bfloat16_training_is_near_float32():
    model = dimerec(dropout=0.0, embedding_dropout=0.0)
    exact = model.loss(TRAINING, seeded()).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.train().loss(TRAINING, seeded()).total
    rough.backward()
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_as_many_negatives_as_items_are_the_whole_softmax():
    """In the limit, by cosines: what is drawn is normalised as the table is."""
    whole, drawn = dimerec(), dimerec(negatives=200_000)
    drawn.proposal = Proposal(torch.zeros(CATALOGUE))
    expected, found = (m.loss(TRAINING, seeded()).parts for m in (whole, drawn))
    for name in ("gem", "ssm"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=0.05)


def test_nobody_is_answered():
    nobody = histories([4])
    nobody = nobody.rows(torch.empty(0, dtype=torch.int64))
    assert dimerec().user_vectors(nobody, None, seeded()).shape == (0, 1, 16)


def test_users_go_through_the_steps_in_groups(monkeypatch):
    monkeypatch.setattr("train.models.dimerec._USERS_AT_ONCE", 2)
    model, batch = dimerec(temperature=0.1), histories([4], [5, 6], [7], [8], [9, 2, 3])
    u = model.user_vectors(batch, 0, seeded())
    monkeypatch.undo()
    torch.testing.assert_close(u, model.user_vectors(batch, 0, seeded()))


def test_several_draws_are_several_interests():
    model, batch = dimerec(temperature=0.1), histories([4, 5, 6], [7])
    u = user_vectors(model, batch, None, seeded(3), draws=5)
    assert u.shape == (2, 5, 16)
    assert len(u[0].unique(dim=0)) == 5
    assert torch.equal(u[:, :1], model.user_vectors(batch, None, seeded(3)))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.sampled_from(["attention", "routing", "latest"]), st.integers(0, 99))
def test_zero_rows_and_more_interests_than_events_are_finite(interests, guidance, seed):
    model = dimerec(interests=interests, gem=guidance, temperature=0.1)
    with torch.no_grad():
        model.items.weight[3:9] = 0
    model.train()
    total = model.loss(TRAINING, seeded(seed)).total
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.eval().user_vectors(histories([3], [], [4, 5]), None, seeded(seed)).isfinite().all()
