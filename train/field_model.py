"""What the ranking models over feature fields share: the fields' vectors, answers f(h(x)), and the loss.

Shapes: B samples, N fields, W embedding width, D width of h(x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.dropout import Dropout
from train.fields import FieldEncoder
from train.protocol import FieldSpec, LossParts, RankingBatch, Term
from train.ranking_configs import FieldShape
from train.table_shard import LargeTable


class FieldModel(nn.Module, ABC):
    """p = sigmoid(f(h(x))), with `encode` = h and `head` = f: what AsymDiffRec can wrap."""

    width: int
    """D."""
    out: nn.Linear

    def __init__(self, config: FieldShape, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        """`table`: of the fields' values, to be used instead of a fresh one."""
        super().__init__()
        self.fields = FieldEncoder(fields, config.embedding_width, config.missing, config.tied, table)
        self.flat = len(fields) * config.embedding_width

    def encode(self, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        return self.encode_fields(self.fields(batch), batch)

    @abstractmethod
    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h of the fields' vectors, which may be others than `fields` has of the batch."""

    def head(self, z_BD: Tensor) -> Tensor:
        """f: y_B; the layer `out`, unless a model says otherwise."""
        y_B: Tensor = self.out(z_BD)[:, 0]
        return y_B

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(h(x)). Put the model in eval mode before scoring."""
        return self.head(self.encode(batch))

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """Binary cross-entropy, mean over the batch."""
        return LossParts({"bce": Term(task_sum(self.logits(batch), batch), "samples")}, batch.counts)


def task_sum(y_B: Tensor, batch: RankingBatch) -> Tensor:
    """Binary cross-entropy of the batch's labels, summed."""
    return F.binary_cross_entropy_with_logits(y_B, batch.label_B, reduction="sum")


def perceptron(inputs: int, widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of these widths, each with ReLU and dropout."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, after), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers)
