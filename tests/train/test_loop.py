"""The loop of one worker, without Ray: stages, stopping, exact resume, validation by hand."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infra.errors import TrainingError
from tests.train.tables import AS_OF, write_samples, write_sequences
from tests.train.test_sequence_data import events
from train import checkpoint, loop, validation
from train.configs import ADRecConfig, DNNConfig, SASRecConfig
from train.embedding_health import health_metrics
from train.job import Job, opened
from train.loop import Worker
from train.protocol import LossParts, Stage, Term
from train.settings import TrainingSettings
from train.stages import split_epochs
from train.step import Stepper

CPU = torch.device("cpu")
ADREC = ADRecConfig(width=8, blocks=1, heads=1, denoiser_blocks=1, steps=4, max_length=4)
SASREC = SASRecConfig(width=8, blocks=1, heads=1, max_length=4, dropout=0.5)
CHUNKS = [[2 + (i + j) % 8 for j in range(2 + i % 4)] for i in range(20)]
TARGETS = [([2, 3], 4, True), ([5], 6, True), ([9, 8, 7], 2, True)]


def job(root: Path, model=SASREC, run: str = "run", **settings) -> Job:
    if not (root / "sequences").exists():
        write_sequences(root, CHUNKS, TARGETS)
    given_settings = {"epochs": 4, "batch_size": 8, "learning_rate": 0.01, "cache": root / "maps", **settings}
    return Job(
        lake=str(root), versions={"sequences": 0}, as_of=AS_OF, model=model, catalogue=10,
        training=TrainingSettings(**given_settings), run=str(root / run), config_hash="c0ffee",
    )  # fmt: skip


def test_numbers_too_small_for_full_precision_are_zero_on_a_cpu():
    """One such operand makes an instruction tens of times slower."""
    tiny = torch.full((64,), 1e-40)
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        assert torch.set_flush_denormal(False)
        assert (tiny * 1).sum() > 0
        loop.prepare(torch.device("cpu"), before, "fp32")
        assert (tiny * 1).sum() == 0
    finally:
        torch.set_flush_denormal(False)
        torch.set_float32_matmul_precision(precision)


def test_a_warm_up_longer_than_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"training\.warmup_steps 13 exceeds the run's 12 steps"):
        worker_of(job(tmp_path, warmup_steps=13))


def test_every_rank_rehearses_in_the_first_step_alone(tmp_path, monkeypatch):
    """Its barrier is for all: a rank whose first batch is empty counts no FLOPs, and must not come again alone."""
    calls = []
    monkeypatch.setattr(Stepper, "rehearse", lambda self, batch, generator: calls.append(1) or 0)
    run(job(tmp_path))
    assert len(calls) == 1


class KilledError(Exception):
    pass


def worker_of(what: Job) -> Worker:
    """The whole run as one worker in this process; its memory maps are let go when it is."""
    held = opened(what, 0, 1)
    worker = Worker(what, held.__enter__(), 0, 1, CPU)
    worker.held = held
    return worker


def run(what: Job, kill_after: int | None = None) -> tuple[Worker, list[dict]]:
    reports: list[dict] = []

    def report(metrics, path):
        reports.append(metrics)
        if kill_after == len(reports):
            raise KilledError

    worker = worker_of(what)
    worker.run(report)
    return worker, reports


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class TestResume:
    @pytest.mark.parametrize("model", [SASREC, ADREC], ids=lambda m: m.model)
    @pytest.mark.parametrize("killed_after", [1, 2, 3])
    def test_bit_for_bit(self, tmp_path, model, killed_after):
        straight, told = run(job(tmp_path, model, "a"))
        with pytest.raises(KilledError):
            run(job(tmp_path, model, "b"), kill_after=killed_after)
        resumed, rest = run(job(tmp_path, model, "b"))
        assert [m["epoch"] for m in rest] == list(range(killed_after + 1, 5))
        assert same(straight.model.state_dict(), resumed.model.state_dict())
        assert same(straight.best, resumed.best)
        assert torch.equal(straight.generator.get_state(), resumed.generator.get_state())
        for key in ("loss", "valid_ndcg_20", "best_epoch", "step"):
            assert told[-1][key] == rest[-1][key]

    @pytest.mark.parametrize("killed_after", [1, 2, 4, 8])
    def test_within_an_epoch(self, tmp_path, killed_after):
        """Three steps an epoch and a checkpoint after each, two of which are told of before the epoch is over."""
        settings = {"ema": 0.9, "accumulate": 2, "schedule": "cosine", "warmup_steps": 2}
        straight, told = run(job(tmp_path, ADREC, "a", **settings))
        often = {**settings, "checkpoint_seconds": 1e-9}
        with pytest.raises(KilledError):
            run(job(tmp_path, ADREC, "b", **often), kill_after=killed_after)
        resumed, rest = run(job(tmp_path, ADREC, "b", **often))
        assert same(straight.model.state_dict(), resumed.model.state_dict())
        assert same(straight.average.average, resumed.average.average)
        assert same(straight.best, resumed.best)
        for key in ("loss", "loss_ce", "valid_ndcg_20", "best_epoch", "step"):
            assert told[-1][key] == rest[-1][key]

    def test_a_node_about_to_go_leaves_a_checkpoint(self, tmp_path):
        what = job(tmp_path, epochs=3, checkpoint_every=9)
        notices = iter([False, True, False, False, False, True, False, False, False])
        reports = []
        with opened(what, 0, 1) as splits:
            Worker(what, splits, 0, 1, CPU, lambda: next(notices)).run(lambda metrics, path: reports.append(path))
        places = [checkpoint.place_of(path)[:2] if path else None for path in reports]
        assert places == [[0, 2], None, [2, 0], [3, 0]]  # the second notice came with the last step of an epoch

    def test_the_average_is_what_is_validated_and_published(self, tmp_path):
        worker, reports = run(job(tmp_path, ema=0.9))
        assert not same(worker.best, worker.model.state_dict())
        with worker.average.in_place(worker.model):
            name, value = validation.validate(worker.model, worker.splits.valid, worker.settings, 0, 1, CPU)
        assert reports[-1][name] == value
        with worker.average.in_place(worker.model):
            averaged = health_metrics(worker.model)
        assert {k: reports[-1][k] for k in averaged} == averaged != health_metrics(worker.model)

    def test_noise_and_dropout_are_part_of_it(self, tmp_path):
        """The comparison above can fail: without the saved generators the weights come out otherwise."""
        straight, _ = run(job(tmp_path, ADREC, "a"))
        with pytest.raises(KilledError):
            run(job(tmp_path, ADREC, "b"), kill_after=2)
        resumed = worker_of(job(tmp_path, ADREC, "b"))
        resumed._set_rng = lambda states: None
        resumed.run(lambda metrics, path: None)
        assert not same(straight.model.state_dict(), resumed.model.state_dict())

    def test_the_largest_memory_goes_on_with_the_run(self, tmp_path, monkeypatch):
        """Each attempt sees its own processes' peak; the run keeps the largest of all."""
        monkeypatch.setattr(loop, "peak_memory", lambda device: 700)
        with pytest.raises(KilledError):
            run(job(tmp_path), kill_after=2)
        monkeypatch.setattr(loop, "peak_memory", lambda device: 500)
        worker, reports = run(job(tmp_path))
        assert [m["peak_memory_bytes"] for m in reports] == [500, 500]
        assert worker.state.peak_memory_bytes == 700

    def test_a_damaged_checkpoint_costs_one_epoch(self, tmp_path):
        straight, _ = run(job(tmp_path, run="a"))
        with pytest.raises(KilledError):
            run(job(tmp_path, run="b"), kill_after=3)
        newest, *_ = checkpoint.candidates(tmp_path / "b")
        (newest / "model.safetensors").write_bytes(b"")
        resumed, rest = run(job(tmp_path, run="b"))
        assert [m["epoch"] for m in rest] == [3, 4]
        assert same(straight.model.state_dict(), resumed.model.state_dict())

    @pytest.mark.parametrize("damaged", [1, 2])
    def test_damaged_checkpoints_are_not_among_those_kept(self, tmp_path, caplog, damaged):
        with pytest.raises(KilledError):
            run(job(tmp_path, epochs=6, keep_checkpoints=3), kill_after=4)
        places = checkpoint.candidates(tmp_path / "run")
        for path in places[:damaged]:
            (path / "model.safetensors").write_bytes(b"")
        with pytest.raises(KilledError):
            run(job(tmp_path, epochs=6, keep_checkpoints=2), kill_after=1)
        left = [path for path in checkpoint.candidates(tmp_path / "run") if (path / checkpoint.MANIFEST).exists()]
        assert [checkpoint.place_of(path)[0] for path in left] == [5 - damaged, 4 - damaged]
        assert all(checkpoint.load(path) for path in left)
        assert [str(path) in caplog.text for path in places] == [True] * damaged + [False] * (3 - damaged)
        run(job(tmp_path, epochs=6, keep_checkpoints=2))
        assert [checkpoint.place_of(p)[0] for p in checkpoint.candidates(tmp_path / "run")] == [6, 5]

    def test_with_every_checkpoint_damaged_the_new_ones_are_kept(self, tmp_path):
        with pytest.raises(KilledError):
            run(job(tmp_path), kill_after=3)
        for path in checkpoint.candidates(tmp_path / "run"):
            (path / "model.safetensors").write_bytes(b"")
        with pytest.raises(KilledError):
            run(job(tmp_path), kill_after=1)
        path, _ = checkpoint.latest_valid(checkpoint.candidates(tmp_path / "run"))
        assert checkpoint.place_of(path)[0] == 1

    def test_a_strangers_damaged_checkpoints_are_left_alone(self, tmp_path):
        run(job(tmp_path))
        newest, *_ = checkpoint.candidates(tmp_path / "run")
        (newest / "model.safetensors").write_bytes(b"")
        with pytest.raises(TrainingError, match="another configuration"):
            run(Job(**{**vars(job(tmp_path)), "config_hash": "other"}))
        assert (newest / checkpoint.MANIFEST).exists()

    def test_a_finished_run_trains_no_further(self, tmp_path):
        done, _ = run(job(tmp_path))
        again, reports = run(job(tmp_path))
        assert reports == []
        assert same(done.model.state_dict(), again.model.state_dict())

    def test_checkpoints_come_as_often_as_asked(self, tmp_path):
        run(job(tmp_path, epochs=5, checkpoint_every=2, keep_checkpoints=3))
        assert [checkpoint.place_of(p)[0] for p in checkpoint.candidates(tmp_path / "run")] == [5, 4, 2]
        run(job(tmp_path, run="two", epochs=5))
        assert [checkpoint.place_of(p)[0] for p in checkpoint.candidates(tmp_path / "two")] == [5, 4]

    def test_a_strangers_run_is_refused(self, tmp_path):
        run(job(tmp_path))
        stranger = Job(**{**vars(job(tmp_path)), "config_hash": "other"})
        with pytest.raises(TrainingError, match="another configuration"):
            run(stranger)
        later = Job(**{**vars(job(tmp_path)), "versions": {"sequences": 0, "items": 2}})
        with pytest.raises(TrainingError, match="other inputs"):
            run(later)


