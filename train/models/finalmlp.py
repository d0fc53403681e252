"""FinalMLP (Mao et al., 2023, arXiv 2304.00902): two perceptrons that see the fields differently, fused bilinearly.

    x_i = 2 sigmoid(gate_i(c_i)) * x,  o_i = mlp_i(x_i)  (i = 1, 2),   y = b + w_1 o_1 + w_2 o_2 + sum_j o_1j W_j o_2j

Eq. 3, 4 and 7 to 9: c_i are the vectors of the `contexts` fields or a learned one, j the blocks (heads) of o. The
contexts' vectors are those of the fields, where the published code has other ones for the gates. h = [o_1; o_2].

Shapes: B samples, N fields, W embedding width, C = N W, D = O + P widths of the perceptrons, J heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infra.errors import ConfigError
from train.field_model import FieldModel, perceptron
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import FinalMLPConfig
from train.table_shard import LargeTable


class Gate(nn.Module):
    """2 sigmoid(two layers on the context): 1 on average at first, so a field is let through as it is."""

    def __init__(self, fields: Sequence[FieldSpec], names: Sequence[str], width: int, hidden: int) -> None:
        super().__init__()
        places = {spec.name: place for place, spec in enumerate(fields)}
        if unknown := [name for name in names if name not in places]:
            raise ConfigError(f"config.contexts: {unknown[0]!r} is no field; the fields are {', '.join(places)}")
        self.at = [places[name] for name in names]
        self.learned_W = None if names else nn.Parameter(torch.zeros(width))
        self.layers = nn.Sequential(
            nn.Linear(max(1, len(names)) * width, hidden), nn.ReLU(), nn.Linear(hidden, len(fields) * width)
        )

    def forward(self, e_BNW: Tensor) -> Tensor:
        """Factors (B, C), of a learned context (1, C): a module may not be given a leaf (train.step counts FLOPs)."""
        context = e_BNW[:, self.at].flatten(1) if self.learned_W is None else self.learned_W[None]
        return 2 * torch.sigmoid(self.layers(context))


class FinalMLP(FieldModel):
    """Two streams and their fusion."""

    def __init__(self, config: FinalMLPConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.gates = nn.ModuleList(
            Gate(fields, names, config.embedding_width, config.gate) for names in config.contexts
        )
        widths = (config.hidden, config.second)
        self.streams = nn.ModuleList(perceptron(self.flat, w, config.dropout) for w in widths)
        self.first, second = (w[-1] for w in widths)
        self.heads = config.heads
        self.width = self.first + second
        self.out = nn.Linear(self.width, 1)
        self.fusion_JOP = nn.Parameter(torch.empty(config.heads, self.first // config.heads, second // config.heads))
        nn.init.xavier_normal_(self.fusion_JOP)

    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        x_BC = v_BNW.flatten(1)
        return torch.cat([mlp(x_BC * gate(v_BNW)) for gate, mlp in zip(self.gates, self.streams, strict=True)], dim=1)

    def head(self, z_BD: Tensor) -> Tensor:
        """f: y_B."""
        o_BJO = z_BD[:, : self.first].unflatten(1, (self.heads, -1))
        p_BJP = z_BD[:, self.first :].unflatten(1, (self.heads, -1))
        return self.out(z_BD)[:, 0] + torch.einsum("bjo,jop,bjp->b", o_BJO, self.fusion_JOP, p_BJP)
