"""GRU4Rec (Hidasi et al., 2016) with cross-entropy over the catalogue, or a sample of it, at every position.

x = dropout(E[items]) -> GRU -> linear, if the state has another width -> c; score(item) = c . E[item]. The paper's
pairwise losses over a session-parallel batch are left to history: later re-implementations train with cross-entropy.

Shapes: B batch, L length, D width, H width of the state, R = 1 vector per user, S sequences, T events of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from infra.tables import PADDING
from train.configs import GRU4RecConfig
from train.dropout import Dropout
from train.item_table import ItemModel
from train.protocol import LossParts, SequenceBatch, Term
from train.table_shard import LargeTable


class GRU4Rec(ItemModel):
    """A recurrent network over the history; input and output share the item table."""

    def __init__(self, config: GRU4RecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.embedding_dropout = Dropout(config.embedding_dropout)
        between = config.dropout if config.layers > 1 else 0.0  # torch warns of a dropout between one layer and none
        self.gru = nn.GRU(config.width, config.hidden, config.layers, dropout=between)
        self.dropout = Dropout(config.dropout)
        same = config.hidden == config.width
        self.out: nn.Module = nn.Identity() if same else nn.Linear(config.hidden, config.width)

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item, mean over the batch's known targets."""
        ce = self.cross_entropy_sum(self._encode(batch), batch.targets_BL, generator)
        return LossParts({"ce": Term(ce, "targets")}, batch.counts)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: the state after the latest event, of an empty history 0. Put the model in eval mode first."""
        return self._encode(batch.latest(self.config.max_length))[:, -1:]

    def _encode(self, batch: SequenceBatch) -> Tensor:
        """c_BLD: what the sequence's state is after each event; the initial state, 0, at padding."""
        x_BLD = self.embedding_dropout(self.items(batch.items_BL))
        h_BLH = x_BLD.new_zeros(*batch.items_BL.shape, self.config.hidden)
        order_T, sizes = by_place(batch)
        if len(order_T):
            h_TH = self.gru(PackedSequence(x_BLD.flatten(0, 1)[order_T], sizes))[0].data
            h_BLH = h_BLH.flatten(0, 1).index_put((order_T,), h_TH.to(h_BLH.dtype)).view_as(h_BLH)
        return self.out(self.dropout(h_BLH))


@torch.compiler.disable
def by_place(batch: SequenceBatch) -> tuple[Tensor, Tensor]:
    """(order_T, sizes): flat positions of all events by their place, longer sequences first within a place, and how
    many events have each place, on the CPU: what torch runs a recurrent network over, without a step for padding.

    >>> place = torch.tensor([[0, 0, 1, 0, 1, 2]])
    >>> order, sizes = by_place(SequenceBatch(torch.tensor([[0, 5, 6, 7, 8, 9]]), torch.zeros(1, 6), place))
    >>> order.tolist(), sizes.tolist()
    ([3, 1, 4, 2, 5], [2, 2, 1])
    """
    (event_T,) = (batch.items_BL.flatten() != PADDING).nonzero(as_tuple=True)
    own_T, place_T = batch.sequence_of()[event_T], batch.place_BL.flatten()[event_T]
    length_S = torch.bincount(own_T)
    rank_S = torch.empty_like(length_S)
    rank_S[length_S.argsort(descending=True, stable=True)] = torch.arange(len(length_S), device=length_S.device)
    order_T = event_T[(place_T * len(length_S) + rank_S[own_T]).argsort()]
    return order_T, torch.bincount(place_T).cpu()
