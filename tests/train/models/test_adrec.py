"""ADRec. B batch, L length, D width, T steps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import ConfigError
from tests.train.models import straightforward
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
from train.configs import ADRecConfig, SASRecConfig
from train.models.adrec import ADRec
from train.models.sasrec import SASRec
from train.protocol import SequenceBatch
from train.settings import TrainingSettings
from train.step import Stepper

SHAPE = {
    "width": 16, "blocks": 1, "heads": 2, "max_length": 6, "denoiser_blocks": 1, "steps": 8, "positions": False,
    "denoiser_start": "random", "pretrain": "table",
}  # fmt: skip
"""As published, but for the size."""
OWN = {"positions": True, "denoiser_start": "identity", "pretrain": "encoder"}


def adrec(**settings) -> ADRec:
    torch.manual_seed(0)
    return ADRec(ADRecConfig(**(SHAPE | settings)), CATALOGUE).eval()


def stirred(**settings) -> ADRec:
    return straightforward.stir(adrec(**settings), 0.2)


class ADRecTests(TrainedSequenceModelContract):
    shape: dict = {}  # noqa: RUF012

    def silent(self, model):
        model.noise_scale, model.own_answer = 0.0, None
        model.config = model.config.model_copy(update={"guidance": 1.0})
        return model

    def build(self):
        return ADRec(ADRecConfig(**(SHAPE | self.shape)), CATALOGUE)

    @pytest.mark.parametrize("steps", [1, 3, 8, None])
    def test_any_number_of_steps(self, steps):
        model = self.fresh()
        if steps is None or steps <= model.config.steps:
            assert self.vectors(model, histories([4, 5]), steps).isfinite().all()
        else:
            with pytest.raises(ConfigError, match=f"{steps} reverse steps asked of a process that has"):
                self.vectors(model, histories([4, 5]), steps)


class TestADRec(ADRecTests):
    pass


class TestStrongNoise(ADRecTests):
    shape = {"noise_scale": 1.0, "schedule": "cosine"}  # noqa: RUF012

    def test_another_generator_gives_another_answer(self):
        model, batch = self.fresh(), histories([4, 5, 6])
        assert not torch.equal(self.vectors(model, batch, seed=1), self.vectors(model, batch, seed=2))


class TestOneStep(ADRecTests):
    shape = {"steps": 1}  # noqa: RUF012


class TestNoPretraining(ADRecTests):
    shape = {"pretrain_share": 0.0}  # noqa: RUF012


class TestOwnChoices(ADRecTests):
    shape = OWN


class TestNormalised(ADRecTests):
    shape = {"noise_scaling": "normalised", "noise_scale": 0.5, "positions": True}  # noqa: RUF012


class TestSelfConditioned(ADRecTests):
    shape = {"self_conditioning": True, "noise_scale": 0.5}  # noqa: RUF012


class TestGuided(ADRecTests):
    shape = {"guidance": 1.5, "noise_scale": 0.5, "sampler": "ddim"}  # noqa: RUF012


class TestPointwise(ADRecTests):
    shape = {"denoiser": "mlp"}  # noqa: RUF012


class TestSeenPadding(ADRecTests):
    shape = {"seen_padding": True}  # noqa: RUF012

    def test_padding_rows_do_not_move(self):
        """It has a vector, though: one that is seen and is zero would be divided by its own size."""
        model = self.fresh().train()
        model.loss(TRAINING, seeded()).total.backward()
        assert model.item_table()[0].abs().max() > 0
        assert model.item_table().grad[0].abs().max() == 0

    def test_padding_is_seen(self):
        """The quirk: as if padding were events of its own; always as many of them as fit, whoever else is there."""
        model = self.fresh()
        with_padding = self.vectors(model, histories([4, 5, 6], length=3))
        model.config = model.config.model_copy(update={"seen_padding": False})
        assert (with_padding - self.vectors(model, histories([4, 5, 6], length=3))).abs().max() > 1e-3

    def test_an_empty_batch(self):
        assert self.vectors(self.fresh(), SequenceBatch.left_padded(torch.zeros(0, 3, dtype=torch.int64))).shape == (
            0, 1, 16,
        )  # fmt: skip

    test_packing_changes_nothing = None  # it would: this model is given left-padded rows (tests/train/test_job.py)
    test_what_follows_a_sequence_in_its_row_is_not_seen = None  # nothing does in left-padded rows


def test_noised_tokens_have_their_own_steps_and_padding_keeps_its_vector():
    model = adrec(steps=32)
    targets = torch.tensor([[0, 0] + [3] * 400, [5] * 402])
    x0 = torch.randn(2, 402, 16)
    x_t, t = model._noised(x0, SequenceBatch(targets, targets, (targets != 0).cumsum(1)), seeded(4))
    assert torch.equal(x_t[0, :2], x0[0, :2])
    assert t[0, :2].tolist() == [0, 0]
    real = t[targets != 0]
    assert real.min() == 0
    assert real.max() == 31
    assert real.float().mean().item() == pytest.approx(15.5, abs=1)
    assert torch.corrcoef(torch.stack([t[0, 2:].float(), t[1, 2:].float()]))[0, 1].abs() < 0.15
    abar = model.diffusion.alphas_cumprod[t].float()[..., None]
    noise = ((x_t - abar.sqrt() * x0) / (1 - abar).sqrt())[targets != 0]
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_the_loss_is_half_the_sum_of_ce_and_mse_by_hand():
    model = adrec(mse_weight=3.0)
    batch = shifted([2, 3, 1, 5], [6, 7])
    parts = model.loss(batch, seeded(2))
    x0 = model.items(batch.targets_BL)
    x_t, t = model._noised(x0, batch, seeded(2))
    visible = model._visible(batch)
    x0_hat = model._denoise(model.cam(model.items(batch.items_BL), visible), x_t, t, visible)
    ce, mse = [], [[], []]
    for b, position, target in ((0, 3, 3), (0, 5, 5), (1, 5, 7)):  # the unknown target 1 is left out
        u = x0_hat[b, position]
        ce.append(-(model.items.weight[2:] @ u).log_softmax(0)[target - 2])
        mse[b].append((u - model.items.weight[target]).square().mean())
    expected_ce = sum(ce) / 3
    expected_mse = (sum(mse[0]) / 2 + mse[1][0]) / 2
    torch.testing.assert_close(parts.parts["ce"], expected_ce.detach())
    torch.testing.assert_close(parts.parts["mse"], expected_mse.detach())
    torch.testing.assert_close(parts.total, 0.5 * (expected_ce + 3 * expected_mse))


def test_the_mse_pulls_the_target_vectors_too():
    model = adrec()
    model._denoise = lambda c, *_: torch.zeros_like(c)
    terms = model.loss(shifted([7, 5], length=2), seeded()).terms
    terms["mse"].sum.backward()
    torch.testing.assert_close(model.items.weight.grad[5], 2 * model.items.weight[5].detach() / 16)


def test_the_denoiser_input_is_the_published_sum():
    model = adrec(noise_scale=0.25)
    seen = []
    model.adm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    c, x_t = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    t = torch.randint(0, 8, (2, 3))
    model._denoise(c, x_t, t, model._visible(histories([2, 3, 4], [5, 6, 7], length=3)))
    torch.testing.assert_close(seen[0], c + 0.25 * (x_t + model.time(t)))


def test_a_later_input_or_later_noise_changes_no_earlier_prediction():
    model = adrec(noise_scale=1.0)
    t = torch.zeros(1, 5, dtype=torch.int64)
    items, x_t = torch.tensor([[2, 3, 4, 5, 6]]), torch.randn(1, 5, 16)
    other_items, other_x_t = torch.tensor([[2, 3, 4, 9, 9]]), x_t.clone()
    other_x_t[:, 3:] = 7
    visible = model._visible(SequenceBatch.left_padded(items))
    one = model._denoise(model.cam(model.items(items), visible), x_t, t, visible)
    two = model._denoise(model.cam(model.items(other_items), visible), other_x_t, t, visible)
    torch.testing.assert_close(one[:, :3], two[:, :3], rtol=0, atol=0)
    assert (one[:, 3] - two[:, 3]).abs().max() > 1e-3


def test_inference_touches_only_the_last_token_and_encodes_the_history_once():
    """Earlier tokens: clean shifted history at step 0, once. Last: from N(0, I), steps T-1..0."""
    model = adrec()
    encoded, entered = [], []
    model.cam.register_forward_hook(lambda *_: encoded.append(1))
    inner = model._entering

    def spy(x_t, code, own=None):
        entered.append((x_t, code))
        return inner(x_t, code, own)

    model._entering = spy
    model.user_vectors(histories([4, 5, 6]), None, seeded(7))
    assert len(encoded) == 1
    (known, clean), *last = entered
    assert torch.equal(clean, model.time(torch.tensor(0)))
    assert torch.equal(known[0], model.items.weight[[5, 6]])  # 4 -> 5, 5 -> 6
    assert torch.equal(torch.cat([code for _, code in last]), model.time(torch.arange(8).flip(0)))
    assert torch.equal(last[0][0], torch.randn(1, 16, generator=seeded(7)))


def test_padding_has_no_target_where_the_first_event_follows_it():
    model = adrec()
    entered = []
    model._entering = lambda x_t, code, own=None: entered.append(x_t) or torch.zeros_like(x_t)
    model.user_vectors(histories([4, 5, 6, 7], [8]), 1, seeded())
    known = entered[0]  # by length: [8] first, in as many columns as the other has
    assert torch.equal(known[0], torch.zeros(3, 16))
    assert torch.equal(known[1], model.items.weight[[5, 6, 7]])


EXTRAS = [
    {},
    {"noise_scale": 1.0, "sampler": "ddim"},
    {"noise_scale": 0.5, "noise_scaling": "normalised", "positions": True, "independent": False},
    {"noise_scale": 0.5, "noise_scaling": "learned", "self_conditioning": True},
    {"noise_scale": 0.5, "guidance": 2.0, "denoiser_blocks": 2},
    {"noise_scale": 1.0, "denoiser": "mlp"},
    {"noise_scale": 1.0, "seen_padding": True},
    {"noise_scale": 0.5, "steps": 7, "denoiser_blocks": 3, "guidance": 1.7, "self_conditioning": True},
    {"noise_scale": 0.5, "seen_padding": True, "denoiser_blocks": 3, "guidance": 1.7, "max_length": 8},
]


@pytest.mark.parametrize("steps", [None, 3, 1])
@pytest.mark.parametrize("settings", EXTRAS, ids=str)
def test_reading_the_history_once_is_the_straightforward_method(settings, steps):
    model = stirred(**settings)
    batch = histories([4, 5, 6], [7], [], [2, 3, 4, 5, 6, 7], [9, 1, 9, 3])
    ours = model.user_vectors(batch, steps, seeded(3))
    torch.testing.assert_close(ours, straightforward.user_vectors(model, batch, steps, seeded(3)), atol=1e-4, rtol=0)


@given(st.lists(st.lists(st.integers(2, CATALOGUE - 1), max_size=9), min_size=1, max_size=70), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_so_it_is_for_any_histories(rows, seed):
    model = stirred(noise_scale=1.0)
    batch = histories(*rows, length=9)
    ours = model.user_vectors(batch, 4, seeded(seed))
    torch.testing.assert_close(ours, straightforward.user_vectors(model, batch, 4, seeded(seed)), atol=1e-4, rtol=0)


def test_the_loss_is_the_straightforward_one():
    model = adrec(noise_scale=0.5, positions=True)
    expected = straightforward.loss(model, TRAINING, seeded(2))
    torch.testing.assert_close(model.loss(TRAINING, seeded(2)).total, expected)


def test_no_steps_are_one_pass_without_noise():
    model = adrec(noise_scale=1.0)
    batch = histories([4, 5, 6], [7, 8])
    u = model.user_vectors(batch, 0, seeded(1))
    assert torch.equal(u, model.user_vectors(batch, 0, seeded(2)))
    visible = model._visible(batch)
    c = model.cam(model.items(batch.items_BL), visible)
    x_t = model.items(torch.tensor([[0, 0, 0, 5, 6, 0], [0, 0, 0, 0, 8, 0]]))
    t = torch.tensor([[0, 0, 0, 0, 0, 7]] * 2)
    torch.testing.assert_close(u[:, 0], model._denoise(c, x_t, t, visible)[:, -1])


def test_one_step_for_each_sequence_unless_independent():
    model = adrec(independent=False)
    x0 = torch.zeros(*PACKED.items_BL.shape, 16)
    _, t = model._noised(x0, PACKED, seeded(1))
    for row, part in ((0, slice(0, 3)), (0, slice(3, 9))):
        wanted = PACKED.targets_BL[row, part] != 0
        assert len(set(t[row, part][wanted].tolist())) == 1
    _, t = adrec()._noised(x0, PACKED, seeded(1))
    assert len(set(t[0, 3:].tolist())) > 1


def test_normalised_targets_have_the_length_of_the_noise():
    model = adrec(noise_scaling="normalised")
    x = model._in_process(torch.randn(5, 16) * 0.01)
    torch.testing.assert_close(x.norm(dim=1), torch.full((5,), 4.0))
    assert torch.equal(model._in_process(torch.zeros(2, 16)), torch.zeros(2, 16))
    u = model.user_vectors(histories([4, 5, 6]), None, seeded(1))
    torch.testing.assert_close(u.norm(), torch.tensor(4.0))


def test_normalised_noise_is_as_long_as_the_encoding():
    """Gains of 0.25 and no bias make c as long as 0.25 sqrt(D); so is then what lambda = 1 adds of a target."""
    model = adrec(noise_scaling="normalised", noise_scale=1.0)
    norm = model.cam.transformer.blocks[-1].feed_forward_norm
    torch.nn.init.constant_(norm.weight, 0.25)
    batch = histories([4, 5, 6])
    c = model.cam(model.items(batch.items_BL), model._visible(batch))
    torch.testing.assert_close(c[:, -3:].norm(dim=-1), torch.ones(1, 3), rtol=1e-4, atol=0)  # sqrt(16) / 4
    torch.nn.init.zeros_(model.time.mlp[-1].weight)
    torch.nn.init.zeros_(model.time.mlp[-1].bias)
    added = model._entering(model._in_process(model.items(batch.items_BL)), model.time(torch.tensor(0)))
    torch.testing.assert_close(added[:, -3:].norm(dim=-1), torch.ones(1, 3))


def test_a_learned_noise_scale_is_trained_where_the_denoiser_is():
    model = adrec(noise_scaling="learned", noise_scale=0.2)
    assert model.noise_scale.item() == pytest.approx(0.2)
    model.loss(TRAINING, seeded()).total.backward()
    assert model.noise_scale.grad.abs() > 0
    frozen = {stage.name: "noise_scale" in stage.frozen for stage in model.stages()}
    assert frozen == {"pretrain": True, "align": False, "finetune": False}


def test_guidance_hides_whole_histories_in_training():
    model = adrec(guidance=2.0, guidance_drop=0.5)
    place = torch.arange(4).repeat(1, 500)
    batch = SequenceBatch(torch.full_like(place, 3), torch.full_like(place, 4), place)
    kept = model._hidden_for_some(torch.ones(1, 2000, 16), batch, seeded(1)).view(500, -1).mean(dim=1)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert kept.mean().item() == pytest.approx(0.5, abs=0.08)
    c = torch.randn(1, 2000, 16)
    assert adrec()._hidden_for_some(c, batch, seeded(1)) is c


def test_an_objective_without_weight_is_left_out():
    assert set(adrec(ce_weight=0.0).loss(TRAINING, seeded()).terms) == {"mse"}
    assert set(adrec(mse_weight=0.0).loss(TRAINING, seeded()).terms) == {"ce"}
    stages = {stage.name: stage for stage in adrec(align_loss="mse", combine="project").stages()}
    assert set(stages["align"].loss(TRAINING, seeded()).terms) == {"mse"}
    assert set(stages["finetune"].loss(TRAINING, seeded()).terms) == {"ce", "mse"}
    assert [stages[name].project for name in ("pretrain", "align", "finetune")] == [False, False, True]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"ce_weight": 0, "mse_weight": 0}, "ce_weight and mse_weight"),
        ({"align_loss": "mse", "mse_weight": 0}, "align_loss"),
        ({"combine": "project", "ce_weight": 0}, "combine"),
        ({"steps": 0}, "steps"),
        ({"width": 30, "heads": 4}, "heads 4"),
    ],
)
def test_settings_without_a_meaning_are_refused(wrong, named):
    with pytest.raises(ValidationError, match=named):
        ADRecConfig(**wrong)


def test_the_answer_never_enters():
    """Not through the targets of the batch, and the last token's own item is seen as history only."""
    model = adrec(noise_scale=1.0)
    batch = histories([4, 5, 6])
    u = model.user_vectors(batch, None, seeded(1))
    for answer in range(2, CATALOGUE):
        leaking = replace(batch, targets_BL=torch.tensor([[0, 0, 0, 5, 6, answer]]))
        assert torch.equal(model.user_vectors(leaking, None, seeded(1)), u)


