"""The item table of a sequence model: whole or one rank's rows, and the cross-entropy over it.

Shapes: B batch, L length, D width, V catalogue rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infra.errors import TrainingError
from train.configs import InterestShape, SoftmaxShape
from train.diffusion.sphere import normalised
from train.layers import item_embedding
from train.losses import catalogue_cross_entropy_sum
from train.protocol import LossParts, SequenceBatch, Term
from train.sampled_softmax import Proposal, table_sampled_cross_entropy_sum
from train.table_shard import LargeTable


class ItemModel(nn.Module):
    """What the models that learn an item table share: the table `items`, and the cross-entropy over its rows."""

    proposal: Proposal | None = None
    """What negatives are drawn from; the loop sets it, and it is no part of the weights."""

    def __init__(self, shape: SoftmaxShape, catalogue: int, items: LargeTable | None = None) -> None:
        """`items`: the table to use; None = a fresh one of `catalogue` rows."""
        super().__init__()
        self.negatives = shape.negatives
        self.items = item_embedding(catalogue, shape.width) if items is None else items

    def item_table(self) -> Tensor:
        """E; of a sharded table this rank's rows (train.sharded_ranking ranks over those of all)."""
        return self.candidates(self.items.weight)

    def candidates(self, e: Tensor) -> Tensor:
        """Rows of the table as scores take them."""
        return e

    def cross_entropy_sum(self, x_BLD: Tensor, targets_BL: Tensor, generator: torch.Generator) -> Tensor:
        """Sum over targets of −log softmax(x · E)[target], over the catalogue or, with `negatives`, a sample of it.

        Raises TrainingError without a `proposal` to draw negatives from.
        """
        if not self.negatives:
            return catalogue_cross_entropy_sum(x_BLD, self.item_table(), targets_BL)[0]
        if self.proposal is None:
            raise TrainingError("config.negatives: the model has no proposal to draw them from; set its `proposal`")

        def rows(indices: Tensor) -> Tensor:
            return self.candidates(self.items(indices))

        return table_sampled_cross_entropy_sum(x_BLD, rows, targets_BL, self.proposal, self.negatives, generator)[0]

    def next_item_loss(self, c_BLD: Tensor, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item under c, mean over the batch's known targets."""
        ce = self.cross_entropy_sum(c_BLD, batch.targets_BL, generator)
        return LossParts({"ce": Term(ce, "targets")}, batch.counts)


class CosineItemModel(ItemModel):
    """One whose scores are inner products or, with a temperature, cosines over it."""

    def __init__(self, shape: InterestShape, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(shape, catalogue, items)
        self.temperature = shape.temperature

    def candidates(self, e: Tensor) -> Tensor:
        """Rows of the table as scores take them: with a temperature, on the sphere."""
        return e if self.temperature is None else normalised(e)

    def asking(self, u: Tensor) -> Tensor:
        """User vectors as scores take them: with a temperature t, of length 1 / t."""
        return u if self.temperature is None else normalised(u) / self.temperature


def counted(predicted: Iterable[NDArray[Any]], catalogue: int) -> Tensor:
    """counts_V: how often each item occurs.

    >>> counted([np.array([2, 3, 3]), np.array([3])], 5).tolist()
    [0, 0, 1, 3, 0]
    """
    counts_V = np.zeros(catalogue, np.int64)
    for items in predicted:
        np.add.at(counts_V, items, 1)  # unlike bincount it makes nothing of the catalogue's size each time
    return torch.from_numpy(counts_V)
