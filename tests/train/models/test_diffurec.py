"""DiffuRec. B batch, L length, D width, T steps."""

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
from train.configs import DiffuRecConfig
from train.models.diffurec import DiffuRec, both_ways

SHAPE = {"width": 16, "blocks": 2, "heads": 2, "max_length": 6, "steps": 8, "prefixes": 0}


def diffurec(**settings) -> DiffuRec:
    torch.manual_seed(0)
    return DiffuRec(DiffuRecConfig(**(SHAPE | settings)), CATALOGUE).eval()


def without_noise(model: DiffuRec) -> DiffuRec:
    model.config = model.config.model_copy(update={"noise_scale": 0.0})
    return model


class DiffuRecTests(TrainedSequenceModelContract):
    settings: dict = {}  # noqa: RUF012

    def build(self):
        return DiffuRec(DiffuRecConfig(**(SHAPE | self.settings)), CATALOGUE)

    def silent(self, model):
        return without_noise(model)

    @pytest.mark.parametrize("steps", [1, 3, 8, None])
    def test_any_number_of_steps(self, steps):
        assert self.vectors(self.fresh(), histories([4, 5]), steps).isfinite().all()


class TestDiffuRec(DiffuRecTests):
    pass


class TestStrongNoise(DiffuRecTests):
    settings = {"noise_scale": 0.5, "schedule": "cosine"}  # noqa: RUF012

    def test_another_generator_gives_another_answer(self):
        model, batch = self.fresh(), histories([4, 5, 6])
        assert not torch.equal(self.vectors(model, batch, seed=1), self.vectors(model, batch, seed=2))


class TestDrawnPrefixes(DiffuRecTests):
    settings = {"prefixes": 1}  # noqa: RUF012

    # Packing changes which targets the same numbers draw; that all are right is test_prefixes's to say.
    test_packing_changes_nothing = None
    test_what_follows_a_sequence_in_its_row_is_not_seen = None


def test_the_loss_is_the_cross_entropy_of_every_prefix_by_hand():
    model = without_noise(diffurec())
    terms = []
    for history, target in (([2], 3), ([2, 3], 6), ([5], 4)):
        u = model.user_vectors(histories(history), 1, seeded())[0, 0]
        terms.append(-(model.items.weight[2:] @ u).log_softmax(0)[target - 2])
    loss = model.loss(shifted([2, 3, 6], [5, 4]), seeded()).total
    assert loss.item() == pytest.approx(sum(terms).item() / 3, rel=1e-5)


def test_drawn_prefixes_estimate_the_loss_of_all():
    whole, model = without_noise(diffurec()), without_noise(diffurec(prefixes=1))
    with torch.no_grad():
        for one in (whole, model):
            one.items.weight.mul_(20)
        drawn = [model.loss(PACKED, seeded(s)).total.item() for s in range(400)]
        assert sum(drawn) / 400 == pytest.approx(whole.loss(PACKED, seeded()).total.item(), rel=0.05)
    assert max(drawn) - min(drawn) > 0.1


def test_lambda_has_mean_and_spread_delta():
    """The first block reads shown + lambda * noisy."""
    model = diffurec(noise_scale=0.25, width=64)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    shown, noisy = torch.zeros(40, 6, 64), torch.full((40, 1, 64), 2.0)
    draws = torch.randn(40, 6, 64, generator=seeded())
    model._denoise(shown, noisy, draws, both_ways(torch.ones(40, 6), torch.arange(6).expand(40, 6)))
    lambda_ = seen[0] / 2
    assert lambda_.mean().item() == pytest.approx(0.25, abs=0.01)
    assert lambda_.std().item() == pytest.approx(0.25, abs=0.01)


def test_the_order_of_earlier_events_does_not_matter_the_last_one_does():
    model = without_noise(diffurec())
    with torch.no_grad():
        model.items.weight.normal_()
    u = model.user_vectors(histories([2, 3, 4, 5], [4, 2, 3, 5], [2, 3, 5, 4]), 1, seeded())[:, 0]
    torch.testing.assert_close(u[0], u[1], rtol=1e-4, atol=1e-5)
    assert (u[0] - u[2]).abs().max() > 1e-3


def test_every_step_encodes_the_history_anew_from_noise():
    model = diffurec(noise_scale=0.5)
    inputs = []
    inner = model._denoise

    def spy(shown, noisy, draws, visible):
        inputs.append((shown, noisy, draws))
        return inner(shown, noisy, draws, visible)

    model._denoise = spy
    model.user_vectors(histories([4, 5, 6], length=3), None, seeded(7))
    assert len(inputs) == 8
    assert all(torch.equal(shown, inputs[0][0]) for shown, _, _ in inputs)
    generator = seeded(7)
    start = torch.randn(1, 16, generator=generator)
    torch.testing.assert_close(inputs[0][1][:, 0], start + model.time(torch.tensor([7])))
    assert torch.equal(inputs[0][2], torch.randn(1, 6, 16, generator=generator)[:, -3:])


def test_every_parameter_gets_a_gradient():
    model = diffurec().train()
    model.loss(TRAINING, seeded()).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("noise_scale", "prefixes"), [(0.001, 0), (0.3, 0), (0.001, 2)])
def test_it_learns_a_cycle(noise_scale, prefixes):
    """2 -> 3 -> ... -> 13 -> 2: after training the next item is (nearly) always first."""
    model = diffurec(noise_scale=noise_scale, prefixes=prefixes)
    batch = cycle_batch()
    generator = seeded(3)
    values = train(model, lambda: model.loss(batch, generator), 150)
    assert sum(values[-5:]) < 0.5 * sum(values[:5])
    assert found_in_cycle(model) >= 0.9


def test_no_steps_are_one_pass_without_noise():
    model = diffurec(noise_scale=0.5)
    batch = histories([4, 5, 6], [7, 8])
    assert torch.equal(model.user_vectors(batch, 0, seeded(1)), model.user_vectors(batch, 0, seeded(2)))
    assert not torch.equal(model.user_vectors(batch, 1, seeded(1)), model.user_vectors(batch, 1, seeded(2)))
