"""DNN: the vectors of all fields, concatenated, through a multi-layer perceptron to one logit.

h = field vectors -> hidden layers, f = one linear layer.

Shapes: B samples, N fields, W embedding width, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from train.field_model import FieldModel, perceptron
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import DNNConfig
from train.table_shard import LargeTable


class DNN(FieldModel):
    """The plain ranking model."""

    def __init__(self, config: DNNConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.width = config.hidden[-1]
        self.mlp = perceptron(self.flat, config.hidden, config.dropout)
        self.out = nn.Linear(self.width, 1)

    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        z_BD: Tensor = self.mlp(v_BNW.flatten(1))
        return z_BD
