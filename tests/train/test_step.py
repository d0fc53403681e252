"""One optimizer step: the gradient of the global batch however it is cut, guard, schedule, average, rehearsal."""

import math

import pytest
import torch
from torch import nn

from tests.train.models.contract import FIELDS, PACKED, impressions, seeded
from train.configs import ADRecConfig, DNNConfig, SASRecConfig
from train.models import build_ranking, build_sequence
from train.protocol import LossParts, RankingBatch, SequenceBatch, Term
from train.settings import TrainingSettings
from train.stages import stages_of
from train.step import MovingAverage, NotFiniteError, Stepper, learning_rate

SHAPE = {"width": 16, "blocks": 1, "heads": 2, "max_length": 6, "dropout": 0.0, "embedding_dropout": 0.0}
SASREC = SASRecConfig(**SHAPE)
#: The noise depends on how a batch is cut; with hardly any of it the loss does not.
ADREC = ADRecConfig(**SHAPE, denoiser_blocks=1, steps=4, noise_scale=1e-20, pretrain_share=0, align_share=0)


def stepper_of(config, seed: int = 0, **settings) -> Stepper:
    torch.manual_seed(seed)
    model = build_sequence(config, 14) if config.kind == "sequence" else build_ranking(config, FIELDS)
    names = {name for name, _ in model.named_parameters()}
    return Stepper(model.train(), stages_of(model, 3)[-1], names, TrainingSettings(**settings), 1, {})


def test_only_what_has_two_axes_is_decayed():
    """A step of size 0.1 on gradients of 0, decay 0.5: matrices lose a twentieth; gains, biases and lambda nothing."""
    stepper = stepper_of(ADREC.model_copy(update={"noise_scaling": "learned"}), weight_decay=0.5)
    before = weights(stepper)
    for parameter in stepper.trained:
        parameter.grad = torch.zeros_like(parameter)
    stepper._move(0.1)
    after = weights(stepper)
    assert {before["noise_scale"].ndim, before["cam.norm.weight"].ndim, before["items.weight"].ndim} == {0, 1, 2}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value * (0.95 if value.ndim > 1 else 1.0))


def weights(stepper: Stepper) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in zip(stepper.names, stepper.trained, strict=True)}


def gradients(stepper: Stepper) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in zip(stepper.names, stepper.trained, strict=True) if p.grad is not None}


def cut(batch) -> list:
    """The batch as one row each, so with different numbers of targets and sequences."""
    rows = range(len(next(iter(vars(batch).values()))))
    if isinstance(batch, SequenceBatch):
        return [SequenceBatch(*(t[i : i + 1] for t in vars(batch).values())) for i in rows]
    fields = vars(batch).items()
    return [
        RankingBatch(**{k: tuple(m[i::3] for m in v) if isinstance(v, tuple) else v[i::3] for k, v in fields})
        for i in range(3)
    ]


@pytest.mark.parametrize("config", [SASREC, ADREC, DNNConfig(dropout=0.0)], ids=lambda c: c.model)
def test_micro_batches_add_up_to_the_global_batch(config):
    batch = PACKED if config.kind == "sequence" else impressions(20)
    whole, parts = stepper_of(config, clip_norm=0), stepper_of(config, clip_norm=0)
    one = whole.step([batch], seeded(), 1e-2, (False, False))
    several = parts.step(cut(batch), seeded(), 1e-2, (False, False))
    assert several.loss == pytest.approx(one.loss, rel=1e-5)
    assert several.parts == pytest.approx(one.parts, rel=1e-5)
    torch.testing.assert_close(gradients(whole), gradients(parts), rtol=1e-4, atol=1e-6)


def test_terms_are_means_over_what_they_say():
    counts = {"targets": torch.tensor(4), "sequences": torch.tensor(2)}
    loss = LossParts({"a": Term(torch.tensor(8.0), "targets"), "b": Term(torch.tensor(6.0), "sequences", 0.5)}, counts)
    assert loss.total == 8 / 4 + 0.5 * 6 / 2
    assert {name: value.item() for name, value in loss.parts.items()} == {"a": 2.0, "b": 3.0}
    assert loss.scaled({"targets": torch.tensor(16), "sequences": torch.tensor(6)}) == 8 / 16 + 0.5 * 6 / 6


def test_counts_by_hand():
    counts = PACKED.counts
    assert {name: int(value) for name, value in counts.items()} == {"targets": 9, "sequences": 3}
    assert int(impressions(20).counts["samples"]) == 20


def test_half_precision_agrees():
    full, half = stepper_of(SASREC, clip_norm=0), stepper_of(SASREC, clip_norm=0, precision="bf16")
    one, two = (s.step([PACKED], seeded(), 1e-3, (False, False)) for s in (full, half))
    assert two.loss == pytest.approx(one.loss, rel=1e-2)
    assert two.loss != one.loss
    left, right = (torch.cat([g.flatten() for g in gradients(s).values()]) for s in (full, half))
    assert right.dtype == torch.float32
    assert (left - right).norm() <= 1e-2 * left.norm()


def test_notices_come_back_and_the_step_is_taken():
    stepper = stepper_of(SASREC)
    before = weights(stepper)
    assert stepper.step([PACKED], seeded(), 1e-2, (False, True)).notices == [False, True]
    assert stepper.step([PACKED], seeded(), 1e-2, (False, False)).notices == [False, False]
    assert not torch.equal(before["items.weight"], weights(stepper)["items.weight"])


def test_what_is_not_finite_changes_nothing():
    stepper = stepper_of(SASREC)
    with torch.no_grad():
        dict(zip(stepper.names, stepper.trained, strict=True))["places.weight"][0] = math.inf
    before = weights(stepper)
    with pytest.raises(NotFiniteError, match="loss is nan"):
        stepper.step([PACKED], seeded(), 1e-2, (False, False))
    assert all(torch.equal(before[n], w) for n, w in weights(stepper).items())


def test_a_rehearsal_leaves_no_trace_and_counts_products():
    stepper = stepper_of(ADREC)
    torch.manual_seed(5)
    generator, before, state = seeded(3), weights(stepper), torch.get_rng_state()
    flops = stepper.rehearse(PACKED, generator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert all(torch.equal(before[n], w) for n, w in weights(stepper).items())
    assert gradients(stepper) == {}
    # 18 places, D = 16: two blocks of 12 D^2 weights; 4 steps: the time code's 8 D^2; forward, and backward twice that,
    # save the gradient of the time code's input. Scores: 9 targets or all 18 places over 14 rows. Attention on top.
    products = 2 * 16**2 * (18 * 2 * 12 * 3 + 4 * (4 * 2 + 4 * 3)) + 2 * 9 * 14 * 16 * 3
    assert products <= flops <= 1.2 * products


def test_the_moving_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average = MovingAverage(model, 0.5)
    nn.init.constant_(model.weight, 3.0)
    average.update(model, 0)  # decay (1 + 0) / (10 + 0) = 0.1 at first
    assert average.average["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    average.update(model, 1000)  # then 0.5
    assert average.average["weight"].item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)
    with average.in_place(model):
        assert model.weight.item() == pytest.approx(2.9)
    assert model.weight.item() == 3.0


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    settings = TrainingSettings(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(settings, step, 6) for step in range(6)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step():
    plain, compiled = stepper_of(SASREC), stepper_of(SASREC, compile=True)
    compiled.rehearse(PACKED, seeded())
    for _ in range(3):
        one, two = (s.step([PACKED], seeded(), 1e-2, (False, False)) for s in (plain, compiled))
        assert two.loss == pytest.approx(one.loss, rel=1e-3)  # of the second and third, what the steps have done