def test_the_stages_in_order_with_real_parameters():
    model = adrec(pretrain_share=0.3, align_share=0.1)
    stages = model.stages()
    assert [stage.name for stage in stages] == ["pretrain", "align", "finetune"]
    assert [stage.share for stage in stages] == pytest.approx([0.3, 0.1, 0.6])
    names = [name for name, _ in model.named_parameters()]
    for stage in stages:
        for prefix in stage.frozen:
            assert any(name.startswith(prefix) for name in names), prefix


def free(model: ADRec, name: str) -> set[str]:
    """Top-level modules with a parameter that the stage lets move."""
    stage = next(s for s in model.stages() if s.name == name)
    return {n.split(".")[0] for n, _ in model.named_parameters() if not n.startswith(stage.frozen or ("-",))}


def test_each_stage_frees_what_the_paper_says():
    model = adrec()
    assert free(model, "pretrain") == {"items", "pretrain_encoder"}
    assert free(model, "align") == {"cam", "adm", "time"}
    assert free(model, "finetune") == {"items", "cam", "adm", "time"}


def test_each_stage_frees_what_our_own_choice_says():
    model = adrec(**OWN)
    assert free(model, "pretrain") == {"items", "cam", "places"}
    assert free(model, "align") == {"cam", "places", "adm", "time"}
    assert free(model, "finetune") == {"items", "cam", "places", "adm", "time"}


