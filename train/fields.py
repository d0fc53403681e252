"""Feature fields to vectors: one vector per field, in mask order, missing ones by one convention.

The values of all fields are rows of one table, field after field: one lookup finds them all, and a table too large for
a worker is shared out over the workers as an item table is (train.sharded).

Shapes: B samples, F categorical, G numeric, N all fields, K values of a multi-valued field, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from infra.errors import ConfigError
from infra.tables import FIRST_INDEX, PADDING, UNKNOWN, Kind
from train.protocol import FieldSpec, RankingBatch
from train.table_shard import LargeTable

FIELD_STD = 0.05
NUMERIC_LIMIT = 10.0
"""Standardised numeric values are clamped to +-10."""


class FieldEncoder(nn.Module):
    """z_BNW: the vector of every field.

    categorical: an embedding; an index that is padding or beyond the field's size counts as unknown.
    multi: mean of its values' embeddings; zeros when it is there but has no value.
    numeric: (value - mean) / std, clamped, times a learned vector, plus a learned bias; non-finite
    values count as missing. missing: a learned row of the field ("learned") or zeros ("zero").
    `tied`: fields (keys) whose values are those of another field, and share its rows. `table`: one of `rows_of` rows to
    use instead of a fresh one. Raises ConfigError naming a field whose size or std cannot be used, or that cannot be
    tied.
    """

    mean_G: Tensor
    std_G: Tensor
    numeric_at: Tensor
    first_F: Tensor
    size_F: Tensor

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        width: int,
        missing: str,
        tied: Mapping[str, str] = MappingProxyType({}),
        table: LargeTable | None = None,
    ) -> None:
        super().__init__()
        _check(fields, tied)
        self.fields = tuple(fields)
        self.width = width
        numeric = [spec for spec in fields if spec.kind == Kind.NUMERIC]
        self.blocks = blocks_of(fields, tied)
        rows = rows_of(self.blocks)
        self.table = nn.Embedding(rows, width, _weight=torch.empty(rows, width)) if table is None else table
        self.slope_GW = nn.Parameter(torch.empty(len(numeric), width))
        self.bias_GW = nn.Parameter(torch.zeros(len(numeric), width))
        self.missing_NW = nn.Parameter(torch.empty(len(fields), width)) if missing == "learned" else None
        # The statistics belong to the trained model: they travel in its checkpoint.
        self.register_buffer("mean_G", torch.tensor([spec.mean for spec in numeric], dtype=torch.float32))
        self.register_buffer("std_G", torch.tensor([spec.std for spec in numeric], dtype=torch.float32))
        at = [i for i, spec in enumerate(fields) if spec.kind == Kind.NUMERIC]
        self.register_buffer("numeric_at", torch.tensor(at, dtype=torch.int64), persistent=False)
        categorical = [self.blocks[spec.name] for spec in fields if spec.kind == Kind.CATEGORICAL]
        first, size = [block.start for block in categorical], [len(block) for block in categorical]
        self.register_buffer("first_F", torch.tensor(first, dtype=torch.int64), persistent=False)
        self.register_buffer("size_F", torch.tensor(size, dtype=torch.int64), persistent=False)
        self._initialise(fresh_table=table is None)

    def forward(self, batch: RankingBatch) -> Tensor:
        """z_BNW of the batch, the fields of `missing_BN` missing."""
        several = [spec.name for spec in self.fields if spec.kind == Kind.MULTI]
        values = [self._rows(field, index_BK) for field, index_BK in zip(several, batch.multi, strict=True)]
        rows = [self._known(batch.categorical_BF), *(row_BK for row_BK, _ in values)]
        e_BFW, *e_BKW = self.table(torch.cat(rows, dim=1)).split([row.shape[1] for row in rows], dim=1)
        means = [_mean(e_BKW, real_BK) for e_BKW, (_, real_BK) in zip(e_BKW, values, strict=True)]
        found = {
            Kind.CATEGORICAL: iter(e_BFW.unbind(1)),
            Kind.NUMERIC: iter(self._numeric(batch.numeric_BG).unbind(1)),
            Kind.MULTI: iter(means),
        }
        z_BNW = torch.stack([next(found[spec.kind]) for spec in self.fields], dim=1)
        row_NW = 0.0 if self.missing_NW is None else self.missing_NW
        return torch.where(self.missing(batch)[..., None], row_NW, z_BNW)

    def values(self, field: str, index_BK: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors (B, K, W) of a multi-valued field's values, which of them (B, K) are no padding)."""
        row_BK, real_BK = self._rows(field, index_BK)
        return self.table(row_BK), real_BK

    def _known(self, index_BF: Tensor) -> Tensor:
        """Rows of the categorical fields' values; padding, and what is beyond the field's size, is unknown."""
        known_BF = (index_BF >= FIRST_INDEX) & (index_BF < self.size_F)
        return self.first_F + torch.where(known_BF, index_BF, UNKNOWN)

    def _rows(self, field: str, index_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of a multi-valued field's values, those beyond its size unknown, and which are no padding."""
        block = self.blocks[field]
        inside_BK = (index_BK >= PADDING) & (index_BK < len(block))
        return block.start + torch.where(inside_BK, index_BK, UNKNOWN), index_BK != PADDING

    def _numeric(self, value_BG: Tensor) -> Tensor:
        finite_BG = torch.where(value_BG.isfinite(), value_BG, self.mean_G)
        standard_BG = ((finite_BG - self.mean_G) / self.std_G).clamp(-NUMERIC_LIMIT, NUMERIC_LIMIT)
        return standard_BG[..., None] * self.slope_GW + self.bias_GW

    def missing(self, batch: RankingBatch) -> Tensor:
        """missing_BN of the batch, and what is no finite number."""
        missing_BN = batch.missing_BN.clone()
        missing_BN[:, self.numeric_at] |= ~batch.numeric_BG.isfinite()
        return missing_BN

    @torch.no_grad()
    def _initialise(self, fresh_table: bool) -> None:
        nn.init.normal_(self.slope_GW, std=FIELD_STD)
        if self.missing_NW is not None:
            nn.init.normal_(self.missing_NW, std=FIELD_STD)
        if fresh_table:
            for block in dict.fromkeys(self.blocks.values()):
                nn.init.normal_(self.table.weight[block.start : block.stop], std=FIELD_STD)
                self.table.weight[block.start + PADDING] = 0


def blocks_of(fields: Sequence[FieldSpec], tied: Mapping[str, str] = MappingProxyType({})) -> dict[str, range]:
    """The rows of each field's values in a table of all fields; row `start` + i is the value of index i.

    >>> fields = [FieldSpec("item", Kind.CATEGORICAL, 5), FieldSpec("past", Kind.MULTI, 5)]
    >>> blocks_of(fields), blocks_of(fields, tied={"past": "item"})
    ({'item': range(0, 5), 'past': range(5, 10)}, {'item': range(0, 5), 'past': range(0, 5)})
    """
    blocks, rows = {}, 0
    for spec in fields:
        if spec.kind != Kind.NUMERIC and spec.name not in tied:
            blocks[spec.name] = range(rows, rows + spec.size)
            rows += spec.size
    return blocks | {name: blocks[other] for name, other in tied.items() if other in blocks}


def rows_of(blocks: Mapping[str, range]) -> int:
    """Rows of the table of all fields' values."""
    return max((block.stop for block in blocks.values()), default=0)


def _mean(e_BKW: Tensor, real_BK: Tensor) -> Tensor:
    """Mean over the values that are no padding, zeros without any."""
    return (e_BKW * real_BK[..., None]).sum(dim=1) / real_BK.sum(dim=1, keepdim=True).clamp(min=1)


def _check(fields: Sequence[FieldSpec], tied: Mapping[str, str]) -> None:
    if not fields:
        raise ConfigError("fields: a ranking model needs at least one feature field in the contract")
    for spec in fields:
        values = torch.tensor([spec.mean, spec.std], dtype=torch.float32, device="cpu")  # as in training
        mean, std = values.tolist()
        if spec.kind == Kind.NUMERIC and not (0 < std < math.inf and math.isfinite(mean)):
            raise ConfigError(
                f"field {spec.name}: mean {spec.mean} and std {spec.std} cannot be used; a constant field has std 1, "
                "both are finite: run the samples stage again"
            )
        if spec.kind != Kind.NUMERIC and spec.size < FIRST_INDEX:
            raise ConfigError(f"field {spec.name}: size is {spec.size}; it counts padding and unknown, so >= 2")
    sizes = {spec.name: spec.size for spec in fields}
    for name, other in tied.items():
        if sizes[name] != sizes[other] or not sizes[name]:
            raise ConfigError(
                f"field {name}: has {sizes[name]} values and {other} {sizes[other]}, so one table cannot be of both"
            )
