"""DreamRec. B batch, L length, D width, T steps."""

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
from train.configs import DreamRecConfig
from train.models.dreamrec import DreamRec

SHAPE = {"width": 16, "max_length": 6, "steps": 8}


def dreamrec(**settings) -> DreamRec:
    torch.manual_seed(0)
    return DreamRec(DreamRecConfig(**(SHAPE | settings)), CATALOGUE).eval()


class TestDreamRec(TrainedSequenceModelContract):
    def build(self):
        return DreamRec(DreamRecConfig(**SHAPE), CATALOGUE)

    def silent(self, model):
        model._noised = lambda x0, generator: (x0, torch.zeros(x0.shape[:-1], dtype=torch.int64))
        model.config = model.config.model_copy(update={"guidance_drop": 0.0})
        return model

    def test_an_untrained_loss_is_near_that_of_a_uniform_guess(self):
        """There is no cross-entropy: targets and prediction both have components of variance 1 or so."""
        assert 0.5 < self.fresh().loss(TRAINING, seeded()).parts["mse"].item() < 4

    @pytest.mark.parametrize("steps", [1, 3, 8, None])
    def test_any_number_of_steps(self, steps):
        assert self.vectors(self.fresh(), histories([4, 5]), steps).isfinite().all()

    def test_another_generator_gives_another_answer(self):
        model, batch = self.fresh(), histories([4, 5, 6])
        assert not torch.equal(self.vectors(model, batch, seed=1), self.vectors(model, batch, seed=2))


def test_the_loss_is_the_error_by_hand():
    model = dreamrec(guidance_drop=0.0)
    batch = shifted([2, 3, 1, 5], [6, 7])
    seed = seeded(2)
    torch.rand(batch.items_BL.numel(), generator=seed)  # who is dropped
    x_t, t = model._noised(model.items(batch.targets_BL), seed)
    c = model._encode(batch, model.items(batch.items_BL))
    errors = []
    for b, place, target in ((0, 3, 3), (0, 5, 5), (1, 5, 7)):  # the unknown target 1 is left out
        joined = torch.cat([x_t[b, place], c[b, place], model.time(t[b, place])])
        x0_hat = model.denoiser.weight @ joined + model.denoiser.bias
        errors.append((x0_hat - model.items.weight[target]).square().mean())
    torch.testing.assert_close(model.loss(batch, seeded(2)).total, sum(errors) / 3)


def test_the_error_pulls_the_target_vectors_too():
    model = dreamrec()
    model._denoise = lambda x_t, c, code: torch.zeros_like(c)
    model.loss(shifted([7, 5], length=2), seeded()).total.backward()
    torch.testing.assert_close(model.items.weight.grad[5], 2 * model.items.weight[5].detach() / 16)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_guidance_is_the_published_formula(guidance):
    """f~ = (1 + w) f(c) - w f(null); one step, so x_0 is f~ of the noise. w = 0 is no guidance."""
    model = dreamrec(guidance=guidance)
    batch = histories([4, 5, 6])
    c = model._encode(batch, model.items(batch.items_BL))[:, -1]
    x, code = torch.randn(1, 16, generator=seeded(3)), model.time(torch.tensor([7]))
    with_c, without = model._denoise(x, c, code), model._denoise(x, model.null[None], code)
    expected = (1 + guidance) * with_c - guidance * without
    torch.testing.assert_close(model.user_vectors(batch, 1, seeded(3))[:, 0], expected)
    if guidance == 0:
        torch.testing.assert_close(expected, with_c)


def test_a_user_without_a_history_has_the_null_condition():
    model = dreamrec()
    u = model.user_vectors(histories([]), 1, seeded(3))[:, 0]
    x = torch.randn(1, 16, generator=seeded(3))
    torch.testing.assert_close(u, model._denoise(x, model.null[None], model.time(torch.tensor([7]))))


def test_the_null_condition_takes_whole_sequences():
    model = dreamrec(guidance_drop=0.5)
    c = torch.zeros(2, 9, 16)
    seen = set()
    for seed in range(20):
        is_null = (model._dropped(c, PACKED, seeded(seed)) == model.null).all(dim=-1)
        assert len(set(is_null[0, :3].tolist())) == len(set(is_null[0, 3:].tolist())) == 1
        seen.add((is_null[0, 0].item(), is_null[0, 3].item(), is_null[1, 0].item()))
    assert len(seen) > 4
    assert torch.equal(dreamrec(guidance_drop=0.0)._dropped(c, PACKED, seeded()), c)


def test_the_null_vector_learns():
    model = dreamrec(guidance_drop=0.9)
    model.loss(TRAINING, seeded()).total.backward()
    assert model.null.grad.abs().max() > 0


def test_a_share_of_the_sequences_is_dropped():
    model = dreamrec(guidance_drop=0.1)
    batch = shifted(*[[2, 3]] * 4000, length=1)
    is_null = (model._dropped(torch.zeros(4000, 1, 16), batch, seeded()) == model.null).all(dim=-1)
    assert is_null.float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_vectors_start_from_the_size_of_the_noise():
    model = DreamRec(DreamRecConfig(), 500)
    assert model.items.weight[1:].std().item() == pytest.approx(1, abs=0.02)
    assert model.items.weight[0].abs().max() == 0


def test_it_learns_a_cycle():
    """2 -> 3 -> ... -> 13 -> 2: after training the next item is (nearly) always first."""
    model = dreamrec()
    batch = cycle_batch()
    generator = seeded(3)
    values = train(model, lambda: model.loss(batch, generator), 400)
    assert values[-1] < 0.5 * values[0]
    assert found_in_cycle(model) >= 0.8
