"""One optimizer step: forward and backward over micro-batches, the guard, clipping, AdamW, the moving average.

A sharded table (train.sharded) has an optimizer of its own, row-wise Adagrad; norm and clipping are of the whole
gradient, of dense weights and all ranks' rows.

A loss is a sum of terms, each a mean over what the GLOBAL batch holds (train.protocol.Term). The counts are added up
over ranks and micro-batches before the first backward pass, so that the gradient is that of the global batch,
however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from infra.errors import TrainingError
from train.projection import flat_gradient, project, put_gradient
from train.protocol import Stage, added
from train.ranks import sum_over_ranks
from train.rowwise_adagrad import RowWiseAdagrad, clip_whole_gradient
from train.settings import TrainingSettings
from train.sharded import sharded_tables

_EMA_WARMUP = 10
_ALSO_COUNTED = {  # torch's list lacks these two; they are told shapes
    torch.ops.aten.addmm_: lambda into, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
}


class StageLoss(nn.Module):
    """A stage's share of the global batch's loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module, stage: Stage, precision: str) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        self.precision = precision

    def forward(
        self, batch: Any, counts: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(each term's share of the loss, and the same without its weight)."""
        device = next(iter(counts.values())).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.stage.loss(batch, generator)
            return loss.shares(counts), loss.means(counts)


Pass = tuple[Tensor, dict[str, Tensor]]
"""(share of the loss, each term's share without its weight) of a micro-batch."""


@dataclass(frozen=True)
class Stepped:
    """What came of a step, the same on all ranks."""

    loss: float
    parts: dict[str, float]
    """Each term's mean over the global batch, without its weight."""
    notices: list[bool]


Known = Mapping[str, Mapping[str, Tensor]]
"""What AdamW knows of parameters, by their names: its slots (step, exp_avg, exp_avg_sq)."""


class Stepper:
    """The trained part of a model during one stage, and its optimizer.

    Frozen parameters are not in the optimizer at all: no gradient, no decay, no step. What it knew of them is kept for
    the stage that trains them again. Gains, biases and single numbers are not decayed: only what has two axes or more.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        trainable: set[str],
        settings: TrainingSettings,
        world: int,
        known: Known,
        sparse: RowWiseAdagrad | None = None,
    ) -> None:
        """`known`: of an earlier stage (`Stepper.known`). `sparse`: the optimizer of a sharded table, which goes from
        stage to stage as it is."""
        self.settings, self.stage, self.world, self.sparse = settings, stage, world, sparse
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trainable and not name.startswith(stage.frozen))
            parameter.grad = None
        sharded = sharded_tables(model)
        self.shards = [parameters[name] for name in sharded if parameters[name].requires_grad]
        self.names = [name for name, p in parameters.items() if p.requires_grad and name not in sharded]
        self.trained = [parameters[name] for name in self.names]
        groups = [
            {"params": [p for p in self.trained if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        self.paused: dict[str, Mapping[str, Tensor]] = {}
        self.remember({name: slots for name, slots in known.items() if not name.startswith(stage.forgets)})
        self.plain: nn.Module = StageLoss(model, stage, settings.precision)
        # Compiled inside DDP's wrapper: a rehearsal compiles all there is, without a word to other ranks.
        self.own: nn.Module = torch.compile(self.plain, dynamic=True) if settings.compile else self.plain  # type: ignore[assignment]
        self.module = self.own
        if world > 1:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
                self.own, list(sharded_tables(self.own))
            )
            # Without find_unused_parameters DDP regroups its buckets after the first step, and a resumed
            # run would add up gradients in another order than one that was never interrupted.
            self.module = DistributedDataParallel(
                self.own, find_unused_parameters=True, gradient_as_bucket_view=True, forward_sync_buffers=False
            )

    def remember(self, known: Known) -> None:
        """Take over what an optimizer knew, of trained parameters and of those that wait for their stage."""
        trained = dict(zip(self.names, self.trained, strict=True))
        for name, slots in known.items():
            if name in trained:
                self.optimizer.state[trained[name]] = {k: v.to(trained[name].device) for k, v in slots.items()}
            else:
                self.paused[name] = slots

    def known(self) -> Known:
        """What the optimizer knows by now; shares memory with it."""
        states = self.optimizer.state
        trained = {n: states[p] for n, p in zip(self.names, self.trained, strict=True) if p in states}
        return {**self.paused, **trained}

    def step(
        self, batches: Sequence[Any], generator: torch.Generator, learning_rate: float, notices: Sequence[bool]
    ) -> Stepped:
        """One step on all ranks. TrainingError on all ranks, and no change, if the loss or gradient is not finite."""
        counts, raised = self._agreed([batch.counts for batch in batches], notices)
        for parameter in (*self.trained, *self.shards):
            parameter.grad = None
        passes = self._projected if self.stage.project else self._summed
        loss, parts = torch.zeros((), device=raised.device), dict[str, Tensor]()
        for share, terms in passes(batches, counts, generator):
            loss = loss + share.detach()
            parts = {name: parts.get(name, 0) + value for name, value in terms.items()}
        norm = self._clipped(self.settings.clip_norm or math.inf)
        told = sum_over_ranks(torch.stack([loss, *parts.values()]).double())
        norm_size, mean, *rest = torch.cat([norm.double()[None], told, raised]).tolist()  # the one wait for the device
        self._require_finite(mean, "loss")
        self._require_finite(norm_size, "gradient norm")
        self._move(learning_rate)
        means = dict(zip(parts, rest, strict=False))
        return Stepped(mean, means, [flag > 0 for flag in rest[len(parts) :]])

    def _summed(self, batches: Sequence[Any], counts: dict[str, Tensor], generator: torch.Generator) -> Iterator[Pass]:
        """Both passes of each micro-batch; in the end each parameter has the gradient of the global batch's loss."""
        for number, batch in enumerate(batches):
            with self._no_exchange(number < len(batches) - 1):
                shares, terms = self.module(batch, counts, generator)
                share = added(shares)
                # DDP takes the mean over ranks, the shares are to be added up.
                (share * self.world).backward()
            yield share, terms

    def _projected(
        self, batches: Sequence[Any], counts: dict[str, Tensor], generator: torch.Generator
    ) -> Iterator[Pass]:
        """The same with each term's gradient of the whole global batch without its part against the others'."""
        gradients_MP: Tensor | float = 0.0
        for batch in batches:
            shares, terms = self.own(batch, counts, generator)
            last = len(shares) - 1
            rows = [flat_gradient(share, self.trained, more=i < last) for i, share in enumerate(shares.values())]
            gradients_MP = gradients_MP + torch.stack(rows)
            yield added(shares), terms
        assert isinstance(gradients_MP, Tensor)
        put_gradient(self.trained, project(sum_over_ranks(gradients_MP)))

    def rehearse(self, batch: Any, generator: torch.Generator) -> int:
        """FLOPs of a forward and backward pass, as torch counts them; a compiled step is compiled by this.

        Weights, gradients and random states are as before. The real steps are not counted: under the counter
        torch takes other kernels, whose sums differ in the last bit.
        """
        state, cuda = generator.get_state(), [p.device for p in self.trained[:1] if p.device.type == "cuda"]
        with torch.random.fork_rng(devices=cuda):
            flops = self._counted(batch, generator)
        generator.set_state(state)
        return flops

    def _counted(self, batch: Any, generator: torch.Generator) -> int:
        def both_passes(module: nn.Module) -> None:
            shares, _ = module(batch, batch.counts, generator)
            # Without the hooks of DDP.
            torch.autograd.grad(added(shares), [*self.trained, *self.shards], allow_unused=True)

        with FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED) as counter:
            both_passes(self.plain)
        if self.own is not self.plain:
            both_passes(self.own)
        return int(counter.get_total_flops())

    def _move(self, learning_rate: float) -> None:
        """One step of each optimizer, the sparse one at the same share of its highest step size."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.sparse is not None:
            for group in self.sparse.param_groups:
                group["lr"] = learning_rate / self.settings.learning_rate * self.settings.table_learning_rate
            self.sparse.step()

    def _clipped(self, limit: float) -> Tensor:
        """The norm of the whole gradient, which is then at most `limit`."""
        if self.shards:
            return clip_whole_gradient(self.trained, self.shards, limit)
        return nn.utils.clip_grad_norm_(self.trained, limit)

    def _agreed(self, counts: list[dict[str, Tensor]], notices: Sequence[bool]) -> tuple[dict[str, Tensor], Tensor]:
        """(counts of the global batch, notices of all ranks), in one exchange."""
        names = list(counts[0])
        total = torch.stack([torch.stack([c[name] for c in counts]).sum() for name in names]).double()
        total = sum_over_ranks(torch.cat([total, total.new_tensor([float(n) for n in notices])]))
        return dict(zip(names, total[: len(names)].float(), strict=True)), total[len(names) :]

    def _no_exchange(self, more: bool) -> Any:
        return self.module.no_sync() if more and self.world > 1 else nullcontext()  # type: ignore[operator]

    @staticmethod
    def _require_finite(value: float, what: str) -> None:
        if not math.isfinite(value):
            raise NotFiniteError(f"{what} is {value}")


class NotFiniteError(TrainingError):
    """A loss or gradient that is not finite; the weights were not changed."""


class MovingAverage:
    """avg <- d avg + (1 - d) w after every step, d = min(decay, (1 + n) / (10 + n)) after n steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Move towards the model's weights after its step number `steps`, from 0."""
        decay = min(self.decay, (1 + steps) / (_EMA_WARMUP + steps))
        weights = dict(model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [weights[n] for n in self.average], 1 - decay)

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """The model with the averages in the place of its weights, for validation and for publishing."""
        weights = dict(model.named_parameters())
        kept = {name: p.detach().clone() for name, p in weights.items()}
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in weights.items():
                    parameter.copy_(kept[name])


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """The step size of step `step` (from 0) of a run of `steps`.

    >>> s = TrainingSettings(learning_rate=1.0, warmup_steps=2, schedule="linear")
    >>> [learning_rate(s, step, 6) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step - warmup) / max(1, steps - warmup)
    if settings.schedule == "linear":
        return peak * (1 - gone)
    if settings.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * gone))
    return peak
