"""The training loop of one worker: stages, steps, validation, checkpoints. `train_worker` is Ray's entry.

All ranks make the same steps. A rank's loss is weighted by its share of the global batch's targets
(rows for ranking), so that the averaged gradient is that of the global batch, however it is split.

"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infra.errors import TrainingError
from infra.lake import Lake
from infra.tables import FIRST_INDEX
from train import checkpoint
from train.artifact import build
from train.checkpoint import Body, TrainState
from train.configs import ModelConfig, RankingConfig, SequenceConfig
from train.loader import RankingData, SequenceData, batches
from train.protocol import FieldSpec, SequenceBatch, Stage, to_device
from train.settings import TrainingSettings
from train.validation import Data, better, seed_of, sum_over_ranks, validate

Report = Callable[[dict[str, Any], Path | None], None]
_WEIGHTS, _NOISE, _DROPOUT = range(3)  # independent random streams of one seed; train.validation has the fourth


@dataclass(frozen=True)
class Job:
    """What a worker has to know. `to_config` and `from_config` carry it through Ray as plain JSON."""

    lake: str
    versions: dict[str, int]
    as_of: str
    model: ModelConfig
    training: TrainingSettings
    catalogue: int | None
    run: str
    """Directory of the checkpoints, on storage that every worker sees."""
    config_hash: str

    def to_config(self) -> dict[str, Any]:
        """JSON values only."""
        settings = {"model": self.model.model_dump(mode="json"), "training": self.training.model_dump(mode="json")}
        return {**vars(self), **settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Job:
        """The inverse of `to_config`, validated."""
        model: TypeAdapter[ModelConfig] = TypeAdapter(SequenceConfig | RankingConfig)
        settings = {
            "model": model.validate_python(config["model"]),
            "training": TrainingSettings.model_validate(config["training"]),
        }
        return cls(**{**config, **settings})


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a TorchTrainer: trains to the end, resuming from the newest valid checkpoint."""
    import ray.train
    import ray.train.torch
    from ray.train import Checkpoint, CheckpointUploadMode

    job = Job.from_config(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.training.threads)
    if device.type == "cpu":
        torch.set_flush_denormal(True)  # peers.md B2: denormals made epochs 10 to 25 times slower

    def report(metrics: dict[str, Any], path: Path | None) -> None:
        made = Checkpoint.from_directory(path) if path is not None and rank == 0 else None
        ray.train.report(metrics, made, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)

    Worker(job, rank, world, device).run(report)


class StageLoss(nn.Module):
    """A stage's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.stage = stage

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, parts)."""
        loss = self.stage.loss(batch, generator)
        return loss.total, loss.parts


