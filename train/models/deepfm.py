"""DeepFM (Guo et al., 2017, arXiv 1703.04247): a factorisation machine and a perceptron on the same vectors v_n.

    y = b + sum_n w_n + sum_{n < m} <v_n, v_m> + mlp([v_1; ...; v_N])        (Eq. 1 to 4)

As f(h(x)): h = [sum_n w_n; products; hidden], the products kept per dimension, of which sum_{n < m} v_n v_m =
((sum_n v_n)^2 - sum_n v_n^2) / 2; f adds up the first two parts and applies the perceptron's last layer. A missing
field has a w of its own, as it has a vector, or with `missing: zero` takes no part.

Shapes: B samples, N fields, W embedding width, D = 1 + W + width of the perceptron.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.field_model import FieldModel, perceptron
from train.fields import FieldEncoder
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import DeepFMConfig
from train.table_shard import LargeTable


class DeepFM(FieldModel):
    """Single fields, pairs of them, and all."""

    def __init__(self, config: DeepFMConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.single = FieldEncoder(fields, 1, config.missing)
        self.mlp = perceptron(self.flat, config.hidden, config.dropout)
        self.summed = 1 + config.embedding_width
        self.width = self.summed + config.hidden[-1]
        self.out = nn.Linear(config.hidden[-1], 1)

    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        pairs_BW = (v_BNW.sum(dim=1).square() - v_BNW.square().sum(dim=1)) / 2
        return torch.cat([self.single(batch).sum(dim=1), pairs_BW, self.mlp(v_BNW.flatten(1))], dim=1)

    def head(self, z_BD: Tensor) -> Tensor:
        """f: y_B."""
        return z_BD[:, : self.summed].sum(dim=1) + self.out(z_BD[:, self.summed :])[:, 0]
