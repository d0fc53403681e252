"""Popularity: every user gets the items with most training events. The floor for every other model.

Shapes: B users, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train.configs import PopularityConfig
from train.protocol import LossParts, SequenceBatch
from train.ragged import Ints, Ragged


class PopularityModel(nn.Module):
    """score(user, item) = number of the item's training events, as the inner product 1 * count."""

    counts_V1: Tensor

    def __init__(self, config: PopularityConfig, catalogue: int) -> None:
        super().__init__()
        self.config = config
        # float32 like every other table: counts above 2^24 are rounded.
        self.register_buffer("counts_V1", torch.zeros(catalogue, 1))

    def fit(self, items: Ragged, next_items: Ragged) -> None:
        """Count what is to be predicted. Raises TrainingError for an item beyond the catalogue."""
        require_within(items, len(self.counts_V1))
        self.counts_V1.copy_(torch.from_numpy(counts_of(next_items, len(self.counts_V1)))[:, None])

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Raises TrainingError: there is nothing to differentiate."""
        raise TrainingError("popularity is counted, not trained: call fit(items, next_items) instead of the loop")

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B11 of ones: the same for everyone."""
        return self.counts_V1.new_ones(len(batch.items_BL), 1, 1)

    def item_table(self) -> Tensor:
        """The counts, e_V1."""
        return self.counts_V1


def counts_of(items: Ragged, catalogue: int) -> Ints:
    """counts_V: how often each item occurs, 0 for padding and unknown.

    >>> counts_of(Ragged(np.array([2, 3, 1, 3, 0], np.int32), np.array([0, 3, 5])), 5).tolist()
    [0, 0, 1, 2, 0]
    """
    counts_V = np.bincount(items.values, minlength=catalogue)
    counts_V[:FIRST_INDEX] = 0
    return counts_V


def require_within(items: Ragged, catalogue: int) -> None:
    """TrainingError for an item beyond the catalogue."""
    largest = int(items.values.max(initial=0))
    if largest >= catalogue:
        raise TrainingError(
            f"item index {largest} in a catalogue of {catalogue} rows; count over the same items version"
        )
