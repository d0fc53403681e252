"""A dense ADRec on two real ranks, stage by stage, against one process that has the whole batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.models.contract import seeded
from tests.train.sharded_ranks import on_ranks
from tests.train.test_ragged import ragged
from tests.train.test_step import ADREC, SHAPE
from train.configs import ADRecConfig
from train.models import build_sequence
from train.sequence_data import SequenceData
from train.settings import TrainingSettings
from train.stages import stages_of
from train.step import NotFiniteError, Stepper

#: Pre-training, then the table frozen, then everything; hardly any noise, as that depends on how a batch is cut.
STAGED = ADRecConfig(**SHAPE, denoiser_blocks=1, steps=4, noise_scale=ADREC.noise_scale)
PROJECTED = STAGED.model_copy(update={"combine": "project"})
#: Of each stage the limit of the gradient's norm; the last has none, lest a wrong factor be clipped away.
STAGES = {"pretrain": 0.05, "align": 0.05, "finetune": 0.0}
CHUNKS = ragged([2, 3, 4, 5, 6, 7, 8], [9, 10, 1, 12], [3, 5], [13, 2, 11], [4, 4, 9, 6, 2])
STEPS = 3
#: Rows of each rank's micro-batches; a share without a row is one place of padding.
WHOLE = [[[0, 1, 2, 3, 4]]]
CUTS = {
    "last micro-batch empty": [[[0, 1], [2]], [[3, 4], []]],
    "first micro-batch empty": [[[0], [1, 2, 3]], [[], [4]]],
    "one rank empty": [[[0, 1, 4], [2, 3]], [[], []]],
}

Answer = dict[str, Tensor]


def trained(rank: int, world: int, cut: list[list[list[int]]], config: ADRecConfig = STAGED) -> Answer:
    """Three steps of every stage: losses, and of each stage the gradients of its last step and the weights then."""
    torch.manual_seed(0)
    model = build_sequence(config, 14).train()
    data = SequenceData(CHUNKS, CHUNKS, max_length=6)
    batches = [data.batch(np.array(rows, np.int64)) for rows in cut[rank]]
    names = {name for name, _ in model.named_parameters()}
    found: Answer = {"table": model.item_table().detach().clone()}
    stepper: Stepper | None = None
    for stage in stages_of(model, len(STAGES)):
        settings = TrainingSettings(clip_norm=STAGES[stage.name], weight_decay=0.1)
        known = stepper.known() if stepper else {}
        stepper = None  # as the loop does: its hooks must be gone before the next one's
        stepper = Stepper(model, stage, names, settings, world, known)
        notices = (False, rank == world - 1)
        done = [stepper.step(batches, seeded(), 1e-3, notices) for _ in range(STEPS)]
        assert all(step.notices == [False, True] for step in done)
        trained = zip(stepper.names, stepper.trained, strict=True)
        found |= {f"{stage.name}/gradient/{n}": p.grad.clone() for n, p in trained if p.grad is not None}
        found |= {f"{stage.name}/weight/{n}": p.detach().clone() for n, p in model.named_parameters()}
        found[f"{stage.name}/loss"] = torch.tensor([step.loss for step in done], dtype=torch.float64)
        for part in done[0].parts:
            found[f"{stage.name}/loss/{part}"] = torch.tensor([step.parts[part] for step in done], dtype=torch.float64)
    return found


def spoiled(rank: int, world: int) -> Answer:
    """One rank's loss is NaN: every rank is told, none moves."""
    torch.manual_seed(0)
    model = build_sequence(ADREC, 14).train()
    names = {name for name, _ in model.named_parameters()}
    stepper = Stepper(model, stages_of(model, 1)[0], names, TrainingSettings(), world, {})
    if rank == 1:
        with torch.no_grad():
            model.item_table()[5] = torch.nan
    before = [p.detach().clone() for p in model.parameters()]
    batch = SequenceData(CHUNKS, CHUNKS, max_length=6).batch(np.array([rank]))
    with pytest.raises(NotFiniteError, match="loss is nan"):
        stepper.step([batch], seeded(), 1e-2, (False, False))
    pairs = zip(before, model.parameters(), strict=True)
    return {"unmoved": torch.tensor([torch.equal(b.nan_to_num(), p.nan_to_num()) for b, p in pairs])}


def everything(rank: int, world: int, folder: Path) -> Answer:
    """All that two ranks are asked, in one pair of processes."""
    answers = {name: trained(rank, world, cut) for name, cut in CUTS.items()}
    answers["projected"] = trained(rank, world, CUTS["first micro-batch empty"], PROJECTED)
    answers["spoiled"] = spoiled(rank, world)
    return {f"{name}: {key}": value for name, answer in answers.items() for key, value in answer.items()}


def of(answer: Answer, prefix: str) -> Answer:
    """Without gradients and weights of the keys' biases, which softmax cancels: they are rounding."""
    kept = {key.removeprefix(prefix): value for key, value in answer.items() if key.startswith(prefix)}
    return {key: value for key, value in kept.items() if "key.bias" not in key}


@pytest.fixture(scope="module")
def one() -> Answer:
    return trained(0, 1, WHOLE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Answer]:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), everything)


def test_two_ranks_project_the_same_gradients_as_one(two):
    alone = of(trained(0, 1, WHOLE, PROJECTED), "finetune/gradient/")
    for answer in two:
        torch.testing.assert_close(of(answer, "projected: finetune/gradient/"), alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cut", CUTS)
class TestTwoRanks:
    def test_train_what_one_trains(self, one, two, cut, stage):
        """Losses and their terms, clipped gradients, and weights after AdamW, whose moments go from stage to stage."""
        both = [of(answer, f"{cut}: {stage}/") for answer in two]
        alone = of(one, f"{stage}/")
        assert both[0].keys() == alone.keys()
        for kind, rtol, atol in (("loss", 1e-5, 0), ("gradient", 1e-3, 1e-6), ("weight", 1e-3, 2e-5)):
            ours, theirs = ({k: v for k, v in answer.items() if k.startswith(kind)} for answer in (both[0], alone))
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
        assert alone["loss"][-1] < alone["loss"][0]

    def test_agree_to_the_last_bit(self, two, cut, stage):
        left, right = (of(answer, f"{cut}: {stage}/") for answer in two)
        assert left.keys() == right.keys()
        assert [key for key, value in left.items() if not torch.equal(value, right[key])] == []

    def test_clip_the_whole_gradient(self, two, cut, stage):
        gradients = of(two[0], f"{cut}: {stage}/gradient/")
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
        assert norm > 0.5 if stage == "finetune" else norm == pytest.approx(STAGES[stage], rel=1e-4)


@pytest.mark.parametrize("cut", CUTS)
def test_a_frozen_table_does_not_move_at_all(two, cut):
    """It moves before, and goes on afterwards from where it stood."""
    for answer in two:
        first, *tables = (answer[f"{cut}: {key}"] for key in ("table", *(f"{s}/weight/items.weight" for s in STAGES)))
        assert not torch.equal(first, tables[0])
        assert torch.equal(tables[0], tables[1])
        assert not torch.equal(tables[1], tables[2])
        assert f"{cut}: align/gradient/items.weight" not in answer
        assert not any(table[0].any() for table in tables)


def test_what_one_rank_cannot_step_none_does(two):
    assert all(answer["spoiled: unmoved"].all() for answer in two)