class Tiny(nn.Module):
    """A table and a bias; `losses` makes the loss of each call from the table's sum."""

    def __init__(self, losses=lambda call, value: value) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 1)
        self.bias = nn.Linear(1, 1)
        self.losses = losses
        self.calls = 0

    def loss(self, batch, generator):
        self.calls += 1
        value = self.losses(self.calls, self.bias(self.table(batch.items_BL)).square().mean())
        return LossParts({"square": Term(value * batch.counts["targets"], "targets")}, batch.counts)

    def user_vectors(self, batch, steps, generator):
        return torch.ones(len(batch.items_BL), 1, 1)

    def item_table(self):
        return self.table.weight


class Staged(Tiny):
    """Table alone, then bias alone, then both."""

    def stages(self):
        return [
            Stage("first", 0.5, self.loss, frozen=("bias.",)),
            Stage("second", 0.25, self.loss, frozen=("table.",)),
            Stage("both", 0.25, self.loss),
        ]


def with_model(monkeypatch, model: nn.Module) -> None:
    """Train this model; its loss is called for steps only, not for counting FLOPs."""
    monkeypatch.setattr(loop, "build", lambda config, catalogue, fields, items: model)
    monkeypatch.setattr(Stepper, "rehearse", lambda *args: 1)


class TestStages:
    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(5, 60))
    def test_epochs_add_up(self, shares, epochs):
        lengths = split_epochs(shares, epochs)
        assert sum(lengths) == epochs
        assert min(lengths) >= 1

    def test_epochs_by_hand(self):
        assert split_epochs([0.3, 0.1, 0.6], 20) == [6, 2, 12]
        assert split_epochs([0.3, 0.1, 0.6], 7) == [2, 1, 4]
        assert split_epochs([0.3, 0.1, 0.6], 3) == [1, 1, 1]
        assert split_epochs([1.0], 9) == [9]
        with pytest.raises(TrainingError, match=r"training\.epochs 2 is less than the model's 3 stages"):
            split_epochs([0.3, 0.1, 0.6], 2)

    def test_frozen_parts_do_not_move_even_under_decay(self, tmp_path, monkeypatch):
        model = Staged()
        with_model(monkeypatch, model)
        seen = [{k: v.clone() for k, v in model.state_dict().items()}]
        worker = worker_of(job(tmp_path, weight_decay=10.0))
        stages = []

        def report(metrics, path):
            stages.append(metrics["stage"])
            seen.append({k: v.clone() for k, v in model.state_dict().items()})

        worker.run(report)
        assert stages == ["first", "first", "second", "both"]
        moved = [
            {name for name in after if not torch.equal(before[name], after[name])} for before, after in pairwise(seen)
        ]
        both = {"table.weight", "bias.weight", "bias.bias"}
        assert moved == [{"table.weight"}, {"table.weight"}, {"bias.weight", "bias.bias"}, both]

    def test_adamw_remembers_what_it_knew_also_of_what_was_frozen(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Staged())
        worker, _ = run(job(tmp_path))
        steps = {name: int(slots["step"]) for name, slots in worker.stepper.known().items()}
        # 20 rows in batches of 8 are 3 steps an epoch: the table had a pause after two of them.
        assert steps == {"table.weight": 9, "bias.weight": 6, "bias.bias": 6}

    def test_what_a_stage_forgets_begins_anew(self, tmp_path, monkeypatch):
        model = Staged()
        stages = model.stages()
        model.stages = lambda: [*stages[:-1], replace(stages[-1], forgets=("table.",))]
        with_model(monkeypatch, model)
        worker, _ = run(job(tmp_path))
        steps = {name: int(slots["step"]) for name, slots in worker.stepper.known().items()}
        assert steps == {"table.weight": 3, "bias.weight": 6, "bias.bias": 6}

    @pytest.mark.parametrize(
        ("frozen", "message"), [(("tabel.",), "freezes 'tabel.', but no"), (("table.", "bias."), "freezes every")]
    )
    def test_a_stage_that_freezes_nothing_or_everything(self, tmp_path, monkeypatch, frozen, message):
        model = Tiny()
        model.stages = lambda: [Stage("only", 1.0, model.loss, frozen)]
        with_model(monkeypatch, model)
        with pytest.raises(TrainingError, match=message):
            worker_of(job(tmp_path))


