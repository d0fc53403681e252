"""DIN (Zhou et al., 2018, arXiv 1706.06978): of the user's history counts what goes with the item in question.

    v_history = sum_j a(e_j, v_item) e_j,   a = mlp([e_j; e_j - v_item; e_j * v_item; v_item])        (Eq. 3)

a is not normalised over the history, as published, so its sum says how much interest there is. All other fields, and
v_history in its place, go through a perceptron to one logit. History and item share the item's table. A missing item
attends with the vector of missing; of a missing history there is only that. ReLU and a plain perceptron stand where
the paper has Dice and its regularisation by batches.

Shapes: B samples, N fields, K events of a history, W embedding width, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from infra.errors import ConfigError
from infra.tables import Kind
from train.field_model import FieldModel, perceptron
from train.protocol import FieldSpec, RankingBatch
from train.ranking_configs import DINConfig
from train.table_shard import LargeTable


class DIN(FieldModel):
    """A DNN whose history is read with the item in mind."""

    def __init__(self, config: DINConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        names = _names(config, fields)
        super().__init__(config, fields, table)
        self.behaviour, self.target = config.behaviour, config.target
        self.at, self.target_at = names[config.behaviour], names[config.target]
        several = [spec.name for spec in fields if spec.kind is Kind.MULTI]
        self.multi_at = several.index(config.behaviour)
        self.width = config.hidden[-1]
        hidden = perceptron(4 * config.embedding_width, config.attention, 0.0)
        self.attention = nn.Sequential(*hidden, nn.Linear(config.attention[-1], 1))
        self.mlp = perceptron(self.flat, config.hidden, config.dropout)
        self.out = nn.Linear(self.width, 1)

    def encode_fields(self, v_BNW: Tensor, batch: RankingBatch) -> Tensor:
        """h: z_BD."""
        missing_B1 = batch.missing_BN[:, self.at, None]
        read_BW = torch.where(missing_B1, v_BNW[:, self.at], self._read(v_BNW[:, self.target_at], batch))
        fields = [*v_BNW.unbind(1)]
        fields[self.at] = read_BW
        z_BD: Tensor = self.mlp(torch.cat(fields, dim=1))
        return z_BD

    def _read(self, item_BW: Tensor, batch: RankingBatch) -> Tensor:
        """v_history; zeros of an empty one."""
        e_BKW, real_BK = self.fields.values(self.behaviour, batch.multi[self.multi_at])
        item_BKW = item_BW[:, None].expand_as(e_BKW)
        pairs = torch.cat([e_BKW, e_BKW - item_BKW, e_BKW * item_BKW, item_BKW], dim=-1)
        weight_BK = self.attention(pairs)[..., 0] * real_BK
        return (weight_BK[..., None] * e_BKW).sum(dim=1)


def _names(config: DINConfig, fields: Sequence[FieldSpec]) -> dict[str, int]:
    """Places by name; ConfigError unless the two fields are there and of their kinds."""
    kinds = {spec.name: spec.kind for spec in fields}
    for setting, name, kind in (
        ("behaviour", config.behaviour, Kind.MULTI),
        ("target", config.target, Kind.CATEGORICAL),
    ):
        if kinds.get(name) is not kind:
            found = f"is {kinds[name]}" if name in kinds else f"is none of {', '.join(kinds)}"
            raise ConfigError(
                f"config.{setting}: needs a {kind} field, and {name!r} {found}; samples.history adds one of past items"
            )
    return {name: place for place, name in enumerate(kinds)}
