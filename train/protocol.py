"""What a model is: two small protocols, so that loader, loop, evaluation and registry are written once.

Shapes: B batch, L length, D width, V catalogue rows (0 padding, 1 unknown included), R vectors per
user, F categorical fields, G numeric fields, N all fields, K values of a multi-valued field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from infra.tables import Kind


@dataclass(frozen=True)
class LossParts:
    """`total` is differentiated; `parts` are its named terms, detached, for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceBatch:
    """Histories, LEFT-padded with 0, oldest first, so that position -1 is always the latest event.

    items_BL: int64 item indices. targets_BL: the item that follows each position (0 = no target);
    empty (B, 0) at inference.
    """

    items_BL: Tensor
    targets_BL: Tensor


@dataclass(frozen=True)
class FieldSpec:
    """One feature field of `samples`, in mask order. `size` counts padding and unknown (0 if numeric)."""

    name: str
    kind: Kind
    size: int = 0
    mean: float = 0.0
    std: float = 1.0
    missing_rate: float = 0.0


@dataclass(frozen=True)
class RankingBatch:
    """Labelled impressions.

    categorical_BF: int64 indices; numeric_BG: float32 raw values (0 where missing); multi: one
    int64 (B, K) per multi-valued field, 0-padded; missing_BN: bool over ALL fields in mask order;
    label_B: float32. Categorical, numeric and multi keep the order of the specs among themselves.
    A missing field's value here is meaningless: only missing_BN decides.
    """

    categorical_BF: Tensor
    numeric_BG: Tensor
    multi: tuple[Tensor, ...]
    missing_BN: Tensor
    label_B: Tensor

    def with_missing(self, missing_BN: Tensor) -> RankingBatch:
        """The same impressions with another set of missing fields."""
        return replace(self, missing_BN=missing_BN)


Batch = TypeVar("Batch", SequenceBatch, RankingBatch)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with every tensor on `device`."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(v.to(device, non_blocking=True) for v in value)
        return value.to(device, non_blocking=True)

    return replace(batch, **{f.name: move(getattr(batch, f.name)) for f in fields(batch)})


@dataclass(frozen=True)
class Stage:
    """One named stage of training.

    `share` of the run's epochs; `frozen`: prefixes of parameter names that do not move at all (no
    gradient, no weight decay, no optimizer state). `loss` takes (batch, generator).
    """

    name: str
    share: float
    loss: Callable[..., LossParts]
    frozen: tuple[str, ...] = ()


@runtime_checkable
class SequenceModel(Protocol):
    """Answers with vectors; items are retrieved by inner product, several vectors merged by the maximum."""

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Training loss; time steps and noise from `generator`, dropout from the global one."""
        ...

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_BRD: R interests or noise draws per user; `steps` of the reverse process (None: the model's own)."""
        ...

    def item_table(self) -> Tensor:
        """e_VD: row i is item index i; rows 0 and 1 are never candidates."""
        ...


@runtime_checkable
class RankingModel(Protocol):
    """Scores impressions."""

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """Training loss on the batch's labels."""
        ...

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B: log-odds of a positive label."""
        ...


@runtime_checkable
class Encodable(RankingModel, Protocol):
    """A ranking model as f(h(x)), which is all that AsymDiffRec needs to wrap it."""

    width: int

    def encode(self, batch: RankingBatch) -> Tensor:
        """h: z_BD, the representation that the head consumes."""
        ...

    def head(self, z_BD: Tensor) -> Tensor:
        """f: y_B."""
        ...
