"""The item table of a sequence model: whole or one rank's rows, and the cross-entropy over it.

Shapes: B batch, L length, D width, V catalogue rows, S rows of a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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
from train.rowwise_adagrad import RowWiseAdagrad
from train.sampled_softmax import Proposal, table_sampled_cross_entropy_sum
from train.sharded import ShardedTable, load_rows, load_shard, reader, shard_state, sharded_tables

ItemTable = nn.Embedding | ShardedTable
_BEST = "best."


class ItemModel(nn.Module):
    """What the models that learn an item table share: the table `items`, and the cross-entropy over its rows."""

    proposal: Proposal | None = None
    """What negatives are drawn from; the loop sets it, and it is no part of the weights."""

    def __init__(self, shape: SoftmaxShape, catalogue: int, items: ItemTable | None = None) -> None:
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

    def __init__(self, shape: InterestShape, catalogue: int, items: ItemTable | None = None) -> None:
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


class ItemShard:
    """One rank's part of a run's sharded item table: rows, optimizer, best rows so far, and their files.

    A rank holds 4D + 4 bytes for each of its V / W rows, and on the host 4D once more from the first best
    validation on. Accumulators last for the whole run, through stages that freeze the table.
    """

    def __init__(self, table: ShardedTable, learning_rate: float) -> None:
        self.table = table
        self.optimizer = RowWiseAdagrad([table.weight], learning_rate)
        self.best: Tensor | None = None

    def keep_best(self) -> None:
        """Remember the rows of this moment."""
        if self.best is None:
            self.best = torch.empty_like(self.table.weight, device="cpu")
        self.best.copy_(self.table.weight.detach())

    def state(self, with_best: bool) -> dict[str, Tensor]:
        """What this rank's file holds; the best rows only when they are not the present ones."""
        state = shard_state(self.table, self.optimizer)
        if with_best and self.best is not None:
            state |= {_BEST + "weight": self.best, _BEST + "layout": state["layout"].clone()}
        return state

    def restore(self, files: Sequence[Path], best: bool, other_best: bool) -> None:
        """Go on from the files of any number of ranks, in order of rank.

        `best`: whether there is a best validation yet; `other_best`: whether its rows are not the present ones.
        """
        if other_best:
            load_shard(self.table, None, reader(files, _BEST))
            self.keep_best()
        load_shard(self.table, self.optimizer, reader(files))
        if best and not other_best:
            self.keep_best()


def dense_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that every rank has: all but sharded tables."""
    sharded = sharded_tables(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in sharded}


def load_dense_state(model: nn.Module, weights: Mapping[str, Tensor], table: Tensor | None = None) -> None:
    """The inverse of `dense_state`; `table`, which comes from the files of shards, stays as it is."""
    kept = {name: parameter for name, parameter in model.named_parameters() if parameter is table}
    model.load_state_dict({**weights, **kept})


def assemble(table_VD: Tensor, files: Sequence[Path], best: bool) -> None:
    """Fill a whole table from the shards of a checkpoint, `best` or present; beside it one block is held."""
    load_rows({"weight": table_VD}, reader(files, _BEST if best else ""), len(table_VD))