class TestNonFinite:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_a_loss_stops_before_the_step(self, tmp_path, monkeypatch, bad):
        model = Tiny(lambda call, value: value + bad if call == 5 else value)
        with_model(monkeypatch, model)
        worker = worker_of(job(tmp_path))
        with pytest.raises(
            TrainingError, match=r"loss is .*stage 'main', epoch 2, step 2 of the epoch \(5 of the run\)"
        ):
            worker.run(lambda metrics, path: None)
        assert all(p.isfinite().all() for p in model.parameters())
        assert all(int(s["step"]) == 4 for s in worker.stepper.optimizer.state.values())

    def test_a_gradient_stops_before_the_step(self, tmp_path, monkeypatch):
        # sqrt(0) is finite, its derivative is not.
        model = Tiny(lambda call, value: value + (value * 0).sqrt() if call == 3 else value)
        with_model(monkeypatch, model)
        with pytest.raises(TrainingError, match=r"gradient norm is (nan|inf).*step 3 of the epoch"):
            run(job(tmp_path))
        assert all(p.isfinite().all() for p in model.parameters())

    def test_a_validation_score(self, tmp_path):
        write_samples(tmp_path, rows_of(4) + [{**r, "split": "valid"} for r in rows_of(4)])
        ranking = Job(**{**vars(job(tmp_path, DNNConfig(), batch_size=3)), "versions": {"samples": 0, "fields": 0}})
        worker = worker_of(ranking)
        nn.init.constant_(worker.model.out.bias, math.nan)
        with pytest.raises(TrainingError, match="valid_log_loss is nan"):
            validation.validate(worker.model, worker.splits.valid, worker.settings, 0, 1, CPU)


