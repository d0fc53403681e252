"""What the ranking models around a base p = f(h(x)) share: AsymDiffRec, and what it is compared with.

Shapes: B samples, N fields, D width of h(x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.diffusion.dropping import drop, drop_each
from train.field_model import FieldModel
from train.models import build_ranking
from train.protocol import FieldSpec, LossParts, RankingBatch, Term
from train.ranking_configs import DroppingShape, WrapperShape
from train.table_shard import LargeTable


class Wrapped(nn.Module, ABC):
    """A model that makes a base robust: what it serves is `logits`, which may go another way than the base's."""

    def __init__(self, config: WrapperShape, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__()
        base = build_ranking(config.base, fields, table)
        assert isinstance(base, FieldModel)  # the configuration allows no other
        self.base = base

    @abstractmethod
    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """The model's terms, each a mean over the batch."""

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B; the base's, unless a model says otherwise. Put the model in eval mode before scoring."""
        return self.base.logits(batch)


def samples(sum_: Tensor, weight: float = 1.0) -> Term:
    """A term that is a mean over samples."""
    return Term(sum_, "samples", weight)


def dropped(batch: RankingBatch, config: DroppingShape, generator: torch.Generator) -> RankingBatch:
    """The batch with fields dropped: each with probability `rate`, or None: T of them by `drop_power`."""
    missing_BN = batch.missing_BN
    if config.rate is None:
        return batch.with_missing(drop(missing_BN, generator, power=config.drop_power))
    return batch.with_missing(drop_each(missing_BN, config.rate, generator))


def two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A linear layer, ReLU, a linear layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