def test_the_published_freeze_moves_every_weight_by_the_step_size_towards_zero():
    """0.00096 a step at 1e-3, measured in the published training path."""
    model = adrec(align="shrinking").train()
    torch.nn.init.uniform_(model.items.weight, 0.05, 0.1)
    names = {name for name, _ in model.named_parameters()}
    known = {}
    for stage in model.stages()[:2]:  # after pre-training, of which Adam remembers nothing
        stepper = Stepper(model, stage, names, TrainingSettings(learning_rate=1e-3, weight_decay=0), 1, known)
        before = model.items.weight.detach().clone()
        for step in range(10):
            stepper.step([TRAINING], seeded(step), 1e-3, (False, False))
        known = stepper.known()
    torch.testing.assert_close(before - model.items.weight, torch.full_like(before, 0.01), rtol=0.1, atol=0)


def test_pre_training_the_encoder_is_sasrec():
    """The same weights under the names of SASRec give the same loss."""
    model = adrec(**OWN)
    sasrec = SASRec(SASRecConfig(width=16, blocks=1, heads=2, max_length=6), CATALOGUE).eval()
    names = {"cam": "encoder", "places": "places", "items": "items"}
    parts = {name.partition(".")[::2]: weight for name, weight in model.state_dict().items()}
    sasrec.load_state_dict({f"{names[head]}.{rest}": w for (head, rest), w in parts.items() if head in names})
    ours = model.stages()[0].loss(TRAINING, seeded()).total
    torch.testing.assert_close(ours, sasrec.loss(TRAINING, seeded()).total)


