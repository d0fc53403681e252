"""A model's large table, of items or of feature values, as a run has it: whole, or one rank's rows of it.

Shapes: D width, V rows, S rows of a shard, W ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from train.rowwise_adagrad import RowWiseAdagrad
from train.sharded import ShardedTable, load_rows, load_shard, reader, shard_state, sharded_tables

LargeTable = nn.Embedding | ShardedTable
_BEST = "best."


class TableShard:
    """One rank's part of a run's sharded table: rows, optimizer, best rows so far, and their files.

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
