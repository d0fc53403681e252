"""Bigram counts: what followed the user's last item most often, then what is popular.

score(v | last item w) = count(w -> v) + place(v), where count is over the transitions to a target within a training
chunk, and 0 <= place(v) < 1 orders items that followed w equally often (most of them never) by their popularity:
place(v) = (number of smaller popularities that occur) / (number of popularities that occur), so that float32 still
tells them apart beside a count in the hundreds. Without a last item, or after an unknown one, this is popularity.
The floor of every comparison of models that read more than that.

Shapes: B users, R = 1 vector per user, V catalogue rows, M followers kept of each item, P distinct pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train.configs import BigramConfig
from train.models.popularity import counts_of, require_within
from train.protocol import LossParts, SequenceBatch
from train.ragged import Ints, Ragged


class BigramModel(nn.Module):
    """The most frequent followers of every item, never V x V: 12 V M bytes."""

    next_VM: Tensor
    """Followers of each item, most frequent first; 0 where there are no more."""
    count_VM: Tensor
    """How often they followed; 0 where there are no more."""
    place_V: Tensor
    """Popularity among the items, in [0, 1)."""

    def __init__(self, config: BigramConfig, catalogue: int) -> None:
        super().__init__()
        self.config = config
        followers = min(config.followers, catalogue)
        self.register_buffer("next_VM", torch.zeros(catalogue, followers, dtype=torch.int64))
        self.register_buffer("count_VM", torch.zeros(catalogue, followers))
        self.register_buffer("place_V", torch.zeros(catalogue))

    def fit(self, items: Ragged, next_items: Ragged) -> None:
        """Count transitions and popularity. Raises TrainingError for an item beyond the catalogue."""
        catalogue, followers = self.next_VM.shape
        require_within(items, catalogue)
        popularity_V = counts_of(next_items, catalogue)
        occurring, place_V = np.unique(popularity_V, return_inverse=True)
        self.place_V.copy_(torch.from_numpy(place_V / len(occurring)))
        before_P, after_P, count_P = transitions(items, next_items, catalogue)
        order_P = np.lexsort((after_P, -popularity_V[after_P], -count_P, before_P))
        before_P, after_P, count_P = before_P[order_P], after_P[order_P], count_P[order_P]
        column_P = np.arange(len(before_P)) - np.searchsorted(before_P, before_P)
        kept_P = column_P < followers
        cells = torch.from_numpy(before_P[kept_P]), torch.from_numpy(column_P[kept_P])
        self.next_VM.zero_()[cells] = torch.from_numpy(after_P[kept_P])
        self.count_VM.zero_()[cells] = torch.from_numpy(count_P[kept_P]).float()

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Raises TrainingError: there is nothing to differentiate."""
        raise TrainingError("bigram is counted, not trained: call fit(items, next_items) instead of the loop")

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1V: the scores of all items."""
        last_B = batch.latest(1).items_BL[:, 0]
        s_BV = self.place_V.repeat(len(last_B), 1)
        return s_BV.scatter_add_(1, self.next_VM[last_B], self.count_VM[last_B])[:, None]

    def item_table(self) -> None:
        """None: the user vectors are the scores."""
        return


def transitions(items: Ragged, next_items: Ragged, catalogue: int) -> tuple[Ints, Ints, Ints]:
    """(before_P, after_P, count_P): the distinct pairs of an item and a target right behind it in its row.

    >>> rows = Ragged(np.array([2, 3, 2, 3, 3, 1, 2], np.int32), np.array([0, 4, 7]))
    >>> [column.tolist() for column in transitions(rows, rows, 4)]
    [[2, 3], [3, 2], [2, 1]]
    """
    before_T, after_T = items.values[:-1].astype(np.int64), next_items.values[1:]
    valid_T = (before_T >= FIRST_INDEX) & (after_T >= FIRST_INDEX)
    ends = items.offsets[1:-1]  # the last event of a row does not lead to the first of the next one
    valid_T[ends[(ends > 0) & (ends < len(items.values))] - 1] = False
    pair_P, count_P = np.unique(before_T[valid_T] * catalogue + after_T[valid_T], return_counts=True)
    return pair_P // catalogue, pair_P % catalogue, count_P
