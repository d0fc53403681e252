"""Sharded tables and sampled softmax in whole runs: against dense ones, on two real ranks, through checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train
from infra.errors import TrainingError
from tests.train import sharded_runs
from tests.train.models.contract import PACKED, seeded
from tests.train.sharded_ranks import on_ranks
from tests.train.sharded_runs import (
    ADREC,
    CATALOGUE,
    CPU,
    DIMEREC,
    NOISY,
    SASREC,
    TARGETS,
    sharded_job,
    trained,
    whole_catalogue,
)
from tests.train.tables import write_sequences
from tests.train.test_loop import CHUNKS, run
from tests.train.test_loop import job as dense_job
from tests.train.test_step import cut
from tests.train.test_trainer import request_for
from train import checkpoint, trainer, validation
from train.configs import ADRecConfig, DreamRecConfig, PopularityConfig, SASRecConfig
from train.embedding_health import embedding_health
from train.item_table import counted
from train.job import Job, opened
from train.layers import EMBEDDING_STD
from train.loop import Worker
from train.models.sasrec import SASRec
from train.ranking_configs import DeepFMConfig, FeatureDropoutConfig
from train.rowwise_adagrad import RowWiseAdagrad
from train.sampled_softmax import Proposal
from train.sequence_data import SequenceData
from train.settings import TrainingSettings
from train.sharded import ShardedTable
from train.stages import stages_of
from train.step import NotFiniteError, Stepper

Answer = dict[str, Tensor]


def of(answer: Answer, name: str) -> Answer:
    """What one of `several` runs gave."""
    return {key.removeprefix(f"{name}/"): value for key, value in answer.items() if key.startswith(f"{name}/")}


def whole(answers: list[Answer], name: str, key: str = "weight") -> Tensor:
    """A table from the shards of its ranks: row i is row i // W of rank i mod W."""
    rows = sum(len(a[f"{name}/{key}"]) for a in answers)
    return torch.stack([answers[i % len(answers)][f"{name}/{key}"][i // len(answers)] for i in range(rows)])


@pytest.fixture(scope="module")
def two(root: Path) -> list[Answer]:
    """What two ranks found in all the runs that begin on two."""
    runs = [
        ("straight", True, sharded_job(root, run="two"), 0),
        ("moving", True, sharded_job(root, run="moving"), 1),
        ("noisy", False, sharded_job(root, NOISY, "noisy", accumulate=2, schedule="linear"), 0),
        ("killed", False, sharded_job(root, NOISY, "killed", accumulate=2, schedule="linear"), 2),
        ("resumed", False, sharded_job(root, NOISY, "killed", accumulate=2, schedule="linear"), 0),
        ("adrec", False, sharded_job(root, ADREC, "adrec"), 0),
        ("dimerec", False, sharded_job(root, DIMEREC, "dimerec", validation_steps=0), 0),
    ]
    return on_ranks(2, root / "first", sharded_runs.several, runs)


@pytest.fixture(scope="module")
def one(root: Path) -> list[Answer]:
    with whole_catalogue():
        return [{f"straight/{key}": value for key, value in trained(0, 1, sharded_job(root, run="one")).items()}]


class TestTwoRanks:
    def test_train_what_one_trains(self, one, two):
        torch.testing.assert_close(two[0]["straight/loss"], one[0]["straight/loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(whole(two, "straight"), whole(one, "straight"), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(whole(two, "straight", "sum"), whole(one, "straight", "sum"), rtol=1e-4, atol=1e-7)
        assert two[0]["straight/loss"][-1] < two[0]["straight/loss"][0]
        assert [len(a["straight/weight"]) for a in two] == [5, 5]

    @pytest.mark.parametrize(("name", "model"), [("straight", SASREC), ("adrec", ADREC), ("dimerec", DIMEREC)])
    def test_validate_what_the_dense_model_scores(self, root, two, name, model):
        dense = train.models.build_sequence(model, CATALOGUE)
        parameters = {key: value for key, value in of(two[0], name).items() if key in dense.state_dict()}
        dense.load_state_dict({**parameters, "items.weight": whole(two, name)})
        shares = []
        for rank, users in enumerate((5, 4)):
            with opened(sharded_job(root, model), rank, 2) as splits:
                settings = TrainingSettings(batch_size=8, validation_steps=0 if model is DIMEREC else None)
                shares.append(users * validation.validate(dense, splits.valid, settings, rank, 2, CPU)[1])
        assert two[0][f"{name}/valid_ndcg_20"][-1].item() == pytest.approx(sum(shares) / 9, rel=1e-12)
        assert len(TARGETS) == 9

    @pytest.mark.parametrize("name", ["straight", "adrec"])
    def test_tell_how_the_whole_table_is_spread(self, two, name):
        for figure, value in embedding_health(whole(two, name)).items():
            told = [answer[f"{name}/embedding_{figure}"][-1].item() for answer in two]
            assert told == pytest.approx([value, value], rel=1e-9)

    def test_resume_bit_for_bit(self, two):
        for answer in two:
            straight, killed, resumed = (of(answer, name) for name in ("noisy", "killed", "resumed"))
            for name in sharded_runs.TOLD:
                assert torch.equal(torch.cat([killed[name], resumed[name]]), straight[name])
            for name in straight.keys() - {*sharded_runs.TOLD, "tables"}:
                assert torch.equal(straight[name], resumed[name]), name
            assert {"weight", "sum", "best.weight"} <= straight.keys()

    def test_resume_on_other_numbers_of_ranks(self, root, one, two):
        with whole_catalogue():
            alone = trained(0, 1, sharded_job(root, run="moving"), 1)
        last = on_ranks(
            2, root / "second", sharded_runs.several, [("moving", True, sharded_job(root, run="moving"), 0)]
        )
        losses = torch.cat([two[0]["moving/loss"], alone["loss"], last[0]["moving/loss"]])
        torch.testing.assert_close(losses, one[0]["straight/loss"], rtol=0, atol=1e-4)
        torch.testing.assert_close(whole(last, "moving"), whole(one, "straight"), rtol=1e-3, atol=1e-4)
        best = whole(last, "moving", "best.weight")
        torch.testing.assert_close(best, whole(one, "straight", "best.weight"), rtol=1e-3, atol=1e-4)

    def test_a_frozen_table_does_not_move(self, two):
        """Stages of one, one and two epochs: pre-training, alignment with the table frozen, fine-tuning."""
        for answer in two:
            tables = answer["adrec/tables"]
            assert torch.equal(tables[0], tables[1])
            assert not torch.equal(tables[1], tables[2])


def stepper_of(table: ShardedTable, **settings) -> Stepper:
    """A step of a sharded SASRec over all items of `PACKED`'s catalogue, each a negative once."""
    torch.manual_seed(0)
    config = SASRecConfig(**{**SASREC.model_dump(), "max_length": 6, "negatives": table.rows - 2})
    model = SASRec(config, table.rows, table)
    model.proposal = Proposal(torch.zeros(table.rows))
    names = {name for name, _ in model.named_parameters()}
    sparse = RowWiseAdagrad([table.weight], 1.0)
    return Stepper(
        model.train(), stages_of(model, 1)[0], names, TrainingSettings(sharded=True, **settings), 1, {}, sparse
    )


@pytest.mark.parametrize("batches", [[PACKED], cut(PACKED)], ids=["whole", "cut"])
def test_steps_are_those_of_a_dense_table_under_the_full_softmax(monkeypatch, batches):
    """Rows by the formula of row-wise Adagrad, everything else by AdamW, one norm over both."""
    monkeypatch.setattr(Proposal, "draw", lambda self, k, generator: torch.arange(2, 14))
    table = ShardedTable(14, 8, std=EMBEDDING_STD)
    stepper = stepper_of(table, clip_norm=0.05, weight_decay=0.1, learning_rate=0.2, table_learning_rate=1.0)
    torch.manual_seed(0)
    dense = SASRec(SASRecConfig(**{**SASREC.model_dump(), "max_length": 6, "negatives": 0}), 14, nn.Embedding(14, 8))
    weight = dense.items.weight
    dense.load_state_dict(stepper.plain.model.state_dict())
    others = [p for p in dense.parameters() if p is not weight]
    matrices, vectors = ([p for p in others if (p.ndim > 1) is many] for many in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}])
    accumulator = torch.zeros(14)
    for rate in (0.1, 0.05, 0.02):
        told = stepper.step(batches, seeded(), rate, (False, False)).loss
        dense.zero_grad()
        loss = dense.loss(PACKED, seeded()).total
        loss.backward()
        weight.grad[0] = 0
        assert told == pytest.approx(loss.item(), rel=1e-5)
        assert nn.utils.clip_grad_norm_(dense.parameters(), 0.05) > 0.05
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        accumulator += weight.grad.square().mean(dim=1)
        with torch.no_grad():
            weight -= 5 * rate * weight.grad / (accumulator.sqrt() + 1e-8)[:, None]
    assert stepper.sparse is not None
    torch.testing.assert_close(stepper.sparse.accumulator(table.weight), accumulator, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(table.weight, weight, rtol=1e-4, atol=1e-5)
    wanted = {name: w for name, w in dense.state_dict().items() if "key.bias" not in name}  # its gradient is rounding
    got = {name: w for name, w in stepper.plain.model.state_dict().items() if name in wanted}
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", [SASREC, ADREC, DIMEREC], ids=lambda m: m.model)
def test_a_share_without_any_row_depends_on_all_its_look_ups(model):
    """Else a rank would miss from the exchange in which the others send their gradients."""
    table = ShardedTable(CATALOGUE, 8)
    built = train.models.build_sequence(model, CATALOGUE, table)
    built.proposal = Proposal(torch.zeros(CATALOGUE))
    batch = SequenceData.from_arrays({"values": np.arange(3), "offsets": np.array([0, 3])}, 4).batch(np.arange(0))
    for stage in stages_of(built, 3):
        looked_up: list[Tensor] = []
        with table.register_forward_hook(lambda *args, into=looked_up: into.append(args[-1])):
            loss = stage.loss(batch, seeded()).total
        assert len(looked_up) >= 2
        assert loss == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, looked_up))


def test_what_is_not_finite_and_a_rehearsal_change_nothing():
    table = ShardedTable(14, 8)
    stepper = stepper_of(table)
    before = {name: value.clone() for name, value in stepper.plain.model.state_dict().items()}
    generator = seeded(3)
    assert stepper.rehearse(PACKED, generator) > 0
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert all(p.grad is None for p in stepper.plain.model.parameters())
    with torch.no_grad():
        before["places.weight"][0] = stepper.plain.model.places.weight[0] = torch.inf
    with pytest.raises(NotFiniteError, match="loss is nan"):
        stepper.step([PACKED], seeded(), 1e-2, (False, False))
    assert all(torch.equal(before[name], value) for name, value in stepper.plain.model.state_dict().items())
    assert stepper.sparse is not None
    assert not stepper.sparse.accumulator(table.weight).any()


class TestFiles:
    def test_a_truncated_shard_costs_one_epoch(self, tmp_path):
        straight = trained(0, 1, sharded_job(tmp_path, NOISY, "a"))
        trained(0, 1, sharded_job(tmp_path, NOISY, "b"), kill_after=3)
        newest, *_ = checkpoint.candidates(tmp_path / "b")
        file = newest / "shard-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-8])
        resumed = trained(0, 1, sharded_job(tmp_path, NOISY, "b"))
        assert resumed["loss"].tolist() == straight["loss"].tolist()[2:]
        assert torch.equal(resumed["weight"], straight["weight"])

    def test_accumulators_outlast_a_stage_that_freezes_the_table(self, tmp_path):
        what, seen = sharded_job(tmp_path, ADREC), []
        with opened(what, 0, 1) as splits:
            worker = Worker(what, splits, 0, 1, CPU)
            rows = worker.shard.optimizer.accumulator(worker.shard.table.weight)
            worker.run(lambda metrics, path: seen.append(rows.clone()))
        assert seen[0].any()
        assert torch.equal(seen[0], seen[1])
        assert (seen[2] >= seen[1]).all()

    @pytest.mark.parametrize("model", [SASREC, DIMEREC], ids=lambda m: m.model)
    def test_the_body_holds_nothing_of_the_table_and_the_artifact_all(self, tmp_path, monkeypatch, model):
        """The best validation is not the last here, so it is the best rows that are published."""
        scores = iter([0.1, 0.3, 0.2, 0.2])
        monkeypatch.setattr("train.loop.validate", lambda *args: ("valid_ndcg_20", next(scores)))
        seen = {}

        def run_workers(job, use_gpu, tracker):
            seen.update(trained(0, 1, job))

        monkeypatch.setattr(trainer, "_run_workers", run_workers)
        monkeypatch.setattr(trainer, "require_resources", lambda settings: False)
        request = request_for(tmp_path, model, sharded=True, epochs=4)
        metrics = trainer.fit(request, tmp_path / "m", tmp_path / "runs")
        last = checkpoint.latest_valid(checkpoint.candidates(tmp_path / "runs" / "run"))[1]
        assert "items.weight" not in last.body.model
        assert "items.weight" not in last.body.best
        assert metrics["best_epoch"] == 2
        loaded = train.load(tmp_path / "m")
        assert torch.equal(loaded.model.items.weight, seen["tables"][1])
        assert loaded.config == model
        assert not torch.equal(seen["tables"][1], seen["tables"][3])


class TestNegatives:
    def test_a_dense_table_learns_from_a_sample(self, tmp_path):
        model = SASRecConfig(**{**SASREC.model_dump(), "negatives": 4})
        worker, told = run(dense_job(tmp_path, model, epochs=20, learning_rate=0.03))
        assert told[-1]["loss"] < 0.5 * told[0]["loss"]
        assert not [name for name in worker.model.state_dict() if "proposal" in name]
        expected = Proposal(counted([[i for chunk in CHUNKS for i in chunk]], CATALOGUE)).log_q(torch.arange(CATALOGUE))
        assert torch.equal(worker.model.proposal.log_q(torch.arange(CATALOGUE)), expected)

    @pytest.mark.parametrize("loader", ["resident", "streaming"])
    def test_counts_by_hand(self, tmp_path, loader):
        write_sequences(tmp_path, [[2, 3, 3], [4], [9, 1, 5], [7, 8, 9]], TARGETS, {3: [True, False, True]})
        what = dense_job(tmp_path, loader=loader, streams=1, batch_size=3)
        with opened(what, 0, 1) as splits:
            assert counted(splits.predicted(), CATALOGUE)[2:].tolist() == [1, 2, 0, 1, 0, 1, 0, 2]
        if loader == "resident":
            total = torch.zeros(CATALOGUE, dtype=torch.int64)
            for rank in range(3):
                with opened(what, rank, 3) as splits:
                    total += counted(splits.predicted(), CATALOGUE)
            assert total[2:].tolist() == [1, 2, 0, 1, 0, 1, 0, 2]

    @pytest.mark.parametrize("model", [SASREC, ADREC, DIMEREC], ids=lambda m: m.model)
    def test_without_a_proposal_there_are_none(self, model):
        built = train.models.build_sequence(type(model)(**{**model.model_dump(), "max_length": 9}), 14)
        with pytest.raises(TrainingError, match=r"config\.negatives: the model has no proposal"):
            built.loss(PACKED, seeded())


class TestRefused:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"compile": True}, "compile does not go with sharded"),
            ({"ema": 0.9}, "ema does not go with sharded"),
            ({"start": "champion"}, "start: champion does not go with sharded"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            TrainingSettings(sharded=True, **settings)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (SASRecConfig(), r"training\.sharded: config\.negatives is 0"),
            (ADRecConfig(), r"training\.sharded: config\.negatives is 0"),
            (PopularityConfig(), r"training\.sharded: model popularity learns no item table"),
            (DreamRecConfig(), r"training\.sharded: model dreamrec learns no item table by a sampled softmax"),
            (DeepFMConfig(), r"training\.sharded: deepfm has a second table"),
            (FeatureDropoutConfig(base=DeepFMConfig()), r"training\.sharded: deepfm has a second table"),
        ],
        ids=lambda value: getattr(value, "model", ""),
    )
    def test_models(self, tmp_path, model, message):
        with pytest.raises(TrainingError, match=message):
            sharded_job(tmp_path, model)
        request = request_for(tmp_path, model, sharded=True)
        request = replace(request, versions={"sequences": 0, "samples": 0, "fields": 0})
        with pytest.raises(TrainingError, match=message):
            trainer.fit(request, tmp_path / "m", tmp_path / "runs")

    def test_a_champion_to_start_from(self, tmp_path):
        with pytest.raises(TrainingError, match="start: champion does not go with sharded"):
            Job(**{**vars(sharded_job(tmp_path)), "initial": "somewhere"})
