"""DCN-V2 (Wang et al., 2021, arXiv 2008.13535): explicit products of fields beside a perceptron.

    x_0 = all fields' vectors,   x_{l+1} = x_0 * (W_l x_l + b_l) + x_l   (Eq. 1),   h = [x_L; mlp(x_0)]

The parallel form (section 3, Fig. 1b); W_l = U_l V_l with a `rank` (section 4.1, one expert). f = one linear layer.

Shapes: B samples, N fields, W embedding width, C = N W, D = C + width of the perceptron.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.field_model import FieldModel, perceptron
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import DCNv2Config
from train.table_shard import LargeTable


class DCNv2(FieldModel):
    """Cross network and perceptron side by side."""

    def __init__(self, config: DCNv2Config, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.crosses = nn.ModuleList(_matrix(self.flat, config.rank) for _ in range(config.crosses))
        self.mlp = perceptron(self.flat, config.hidden, config.dropout)
        self.width = self.flat + config.hidden[-1]
        self.out = nn.Linear(self.width, 1)

    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        x0_BC = x_BC = v_BNW.flatten(1)
        for cross in self.crosses:
            x_BC = torch.addcmul(x_BC, x0_BC, cross(x_BC))
        return torch.cat([x_BC, self.mlp(x0_BC)], dim=1)


def _matrix(width: int, rank: int | None) -> nn.Module:
    """W_l x + b_l."""
    if rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