def test_a_denoiser_that_starts_as_identity_passes_the_encoding_on():
    model = adrec(denoiser_start="identity", denoiser_blocks=2)
    batch = histories([4, 5, 6], [7, 8])
    visible = model._visible(batch)
    c = model.cam(model.items(batch.items_BL), visible)
    torch.testing.assert_close(model.adm(c, visible), c, atol=1e-5, rtol=1e-4)


def test_every_free_parameter_of_a_stage_gets_a_gradient_and_no_frozen_one_does():
    model = adrec().train()
    for stage in model.stages():
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(not (stage.frozen and name.startswith(stage.frozen)))
        stage.loss(TRAINING, seeded()).total.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (stage.name, name)


@pytest.mark.parametrize(
    ("pretrain", "align", "names"),
    [
        (0.0, 0.1, ["align", "finetune"]),
        (0.3, 0.0, ["pretrain", "finetune"]),
        (0.0, 0.0, ["finetune"]),
    ],
)
def test_stages_without_a_share_are_left_out(pretrain, align, names):
    model = adrec(pretrain_share=pretrain, align_share=align)
    stages = model.stages()
    assert [stage.name for stage in stages] == names
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    has_encoder = any(name.startswith("pretrain_encoder.") for name, _ in model.named_parameters())
    assert has_encoder == (pretrain > 0)
    assert all(has_encoder or "pretrain_encoder." not in stage.frozen for stage in stages)


@pytest.mark.parametrize("extra", [{}, {"noise_scale": 0.3}, OWN], ids=str)
def test_it_learns_a_cycle_through_its_stages(extra):
    """2 -> 3 -> ... -> 13 -> 2: after training the next item is (nearly) always first."""
    model = adrec(**extra)
    batch = cycle_batch()
    generator = seeded(3)
    for stage in model.stages():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (stage.frozen and name.startswith(stage.frozen)))
        table = model.items.weight.detach().clone()
        values = train(model, lambda stage=stage: stage.loss(batch, generator), 80)
        assert sum(values[-5:]) < sum(values[:5])
        assert torch.equal(table, model.items.weight) == (stage.name == "align")
    assert found_in_cycle(model) >= 0.9
