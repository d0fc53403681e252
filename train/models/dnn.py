"""DNN: the vectors of all fields, concatenated, through a multi-layer perceptron to one logit.

p = sigmoid(f(h(x))): h = field vectors -> hidden layers, f = one linear layer.

Shapes: B samples, N fields, W embedding width, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.configs import DNNConfig
from train.dropout import Dropout
from train.fields import FieldEncoder
from train.protocol import FieldSpec, LossParts, RankingBatch, Term


class DNN(nn.Module):
    """The plain ranking model, and the base that AsymDiffRec wraps."""

    def __init__(self, config: DNNConfig, fields: Sequence[FieldSpec]) -> None:
        super().__init__()
        self.config = config
        self.width = config.hidden[-1]
        self.fields = FieldEncoder(fields, config.embedding_width, config.missing)
        widths = (len(fields) * config.embedding_width, *config.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), Dropout(config.dropout)]
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(self.width, 1)

    def encode(self, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        return self.mlp(self.fields(batch).flatten(1))

    def head(self, z_BD: Tensor) -> Tensor:
        """f: y_B."""
        return self.out(z_BD)[:, 0]

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(h(x)). Put the model in eval mode before scoring."""
        return self.head(self.encode(batch))

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """Binary cross-entropy, mean over the batch."""
        bce = F.binary_cross_entropy_with_logits(self.logits(batch), batch.label_B, reduction="sum")
        return LossParts({"bce": Term(bce, "samples")}, batch.counts)