class Worker:
    """One rank of a run. Without a process group it is the whole run."""

    def __init__(self, job: Job, rank: int, world: int, device: torch.device) -> None:
        self.job, self.rank, self.world, self.device = job, rank, world, device
        self.settings = job.training
        self.train, self.valid, fields = load_data(job)
        torch.manual_seed(seed_of(self.settings.seed, _WEIGHTS))
        self.model = build(job.model, job.catalogue, fields).to(device)
        trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
        self.stages = stages_of(self.model, self.settings.epochs)
        for stage in self.stages:
            _require_parameters(stage, trainable)
        self.trainable = trainable
        self.generator = torch.Generator()
        self._reseed(epoch=0)
        self.state = TrainState(
            epoch=0, step=0, stage="", finished=False, world=world,
            config_hash=job.config_hash, input_versions=job.versions,
        )  # fmt: skip
        self.best: dict[str, Tensor] | None = None
        self.names: list[str] = []
        self.module: nn.Module | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def run(self, report: Report) -> None:
        """Train to the end. `report` is called by every rank after every epoch, with the checkpoint if any."""
        attempt = self._resume()
        while not self.state.finished:
            stage = self.stages[self.state.epoch]
            if stage.name != self.state.stage:
                self._enter(stage)
            metrics = self._epoch(stage)
            path = None
            if self.state.finished or self.state.epoch % self.settings.checkpoint_every == 0:
                path = Path(self.job.run) / checkpoint.directory_name(self.state.epoch, attempt)
                self._save(path)
            report(metrics, path)

    # Stages and steps.

    def _enter(self, stage: Stage) -> None:
        """Freeze, collect the parameters that are left, and keep what AdamW knows of those that stay."""
        known = self.optimizer.state if self.optimizer is not None else {}
        parameters = dict(self.model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in self.trainable and not name.startswith(stage.frozen))
            parameter.grad = None
        self.names = [name for name, parameter in parameters.items() if parameter.requires_grad]
        # Frozen parameters are not in the optimizer at all, so decay cannot move them (peers.md, defect 2).
        trained = [parameters[name] for name in self.names]
        self.optimizer = torch.optim.AdamW(
            trained, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=False
        )
        for parameter in trained:
            if parameter in known:
                self.optimizer.state[parameter] = known[parameter]
        self.module = None  # the previous wrapper's hooks must be gone before the next one sets its own
        self.module = StageLoss(self.model, stage)
        if self.world > 1:
            # Without find_unused_parameters DDP regroups its buckets after the first step, and a resumed
            # run would add up gradients in another order than one that was never interrupted.
            self.module = DistributedDataParallel(self.module, find_unused_parameters=True)
        self._advance(stage=stage.name)

    def _epoch(self, stage: Stage) -> dict[str, Any]:
        """One pass over the training split, then validation if it is due."""
        started, sums, steps = time.perf_counter(), dict[str, float](), 0
        self.model.train()
        for item in self._batches():
            for name, value in self._step(item.batch, stage, item.position).items():
                sums[name] = sums.get(name, 0.0) + value
            steps += 1
        rows = min(len(self.train), steps * self.settings.batch_size)
        train_seconds = time.perf_counter() - started
        epoch = self.state.epoch + 1
        metrics: dict[str, Any] = {
            "epoch": epoch, "stage": stage.name, **{k: v / steps for k, v in sums.items()},
            "examples_per_second": rows / train_seconds,
        }  # fmt: skip
        last = epoch == self.settings.epochs
        self._advance(epoch=epoch, finished=last, step=self.state.step + steps, examples=self.state.examples + rows,
                      train_seconds=self.state.train_seconds + train_seconds)  # fmt: skip
        if last or epoch % self.settings.validate_every == 0:
            metrics |= self._validated(final_stage=stage is self.stages[-1])
        self._advance(seconds=self.state.seconds + time.perf_counter() - started)
        metrics |= {"step": self.state.step, "seconds": self.state.seconds}
        return metrics

    def _batches(self) -> Iterator[Any]:
        return batches(
            self.train, global_batch=self.settings.batch_size, rank=self.rank, world=self.world,
            seed=self.settings.seed, epoch=self.state.epoch,
        )  # fmt: skip

    def _step(self, batch: Any, stage: Stage, position: int) -> dict[str, float]:
        """One optimizer step on all ranks, or TrainingError on all ranks before it."""
        assert self.module is not None
        assert self.optimizer is not None
        batch = to_device(batch, self.device)
        loss, parts = self.module(batch, self.generator)
        weight = _weight(batch)
        summed = sum_over_ranks(torch.stack([loss.detach().double() * weight, loss.new_tensor(weight).double()]))
        mean, total_weight = (summed[0] / summed[1]).item(), summed[1].item()
        self._require_finite(mean, "loss", stage, position)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * (weight * self.world / total_weight)).backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm or math.inf).item()
        self._require_finite(norm, "gradient norm", stage, position)
        self.optimizer.step()
        return {"loss": mean, **{f"loss_{name}": value.item() for name, value in parts.items()}}

    def _require_finite(self, value: float, what: str, stage: Stage, position: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} is {value} in stage {stage.name!r}, epoch {self.state.epoch + 1}, step {position + 1} of the "
                f"epoch ({self.state.step + position + 1} of the run); the weights were not changed. Lower "
                "training.learning_rate or training.clip_norm"
            )

    def _validated(self, final_stage: bool) -> dict[str, Any]:
        """Validate, and in the last stage compare with the best so far and count towards patience."""
        name, value = validate(self.model, self.valid, self.settings, self.rank, self.world, self.device)
        if final_stage:
            best = self.state.best_metric
            if best is None or better(name, value, best):
                self._advance(best_metric=value, best_epoch=self.state.epoch, bad_validations=0)
                self.best = _weights(self.model) if self.rank == 0 else None
            else:
                bad = self.state.bad_validations + 1
                out_of_patience = 0 < self.settings.patience <= bad
                self._advance(bad_validations=bad, finished=self.state.finished or out_of_patience)
        return {name: value, "best_epoch": self.state.best_epoch}

    # Checkpoints.

    def _save(self, path: Path) -> None:
        assert self.optimizer is not None
        body = None
        if self.rank == 0:
            tensors, scalars = checkpoint.optimizer_state(self.optimizer, self.names)
            best = None if self.state.best_epoch == self.state.epoch else self.best
            body = Body(self.state, dict(self.model.state_dict()), tensors, scalars, best)
        checkpoint.save(path, self.rank, self._rng(), body, _barrier)

    def _resume(self) -> int:
        """Continue from the newest valid checkpoint of this run; returns the number of this attempt.

        The directory is the record, not Ray's list of reports: it also knows a checkpoint that was
        completed just before the run was killed, and the one before a damaged one.
        """
        run = Path(self.job.run)
        found = checkpoint.latest_valid(checkpoint.candidates(run)) if self.rank == 0 else None
        epoch, made, attempt = _from_rank_zero([*_position(found), int(time.time() * 1000)], self.device)
        if epoch == 0:
            return attempt
        loaded = found[1] if found else checkpoint.load(run / checkpoint.directory_name(epoch, made))
        state = loaded.body.state
        if (state.config_hash, state.input_versions) != (self.job.config_hash, self.job.versions):
            raise TrainingError(f"{run}: holds a run of another configuration or other inputs; choose another run name")
        if state.stage not in {s.name for s in self.stages}:
            raise TrainingError(f"{run}: its checkpoint is of stage {state.stage!r}, which this model does not have")
        self.model.load_state_dict(loaded.body.model)
        self._enter(next(s for s in self.stages if s.name == state.stage))
        assert self.optimizer is not None
        checkpoint.restore_optimizer(self.optimizer, self.names, loaded.body.optimizer, loaded.body.optimizer_scalars)
        self.state = state
        self._advance(world=self.world)
        if self.rank == 0 and state.best_epoch:
            self.best = loaded.body.best or _weights(self.model)
        if state.world == self.world:
            self._set_rng(loaded.rng[self.rank])
        else:
            self._reseed(state.epoch)
        return attempt

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

    def _reseed(self, epoch: int) -> None:
        """Generators of a fresh start, or of a run that goes on with another number of workers."""
        where = (self.world, self.rank, epoch)
        self.generator.manual_seed(seed_of(self.settings.seed, _NOISE, *where))
        torch.manual_seed(seed_of(self.settings.seed, _DROPOUT, *where))

    def _advance(self, **changes: Any) -> None:
        self.state = TrainState(**{**vars(self.state), **changes})


