"""The training loop of one worker: stages, epochs, validation, checkpoints. `train_worker` is Ray's entry.

All ranks make the same steps and write the same checkpoints: after an epoch, or within one when rank 0's clock or
a notice on any rank says so, which they tell each other in the step's own exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import TrainingError
from train import checkpoint
from train.artifact import build
from train.checkpoint import Body, TrainState
from train.configs import SoftmaxShape
from train.embedding_health import health_metrics, with_validation
from train.fields import FIELD_STD, blocks_of, rows_of
from train.item_table import ItemModel, counted
from train.job import Job, Splits, opened
from train.layers import EMBEDDING_STD
from train.loader import prefetched
from train.protocol import Stage, pinned, to_device
from train.randomness import seed_of
from train.ranking_configs import FieldShape, WrapperShape
from train.ranks import sum_over_ranks
from train.sampled_softmax import Proposal
from train.sharded import ShardedTable
from train.stages import stages_of
from train.step import MovingAverage, NotFiniteError, Stepper, learning_rate
from train.table_shard import TableShard, dense_state, load_dense_state
from train.throughput import Meter, matmul_rate, peak_memory
from train.validation import better, validate
from train.warm import start_from

Report = Callable[[dict[str, Any], Path | None], None]
_WEIGHTS, _NOISE, _DROPOUT = range(3)  # independent random streams of one seed; train.validation has the fourth
_AHEAD = 2  # batches that the loader's thread makes before they are asked for
_SAVING_TIMEOUT = timedelta(hours=1)  # rank 0 may take its time over a large checkpoint


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a TorchTrainer: trains to the end, resuming from the newest valid checkpoint."""
    import ray.train
    import ray.train.torch

    job = Job.from_config(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    prepare(device, job.training.threads, job.training.precision)

    # Checkpoints are ours: Ray's own list of them would have to agree with a directory that outlives any crash.
    with opened(job, rank, world) as splits:
        Worker(job, splits, rank, world, device, Leaving()).run(lambda metrics, path: ray.train.report(metrics))


def prepare(device: torch.device, threads: int, precision: str) -> None:
    """The process-wide switches of torch."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # denormals made epochs 10 to 25 times slower


class Leaving:
    """Whether Ray has told this worker that a node of the run is about to be taken away; true once per notice."""

    def __init__(self) -> None:
        self.told: Any = None

    def __call__(self) -> bool:
        from ray.train.v2._internal.execution.context import get_train_context

        # ray.train.get_preemption_info says the same, but waits for all ranks at every call.
        notice = get_train_context().preemption_context.preemption_info
        news = notice is not None and notice != self.told
        self.told = notice
        return news


class Worker:
    """One rank of a run. Without a process group it is the whole run."""

    def __init__(
        self,
        job: Job,
        splits: Splits,
        rank: int,
        world: int,
        device: torch.device,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """`leaving` says whether this rank's node is about to go."""
        self.job, self.splits, self.rank, self.world, self.device = job, splits, rank, world, device
        self.settings, self.leaving = job.training, leaving
        self.saving = dist.new_group(backend="gloo", timeout=_SAVING_TIMEOUT) if dist.is_initialized() else None
        self.shard = self._fresh_shard() if self.settings.sharded else None
        torch.manual_seed(seed_of(self.settings.seed, _WEIGHTS))
        table = self.shard.table if self.shard else None
        self.model = build(job.model, job.catalogue, splits.fields, table).to(device)
        if isinstance(self.model, ItemModel) and self.model.negatives:
            self.model.proposal = self._proposal()
        self.trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self.stages = stages_of(self.model, self.settings.epochs)
        self.run_steps = self.settings.epochs * splits.train.steps
        if self.settings.warmup_steps > self.run_steps:
            raise TrainingError(
                f"training.warmup_steps {self.settings.warmup_steps} exceeds the run's {self.run_steps} steps: lower it"
            )
        self.average = MovingAverage(self.model, self.settings.ema) if self.settings.ema else None
        self.generator = torch.Generator()
        self._reseed(0)
        self.state = TrainState(
            epoch=0, step=0, stage="", finished=False, world=world,
            config_hash=job.config_hash, input_versions=job.versions,
        )  # fmt: skip
        self.best: dict[str, Tensor] | None = None
        self.stepper: Stepper | None = None
        self.rehearsed = False
        self.meter = Meter(device, matmul_rate(device, self.settings.precision))
        self.saved = time.monotonic()

    def run(self, report: Report) -> None:
        """Train to the end. `report` is called by every rank after every epoch and for every checkpoint."""
        self.attempt = self._resume()
        while not self.state.finished:
            stage = self.stages[self.state.epoch]
            if self.stepper is None or stage.name != self.state.stage:
                self._enter(stage)
            metrics, due = self._epoch(stage, report)
            due |= self.state.finished or self.state.epoch % self.settings.checkpoint_every == 0
            report(metrics, self._save() if due else None)

    # What a large catalogue needs.

    def _fresh_shard(self) -> TableShard:
        """This rank's rows of the table of items, or of the fields' values."""
        model, catalogue, seed = self.job.model, self.job.catalogue, seed_of(self.settings.seed, _WEIGHTS)
        if isinstance(model, SoftmaxShape):
            assert catalogue is not None
            rows, width, std = catalogue, model.width, EMBEDDING_STD
        else:
            assert isinstance(model, FieldShape | WrapperShape)
            blocks = blocks_of(self.splits.fields, model.encoder.tied)
            rows, width, std = rows_of(blocks), model.encoder.embedding_width, FIELD_STD
        table = ShardedTable(rows, width, self.rank, self.world, std, seed).to(self.device)
        return TableShard(table, self.settings.table_learning_rate)

    def _proposal(self) -> Proposal:
        """Negatives after how often each item is predicted in the training split; every rank counts its share."""
        assert self.job.catalogue is not None
        counts_V = counted(self.splits.predicted(), self.job.catalogue)
        self._barrier()  # reading may take one rank longer than a step's patience
        return Proposal(sum_over_ranks(counts_V.to(self.device)))

    # Stages and steps.

    def _enter(self, stage: Stage) -> None:
        """Freeze what the stage freezes; AdamW keeps what it knows, also of what is frozen."""
        self._barrier()  # reading may take one rank longer than the patience of what the ranks now do together
        known = self.stepper.known() if self.stepper is not None else {}
        self.stepper = None  # the previous wrapper's hooks must be gone before the next one sets its own
        sparse = self.shard.optimizer if self.shard else None
        self.stepper = Stepper(self.model, stage, self.trainable, self.settings, self.world, known, sparse)
        self.rehearsed = False
        self._advance(stage=stage.name)

    def _epoch(self, stage: Stage, report: Report) -> tuple[dict[str, Any], bool]:
        """The rest of an epoch, then validation if it is due: (metrics, whether its last step asks to be kept)."""
        self.model.train()
        self.meter.restart()
        due = False
        started, first = time.perf_counter(), self.state.position
        source = self.splits.train.epoch(self.state.epoch, first)
        if self.device.type == "cuda":  # in the loader's thread, so that the copy to the device waits for nothing
            source = (replace(item, batches=[pinned(batch) for batch in item.batches]) for item in source)
        for item in self.meter.waiting(prefetched(source, _AHEAD)):
            due = self._step(item.batches)
            if due and item.position + 1 < self.splits.train.steps:
                self._spent(started)
                started = time.perf_counter()
                report(self._figures(stage), self._save())
        self._spent(started)
        metrics = self._figures(stage)
        epoch = self.state.epoch + 1
        last = epoch == self.settings.epochs
        self._advance(epoch=epoch, position=0, sums={}, finished=last, examples=self.state.examples + self.splits.rows)
        started = time.perf_counter()
        if last or epoch % self.settings.validate_every == 0:
            losses = {name: value for name, value in metrics.items() if name.startswith("loss")}
            metrics |= self._validated(stage is self.stages[-1], losses)
        peak = self._peak_memory()
        self._advance(
            seconds=self.state.seconds + time.perf_counter() - started,
            peak_memory_bytes=max(peak, self.state.peak_memory_bytes),
        )
        return metrics | {"epoch": epoch, "seconds": self.state.seconds, "peak_memory_bytes": peak}, due

    def _step(self, batches: list[Any]) -> bool:
        """One step; whether a checkpoint is due on all ranks."""
        assert self.stepper is not None
        settings, state = self.settings, self.state
        self.meter.count(batches)
        batches = [to_device(batch, self.device) for batch in batches]
        if not self.rehearsed:  # by all ranks in the same step
            self.meter.rehearsed(self.stepper.rehearse(batches[0], self.generator), batches[0])
            self.rehearsed = True
            self._barrier()  # ranks that compile need their time, which is not the others' being dead
        rate = learning_rate(settings, state.step, self.run_steps)
        waited = 0 < settings.checkpoint_seconds < time.monotonic() - self.saved
        notices = (self.rank == 0 and waited, self.leaving())
        try:
            done = self.stepper.step(batches, self.generator, rate, notices)
        except NotFiniteError as error:
            raise TrainingError(
                f"{error} in stage {state.stage!r}, epoch {state.epoch + 1}, step {state.position + 1} of the "
                f"epoch ({state.step + 1} of the run); the weights were not changed. Lower training.learning_rate or "
                + ("training.clip_norm" if settings.clip_norm else "set training.clip_norm")
            ) from None
        if self.average is not None:
            self.average.update(self.model, state.step)
        told = {"loss": done.loss, **{f"loss_{name}": value for name, value in done.parts.items()}}
        sums = {name: state.sums.get(name, 0.0) + value for name, value in told.items()}
        self._advance(step=state.step + 1, position=state.position + 1, sums=sums)
        return any(done.notices)

    def _figures(self, stage: Stage) -> dict[str, Any]:
        """Of the epoch so far: means over its steps, and what the machine did in this attempt."""
        state = self.state
        means = {name: value / state.position for name, value in state.sums.items()}
        where = {
            "epoch": state.epoch,
            "step": state.step,
            "stage": stage.name,
            "seconds": state.seconds,
            "workers": self.world,
        }
        return {**where, **means, **self.meter.figures(self.world, self.splits.rows / self.splits.train.steps)}

    def _peak_memory(self) -> int:
        """Bytes: the sum over the ranks, all of which call this, of what each has held at most."""
        peak = torch.tensor(peak_memory(self.device), dtype=torch.int64, device=self.device)
        return int(sum_over_ranks(peak))

    def _validated(self, final_stage: bool, losses: Mapping[str, float]) -> dict[str, Any]:
        """Validate, and in the last stage compare with the best so far and count towards patience; `losses`: of the
        epoch, for the history."""
        with self.average.in_place(self.model) if self.average else nullcontext():
            name, value = validate(self.model, self.splits.valid, self.settings, self.rank, self.world, self.device)
            health = health_metrics(self.model)
            if final_stage:
                best = self.state.best_metric
                if best is None or better(name, value, best):
                    self._advance(best_metric=value, best_epoch=self.state.epoch, bad_validations=0)
                    self.best = _weights(self.model) if self.rank == 0 else None
                    if self.shard:
                        self.shard.keep_best()
                else:
                    bad = self.state.bad_validations + 1
                    out_of_patience = 0 < self.settings.patience <= bad
                    self._advance(bad_validations=bad, finished=self.state.finished or out_of_patience)
        if health:
            entry = {"epoch": self.state.epoch, name: value, **health, **losses}
            self._advance(validations=with_validation(self.state.validations, entry, self.state.best_epoch))
        return {name: value, **health, "best_epoch": self.state.best_epoch}

    # Checkpoints.

    def _save(self) -> Path:
        """Write a checkpoint of this moment from all ranks."""
        assert self.stepper is not None
        state = self.state
        path = Path(self.job.run) / checkpoint.directory_name(state.epoch, state.position, self.attempt)
        body = None
        average = self.average.average if self.average else None
        is_best = average is None and (state.best_epoch, 0) == (state.epoch, state.position)
        if self.rank == 0:
            optimizer = checkpoint.named(self.stepper.known())
            best = None if is_best else self.best
            body = Body(state, dense_state(self.model), optimizer, best, average)
        shard = self.shard.state(with_best=not is_best) if self.shard else None
        checkpoint.save(path, self.rank, self._rng(), body, self._barrier, shard)
        if self.rank == 0:
            checkpoint.retain(path.parent, self.settings.keep_checkpoints)
        self.saved = time.monotonic()
        return path

    def _resume(self) -> int:
        """Continue from the newest valid checkpoint of this run; returns the number of this attempt.

        The directory is the record, not Ray's list of reports: it also knows a checkpoint that was
        completed just before the run was killed, and the one before a damaged one.
        """
        run = Path(self.job.run)
        found = checkpoint.latest_valid(checkpoint.candidates(run)) if self.rank == 0 else None
        *place, attempt = self._from_rank_zero([*_place(found), int(time.time() * 1000)])
        if not any(place):
            self._set_aside_beyond(place)
            self._begin()
            return attempt
        loaded = found[1] if found else checkpoint.load(run / checkpoint.directory_name(*place), check=False)
        state = loaded.body.state
        if (state.config_hash, state.input_versions) != (self.job.config_hash, self.job.versions):
            raise TrainingError(f"{run}: holds a run of another configuration or other inputs; choose another run name")
        if state.stage not in {s.name for s in self.stages}:
            raise TrainingError(f"{run}: its checkpoint is of stage {state.stage!r}, which this model does not have")
        self._set_aside_beyond(place)
        load_dense_state(self.model, loaded.body.model, self.shard.table.weight if self.shard else None)
        self._enter(next(s for s in self.stages if s.name == state.stage))
        assert self.stepper is not None
        body = loaded.body
        self.stepper.remember(checkpoint.by_parameter(body.optimizer, self.trainable))
        if self.shard:
            self.shard.restore(loaded.shards, best=state.best_epoch > 0, other_best=body.best is not None)
            self._barrier()  # reading may take one rank longer than a step's patience
        if self.average is not None and body.average is not None:
            self.average.average = {name: tensor.to(self.device) for name, tensor in body.average.items()}
        self.state = state
        self._advance(world=self.world)
        if self.rank == 0 and state.best_epoch:
            self.best = body.best or _weights(self.model)
        if state.world == self.world:
            self._set_rng(loaded.rng[self.rank])
        else:
            self._reseed(state.epoch, state.position)
        return attempt

    def _set_aside_beyond(self, place: list[int]) -> None:
        """Else the refused ones would count as kept, and cost valid ones. Not before the run is known as ours."""
        if self.rank == 0:
            checkpoint.set_aside_beyond(Path(self.job.run), place)

    def _begin(self) -> None:
        """Take over the weights that the job names. A run with a checkpoint has them in there."""
        if self.job.initial is not None:
            start_from(self.model, self.job.model, self.splits.fields, Path(self.job.initial))
            if self.average is not None:
                self.average = MovingAverage(self.model, self.settings.ema)

    def _rng(self) -> dict[str, Tensor]:
        states = {"generator": self.generator.get_state(), "global": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_rng(self, states: Mapping[str, Tensor]) -> None:
        self.generator.set_state(states["generator"])
        torch.set_rng_state(states["global"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)

    def _reseed(self, *place: int) -> None:
        """Generators of a fresh start, or of a run that goes on with another number of workers."""
        where = (self.world, self.rank, *place)
        self.generator.manual_seed(seed_of(self.settings.seed, _NOISE, *where))
        torch.manual_seed(seed_of(self.settings.seed, _DROPOUT, *where))

    # Small things.

    def _spent(self, since: float) -> None:
        spent = time.perf_counter() - since
        self._advance(seconds=self.state.seconds + spent, train_seconds=self.state.train_seconds + spent)

    def _advance(self, **changes: Any) -> None:
        self.state = TrainState(**{**vars(self.state), **changes})

    def _barrier(self) -> None:
        if dist.is_initialized():
            dist.barrier(self.saving)

    def _from_rank_zero(self, values: list[int]) -> list[int]:
        tensor = torch.tensor(values, dtype=torch.int64)
        if dist.is_initialized():
            dist.broadcast(tensor, 0, self.saving)
        return [int(v) for v in tensor]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in dense_state(model).items()}


def _place(found: tuple[Path, Any] | None) -> list[int]:
    """(epoch, position, attempt) in a checkpoint's name; zeros without one."""
    return checkpoint.place_of(found[0]) if found else [0, 0, 0]
