"""Feature rows of users beside candidate items, for a ranking model: each user's and each item's fields are looked up
once, and the pairs are gathered from them.

Shapes: U users, V catalogue rows, B users of a batch, K candidates, P = B * K pairs, N fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from infra.tables import INDEX_TYPES, Kind, column_of
from train.protocol import FieldSpec, RankingBatch
from train.ragged import Ints
from train.ranking_data import RankingData


@dataclass(frozen=True)
class Candidates:
    """Fields of the log itself (where, on what device) belong to an event that has not happened: they are missing."""

    users: RankingData
    """U rows; what is of an item is missing."""
    items: RankingData
    """V rows; what is of a user is missing."""
    of_item_N: NDArray[np.bool_]
    """Which fields the item decides."""

    @classmethod
    def of(
        cls,
        specs: Sequence[FieldSpec],
        users: Mapping[str, pa.Array],
        items: Mapping[str, pa.Array],
    ) -> Candidates:
        """From columns of `samples` (name -> indices or values, null where missing) of U users and of V items."""
        of_item_N = np.array([column_of(spec.name) in items for spec in specs])
        return cls(_rows(specs, users), _rows(specs, items), of_item_N)

    def beside(self, users: Mapping[str, pa.Array]) -> Candidates:
        """The same items and other users."""
        return replace(self, users=_rows(self.items.fields, users))

    def batch(self, users_B: Ints, items_BK: Ints) -> RankingBatch:
        """The pairs, user by user: all K of the first one, then the second's. `items_BK`: rows of the catalogue."""
        user_P, item_P = np.repeat(users_B, items_BK.shape[1]), items_BK.reshape(-1)
        of_users, of_items = self.users.batch(user_P), self.items.batch(item_P)
        kinds = [spec.kind for spec in self.users.fields]
        chosen = {kind: self.of_item_N[[k is kind for k in kinds]] for kind in Kind}
        multi = zip(of_users.multi, of_items.multi, chosen[Kind.MULTI], strict=True)
        return RankingBatch(
            categorical_BF=_where(chosen[Kind.CATEGORICAL], of_items.categorical_BF, of_users.categorical_BF),
            numeric_BG=_where(chosen[Kind.NUMERIC], of_items.numeric_BG, of_users.numeric_BG),
            multi=tuple(theirs if of_item else ours for ours, theirs, of_item in multi),
            missing_BN=_where(self.of_item_N, of_items.missing_BN, of_users.missing_BN),
            label_B=torch.zeros(len(user_P)),
        )


def _where(chosen_F: NDArray[np.bool_], first_PF: torch.Tensor, second_PF: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.from_numpy(chosen_F), first_PF, second_PF)


def _rows(specs: Sequence[FieldSpec], columns: Mapping[str, pa.Array]) -> RankingData:
    """As rows of `samples` without labels; a field without a column is missing everywhere."""
    count = len(next(iter(columns.values())))
    table = {"missing": pa.array(np.zeros(count, np.int64)), "label": pa.array(np.zeros(count, np.int8))}
    for spec in specs:
        name = column_of(spec.name)
        given = columns.get(name)
        table[name] = pa.nulls(count, INDEX_TYPES[spec.kind]) if given is None else given.cast(INDEX_TYPES[spec.kind])
    return RankingData.rows(pa.table(table), tuple(specs), version=0)