def load_data(job: Job) -> tuple[Data, Data, tuple[FieldSpec, ...]]:
    """(training split, validation split, fields) of the job's pinned versions."""
    lake = Lake(job.lake)
    if job.model.kind == "ranking":
        versions = job.versions["samples"], job.versions["fields"]
        train, valid = (RankingData.from_lake(lake, *versions, job.as_of, split) for split in ("train", "valid"))
        return train, valid, train.fields
    longest, version = getattr(job.model, "max_length", None), job.versions["sequences"]
    chunks, targets = (SequenceData.from_lake(lake, version, job.as_of, split, longest) for split in ("train", "valid"))
    for data in (chunks, targets):
        if (largest := int(data.items.values.max(initial=0))) >= (job.catalogue or 0):
            raise TrainingError(
                f"table sequences version {version} has item index {largest}, but the vocabulary ends before "
                f"{job.catalogue}; the two versions do not belong together"
            )
    return chunks, targets, ()


def stages_of(model: Any, epochs: int) -> list[Stage]:
    """The stage of every epoch, in order; a model without `stages` has one, named 'main'."""
    stages: Sequence[Stage] = model.stages() if hasattr(model, "stages") else [Stage("main", 1.0, model.loss)]
    lengths = split_epochs([s.share for s in stages], epochs)
    return [stage for stage, length in zip(stages, lengths, strict=True) for _ in range(length)]


def split_epochs(shares: Sequence[float], epochs: int) -> list[int]:
    """Whole epochs by share: at least one each, together `epochs`, otherwise as near as possible.

    >>> split_epochs([0.3, 0.1, 0.6], 10), split_epochs([0.3, 0.1, 0.6], 4)
    ([3, 1, 6], [1, 1, 2])
    """
    if epochs < len(shares):
        raise TrainingError(f"training.epochs {epochs} is less than the model's {len(shares)} stages; raise it")
    exact = [share / sum(shares) * epochs for share in shares]
    lengths = [max(1, math.floor(e + 1e-9)) for e in exact]
    while sum(lengths) != epochs:
        step = 1 if sum(lengths) < epochs else -1
        open_to_change = [i for i, n in enumerate(lengths) if n + step >= 1]
        lengths[max(open_to_change, key=lambda i: step * (exact[i] - lengths[i]))] += step
    return lengths


def _weight(batch: Any) -> int:
    """Targets of a sequence batch, rows of a ranking batch: what a loss is the mean over."""
    if isinstance(batch, SequenceBatch):
        return int((batch.targets_BL >= FIRST_INDEX).sum())
    return len(batch.label_B)


def _require_parameters(stage: Stage, trainable: set[str]) -> None:
    for prefix in stage.frozen:
        if not any(name.startswith(prefix) for name in trainable):
            raise TrainingError(f"stage {stage.name!r} freezes {prefix!r}, but no parameter's name begins so")
    if all(name.startswith(stage.frozen) for name in trainable):
        raise TrainingError(f"stage {stage.name!r} freezes every parameter; nothing is left to train")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _position(found: tuple[Path, Any] | None) -> list[int]:
    """(epoch, attempt) in a checkpoint's name; zeros without one."""
    return [int(part) for part in found[0].name.split("-")[1:]] if found else [0, 0]


def _from_rank_zero(values: list[int], device: torch.device) -> list[int]:
    tensor = torch.tensor(values, dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.broadcast(tensor, 0)
    return [int(v) for v in tensor]


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
