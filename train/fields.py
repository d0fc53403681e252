"""Feature fields to vectors: one vector per field, in mask order, missing ones by one convention.

Shapes: B samples, F categorical, G numeric, N all fields, K values of a multi-valued field, S size of a
field's vocabulary, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.errors import ConfigError
from infra.tables import FIRST_INDEX, PADDING, UNKNOWN, Kind
from train.protocol import FieldSpec, RankingBatch

FIELD_STD = 0.05
NUMERIC_LIMIT = 10.0
"""Standardised numeric values are clamped to +-10."""


class FieldEncoder(nn.Module):
    """z_BNW: the vector of every field.

    categorical: an embedding; an index that is padding or beyond the field's size counts as unknown.
    multi: mean of its values' embeddings; zeros when it is there but has no value.
    numeric: (value - mean) / std, clamped, times a learned vector, plus a learned bias; non-finite
    values count as missing. missing: a learned row of the field ("learned") or zeros ("zero").
    `tied`: fields (keys) that are looked up in another field's table, whose values theirs are.
    Raises ConfigError naming a field whose size or std cannot be used, or that cannot be tied.
    """

    mean_G: Tensor
    std_G: Tensor
    numeric_at: Tensor

    def __init__(
        self, fields: Sequence[FieldSpec], width: int, missing: str, tied: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__()
        _check(fields, tied)
        self.fields = tuple(fields)
        self.width = width
        numeric = [spec for spec in fields if spec.kind == Kind.NUMERIC]
        own = [spec for spec in fields if spec.kind != Kind.NUMERIC and spec.name not in tied]
        self.tabled = tuple(spec.name for spec in own)
        """Whose the tables are."""
        self.table_at = {
            spec.name: self.tabled.index(tied.get(spec.name, spec.name)) for spec in fields if spec.kind != Kind.NUMERIC
        }
        self.tables = nn.ParameterList(torch.empty(spec.size, width) for spec in own)
        self.slope_GW = nn.Parameter(torch.empty(len(numeric), width))
        self.bias_GW = nn.Parameter(torch.zeros(len(numeric), width))
        self.missing_NW = nn.Parameter(torch.empty(len(fields), width)) if missing == "learned" else None
        # The statistics belong to the trained model: they travel in its checkpoint.
        self.register_buffer("mean_G", torch.tensor([spec.mean for spec in numeric], dtype=torch.float32))
        self.register_buffer("std_G", torch.tensor([spec.std for spec in numeric], dtype=torch.float32))
        at = [i for i, spec in enumerate(fields) if spec.kind == Kind.NUMERIC]
        self.register_buffer("numeric_at", torch.tensor(at, dtype=torch.int64), persistent=False)
        self._initialise()

    def forward(self, batch: RankingBatch) -> Tensor:
        """z_BNW of the batch, the fields of `missing_BN` missing."""
        categorical = iter(batch.categorical_BF.unbind(1))
        multi = iter(batch.multi)
        numeric = iter(self._numeric(batch.numeric_BG).unbind(1))
        vectors = []
        for spec in self.fields:
            if spec.kind == Kind.NUMERIC:
                vectors.append(next(numeric))
            elif spec.kind == Kind.CATEGORICAL:
                vectors.append(_categorical(self.table(spec.name), next(categorical)))
            else:
                vectors.append(_multi(self.table(spec.name), next(multi)))
        z_BNW = torch.stack(vectors, dim=1)
        row_NW = torch.zeros_like(z_BNW[0]) if self.missing_NW is None else self.missing_NW
        return torch.where(self._missing(batch)[..., None], row_NW, z_BNW)

    def table(self, field: str) -> Tensor:
        """The table that a field's values are looked up in."""
        return self.tables[self.table_at[field]]

    def _numeric(self, value_BG: Tensor) -> Tensor:
        finite_BG = torch.where(value_BG.isfinite(), value_BG, self.mean_G)
        standard_BG = ((finite_BG - self.mean_G) / self.std_G).clamp(-NUMERIC_LIMIT, NUMERIC_LIMIT)
        return standard_BG[..., None] * self.slope_GW + self.bias_GW

    def _missing(self, batch: RankingBatch) -> Tensor:
        missing_BN = batch.missing_BN.clone()
        missing_BN[:, self.numeric_at] |= ~batch.numeric_BG.isfinite()
        return missing_BN

    @torch.no_grad()
    def _initialise(self) -> None:
        nn.init.normal_(self.slope_GW, std=FIELD_STD)
        if self.missing_NW is not None:
            nn.init.normal_(self.missing_NW, std=FIELD_STD)
        for table_SW in self.tables:
            nn.init.normal_(table_SW, std=FIELD_STD)
            table_SW[PADDING] = 0


def _categorical(table_SW: Tensor, index_B: Tensor) -> Tensor:
    known_B = (index_B >= FIRST_INDEX) & (index_B < len(table_SW))
    return F.embedding(torch.where(known_B, index_B, UNKNOWN), table_SW)


def _multi(table_SW: Tensor, index_BK: Tensor) -> Tensor:
    """Mean over the values that are no padding, zeros without any."""
    e_BKW, real_BK = values(table_SW, index_BK)
    return (e_BKW * real_BK[..., None]).sum(dim=1) / real_BK.sum(dim=1, keepdim=True).clamp(min=1)


def values(table_SW: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    """(vectors (B, K, W) of a multi-valued field's values, which of them (B, K) are no padding)."""
    index_BK = torch.where(index_BK < len(table_SW), index_BK, UNKNOWN)
    return F.embedding(index_BK, table_SW), index_BK != PADDING


def _check(fields: Sequence[FieldSpec], tied: Mapping[str, str]) -> None:
    if not fields:
        raise ConfigError("fields: a ranking model needs at least one feature field in the contract")
    for spec in fields:
        if spec.kind == Kind.NUMERIC and not (0 < spec.std < math.inf and math.isfinite(spec.mean)):
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
