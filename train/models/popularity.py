"""Popularity: every user gets the items with most training events. The floor for every other model.

Shapes: B users, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from train.configs import PopularityConfig
from train.protocol import LossParts, SequenceBatch


class PopularityModel(nn.Module):
    """score(user, item) = number of the item's training events, as the inner product 1 * count."""

    counts_V1: Tensor

    def __init__(self, config: PopularityConfig, catalogue: int) -> None:
        super().__init__()
        self.config = config
        # float32 like every other table: counts above 2^24 are rounded.
        self.register_buffer("counts_V1", torch.zeros(catalogue, 1))

    def fit(self, counts_V: Tensor) -> None:
        """Take the counts, one per row of the catalogue. Raises TrainingError when their number differs."""
        if counts_V.shape != (len(self.counts_V1),):
            raise TrainingError(
                f"popularity: {tuple(counts_V.shape)} counts for a catalogue of {len(self.counts_V1)} rows; "
                "count over the same items version"
            )
        self.counts_V1.copy_(counts_V[:, None])

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Raises TrainingError: there is nothing to differentiate."""
        raise TrainingError("popularity is counted, not trained: call fit(counts) instead of the training loop")

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B11 of ones: the same for everyone."""
        return self.counts_V1.new_ones(len(batch.items_BL), 1, 1)

    def item_table(self) -> Tensor:
        """The counts, e_V1."""
        return self.counts_V1
