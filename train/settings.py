"""How a model is trained, apart from which model: the `training` section of a recipe. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from infra.config import Settings
from train.architecture import FORMAT_VERSION
from train.configs import ModelConfig
from train.ranking_configs import DeepFMConfig, FieldShape, WrapperShape

Count = Annotated[int, Field(ge=1)]
OPERATIONAL = {
    "workers", "threads", "use_gpu", "max_failures", "timeout_seconds", "checkpoint_every", "checkpoint_seconds",
    "keep_checkpoints", "cache",
}  # fmt: skip
"""How a run is carried out, not what it learns: another choice goes on with the same run. Another number of workers
draws dropout and noise otherwise, so the weights are others, as those of another seed are."""


class TrainingSettings(Settings):
    """Length, optimizer, workers and checkpoints of one training run.

    >>> TrainingSettings(workers=(1, 4), batch_size=512).max_workers
    4
    """

    epochs: int = Field(20, ge=1)
    """Passes over the training split, all stages of the model together."""
    batch_size: int = Field(256, ge=1)
    """Rows of the GLOBAL batch, split over the workers; at least one row for each worker."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches that each worker's share is cut into; their gradients are added up before the step."""
    learning_rate: float = Field(1e-3, gt=0)
    """AdamW's step size at its highest."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the step size goes on after the warm-up: it stays, or falls to 0 at the end of the last epoch."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the step size rises from 0."""
    weight_decay: float = Field(1e-5, ge=0)
    """AdamW's decoupled decay: each step shrinks every trained weight by learning_rate * weight_decay. What has one
    axis or none is left out: gains, biases, single numbers."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest L2 norm of the whole gradient; 0 = no clipping (the norm is still checked to be finite)."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which is then what is validated and published; 0 = none."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of matrix products: float32, TF32 (NVIDIA GPUs), or bfloat16 under autocast with float32 weights."""
    compile: bool = False
    """torch.compile the step; the first step of each stage takes minutes longer."""
    sharded: bool = False
    """Spread the rows of the table of items, or of all fields' values, over the workers, for tables too large for one:
    each holds 1 / workers of them, and only the rows that a step looks up travel and move. They are trained with
    row-wise Adagrad, without weight decay; all else with AdamW. A sequence model needs `config.negatives` for it."""
    table_learning_rate: float = Field(0.1, gt=0)
    """Row-wise Adagrad's step size at its highest, for a `sharded` table; it follows the same schedule. Much larger
    than AdamW's, for Adagrad divides it by the root of the sum of a row's squared gradients, not of their mean."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of weights, data order, time steps, noise and dropout."""
    start: Literal["fresh", "champion"] = "fresh"
    """Weights to start from: fresh ones, or those of the champion of before the run date, its tables grown for new
    vocabulary entries (fresh ones while there is no champion). From the champion a fraction of the epochs is enough,
    and ADRec skips its pre-training (config.pretrain_share: 0): so make the first champion with a fresh recipe of the
    same name."""
    loader: Literal["auto", "resident", "streaming"] = "auto"
    """Training rows from memory maps, shuffled as a whole; or row group by row group, shuffled within a window;
    auto = resident up to `resident_gb`."""
    resident_gb: float = Field(8.0, gt=0)
    """Largest training split (GiB in memory) that `auto` keeps in memory maps, one copy per node."""
    window: int = Field(200_000, ge=1)
    """Rows that a stream shuffles together when streaming."""
    streams: int = Field(8, ge=1)
    """Streams of a streaming run, at least as many as workers; with another number rows come in another order."""
    cache: Path | None = None
    """Folder on each node's own disk for the memory maps; null = in the system's temporary directory."""
    workers: Count | tuple[Count, Count] = 1
    """Training processes; [min, max] lets Ray start with what the cluster has, and grow when there is more. A node that
    is lost without notice is a failure: allow for some (`max_failures`)."""
    threads: int = Field(1, ge=1)
    """CPU threads of each worker, and the CPUs that it reserves."""
    use_gpu: bool | Literal["auto"] = False
    """One GPU for each worker; auto = if the cluster has one for every worker."""
    max_failures: int = Field(0, ge=0)
    """How often a failed worker group is restarted from the latest checkpoint."""
    timeout_seconds: int = Field(45, ge=5)
    """How long a rank waits for the others in a step before it gives them up for dead."""
    checkpoint_every: int = Field(1, ge=1)
    """Epochs between checkpoints; the last epoch always writes one."""
    checkpoint_seconds: float = Field(0, ge=0)
    """Seconds after which a checkpoint is written within an epoch; 0 = only between epochs."""
    validate_every: int = Field(1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    validation_steps: int | None = Field(None, ge=0)
    """Steps of a diffusion model's reverse process at validation, all of them where it has fewer or this is null;
    0 = one pass without noise. Models without a process do not care."""
    patience: int = Field(0, ge=0)
    """Stop after this many validations of the last stage in a row without improvement; 0 = never."""
    keep_checkpoints: int = Field(2, ge=2)
    """Newest checkpoints to keep; with two, a damaged one still leaves its predecessor."""

    @property
    def min_workers(self) -> int:
        """The fewest workers that the run accepts."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """The most workers that the run uses."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _workers_fit(self) -> TrainingSettings:
        if self.min_workers > self.max_workers:
            raise ValueError(f"workers [{self.min_workers}, {self.max_workers}]: the minimum exceeds the maximum")
        if self.batch_size < self.max_workers:
            raise ValueError(
                f"batch_size {self.batch_size} is the global batch and leaves some of {self.max_workers} "
                "workers without a row; raise batch_size or lower workers"
            )
        return self

    @model_validator(mode="after")
    def _has_an_effect(self) -> TrainingSettings:
        if self.table_learning_rate != type(self).model_fields["table_learning_rate"].default and not self.sharded:
            raise ValueError("table_learning_rate is the step size of a sharded table; set sharded, or leave it out")
        return self

    @model_validator(mode="after")
    def _a_stream_for_every_worker(self) -> TrainingSettings:
        # What `auto` comes to is known when the data is opened, which judges it then.
        if self.loader == "streaming" and self.streams < self.max_workers:
            raise ValueError(
                f"streams {self.streams} leaves some of {self.max_workers} workers without one; raise streams or lower "
                "workers"
            )
        return self

    @model_validator(mode="after")
    def _whole_tables_only(self) -> TrainingSettings:
        wrong = {"compile": self.compile, "ema": self.ema > 0, "start: champion": self.start == "champion"}
        for name in (name for name, asked in wrong.items() if self.sharded and asked):
            raise ValueError(f"{name} does not go with sharded, where a worker has a part of the table; give up one")
        return self


def decisive(config: ModelConfig, training: TrainingSettings) -> dict[str, Any]:
    """What decides the weights beside the data: with another number of workers or another cache they are the same."""
    settings = training.model_dump(mode="json", exclude=OPERATIONAL)
    return {"model": config.model_dump(mode="json"), "training": settings, "format": FORMAT_VERSION}


def sharding_problem(config: ModelConfig, training: TrainingSettings) -> str | None:
    """Why this model cannot be trained with `training.sharded`; None if it can, or is not asked to be."""
    if not training.sharded:
        return None
    if isinstance(config, FieldShape | WrapperShape):
        second = "training.sharded: deepfm has a second table, which every worker would hold whole; take another model"
        return second if isinstance(config.encoder, DeepFMConfig) else None
    if getattr(config, "combine", None) == "project":
        return "training.sharded: config.combine: project needs every rank's whole gradient; set it to average"
    if getattr(config, "seen_padding", False):
        return "training.sharded: config.seen_padding needs a vector of padding, which a sharded table lacks; unset it"
    if getattr(config, "align", None) == "shrinking":
        return "training.sharded: config.align: shrinking needs the whole table's gradient; set it to frozen"
    negatives = getattr(config, "negatives", None)
    if negatives is None:
        return f"training.sharded: model {config.model} learns no item table by a sampled softmax; leave it false"
    if negatives == 0:
        return (
            "training.sharded: config.negatives is 0, and the softmax over the whole catalogue needs the whole table; "
            "set config.negatives (say 8192) or leave training.sharded false"
        )
    return None