def scripted(monkeypatch, values: list[float], name: str = "valid_ndcg_20") -> None:
    script = iter(values)
    monkeypatch.setattr(loop, "validate", lambda *args: (name, next(script)))


class TestStopping:
    def test_patience_and_the_best_weights(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Tiny())
        scripted(monkeypatch, [0.1, 0.3, 0.3, 0.2, 0.9])
        weights = []
        worker = worker_of(job(tmp_path, epochs=9, patience=2))
        worker.run(lambda metrics, path: weights.append(worker.model.table.weight.clone()))
        assert (worker.state.epoch, worker.state.best_epoch, worker.state.best_metric) == (4, 2, 0.3)
        assert worker.state.finished
        assert torch.equal(worker.best["table.weight"], weights[1])
        saved = checkpoint.latest_valid(checkpoint.candidates(tmp_path / "run"))[1].body
        assert torch.equal(saved.best["table.weight"], weights[1])
        assert torch.equal(saved.model["table.weight"], weights[3])

    def test_log_loss_falls(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Tiny())
        scripted(monkeypatch, [0.7, 0.5, 0.6, 0.8], "valid_log_loss")
        worker, _ = run(job(tmp_path))
        assert (worker.state.best_epoch, worker.state.bad_validations) == (2, 2)

    def test_only_the_last_stage_counts(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Staged())
        scripted(monkeypatch, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
        worker, _ = run(job(tmp_path, epochs=8, patience=1))
        # Stages of 4, 2 and 2 epochs: 0.3 is the first of the last stage and the best that counts.
        assert (worker.state.epoch, worker.state.best_epoch, worker.state.best_metric) == (8, 7, 0.3)

    def test_validation_comes_as_often_as_asked_and_at_the_end(self, tmp_path, monkeypatch):
        with_model(monkeypatch, Tiny())
        scripted(monkeypatch, [0.1, 0.2, 0.3])
        _, reports = run(job(tmp_path, epochs=5, validate_every=2))
        assert ["valid_ndcg_20" in m for m in reports] == [False, True, False, True, True]


class TestValidate:
    def test_ndcg_by_hand(self, tmp_path):
        # A lower index scores higher, so without the history item i stands behind 2 .. i - 1.
        targets = [
            ([2], 4, True),  # rivals 3: rank 2
            ([2, 3], 4, True),  # rank 1
            ([2, 3], 9, True),  # rivals 4..8: rank 6
            ([5], 7, False),  # unseen before the cut: a miss
            ([5, 6], 6, True),  # in its own history: left out
        ]
        write_sequences(tmp_path, CHUNKS, targets)
        model = Tiny()
        with torch.no_grad():
            model.table.weight.copy_(10.0 - torch.arange(10.0)[:, None])
        settings = TrainingSettings(batch_size=2)
        valid = worker_of(job(tmp_path)).splits.valid
        name, value = validation.validate(model, valid, settings, 0, 1, CPU)
        assert name == "valid_ndcg_20"
        assert value == pytest.approx((1 / math.log2(3) + 1 + 1 / math.log2(7) + 0) / 4, rel=1e-12)
        # Two ranks see disjoint shares: (rows 0, 2, 4) and (rows 1, 3).
        shares = [validation.validate(model, valid, settings, r, 2, CPU)[1] for r in (0, 1)]
        assert shares == pytest.approx([(1 / math.log2(3) + 1 / math.log2(7)) / 2, 1 / 2])

    def test_log_loss_by_hand(self, tmp_path):
        write_samples(tmp_path, rows_of(3) + [{**r, "split": "valid"} for r in rows_of(3)])
        ranking = Job(**{**vars(job(tmp_path, DNNConfig(), batch_size=3)), "versions": {"samples": 0, "fields": 0}})
        worker = worker_of(ranking)
        nn.init.zeros_(worker.model.out.weight)
        nn.init.constant_(worker.model.out.bias, math.log(3))  # p = 3/4 for everyone; labels 0, 1, 0
        name, value = validation.validate(worker.model, worker.splits.valid, worker.settings, 0, 1, CPU)
        assert name == "valid_log_loss"
        assert value == pytest.approx(-(2 * math.log(1 / 4) + math.log(3 / 4)) / 3, rel=1e-6)

    def test_nothing_to_measure(self, tmp_path):
        write_sequences(tmp_path, CHUNKS, [([4, 5], 5, True)])
        with pytest.raises(TrainingError, match="already in its user's history"):
            run(job(tmp_path))


def rows_of(count: int) -> list[dict]:
    return [
        {"f_colour": 2 + i % 3, "f_price": float(i), "f_tags": [2], "f_shop": 2, "label": i % 2, "missing": 0}
        for i in range(count)
    ]


class TestTraining:
    def test_a_ranking_model_learns(self, tmp_path):
        """The label is a function of one field: the log loss of knowing nothing is log 2."""
        rows = [{**rows_of(1)[0], "f_colour": 2 + i % 2, "label": i % 2} for i in range(64)]
        write_samples(tmp_path, rows + [{**r, "split": "valid"} for r in rows[:16]])
        small = job(tmp_path, DNNConfig(hidden=(8,)), epochs=10, batch_size=16, learning_rate=0.05)
        _, reports = run(Job(**{**vars(small), "versions": {"samples": 0, "fields": 0}}))
        assert reports[0]["loss"] > 0.3
        assert reports[-1]["valid_log_loss"] < 0.1

    def test_every_row_is_trained_on_once_per_epoch(self, tmp_path, monkeypatch):
        seen: list[str] = []

        class Recording(Tiny):
            def loss(self, batch, generator):
                seen.extend(str(sequence) for sequence in events(batch))
                return super().loss(batch, generator)

        with_model(monkeypatch, Recording())
        worker, reports = run(job(tmp_path, epochs=2, batch_size=8, accumulate=2))
        assert len(seen) == 40
        assert Counter(seen[:20]) == Counter(seen[20:])
        assert seen[:20] != seen[20:]
        assert (worker.state.step, worker.state.examples, reports[-1]["step"]) == (6, 40, 6)

    def test_clipping(self, tmp_path, monkeypatch):
        """One AdamW step is blind to the gradient's size, so look at the gradient itself."""
        norms = {}
        for clip in (0.0, 0.01):
            model = Tiny(lambda call, value: value * 1000)
            with_model(monkeypatch, model)
            run(job(tmp_path, run=f"clip{clip}", epochs=1, batch_size=20, clip_norm=clip))
            norms[clip] = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
        assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
        assert norms[0.0] > 1

    def test_an_item_beyond_the_catalogue_is_refused(self, tmp_path):
        with pytest.raises(TrainingError, match="item index 9, but the vocabulary ends before 9"):
            worker_of(Job(**{**vars(job(tmp_path)), "catalogue": 9}))

    def test_a_job_survives_its_trip_through_ray(self, tmp_path):
        before = job(tmp_path, ADREC, workers=(1, 3))
        assert Job.from_config(before.to_config()) == before
