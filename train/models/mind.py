"""MIND (arXiv 1904.08030): interests by dynamic routing with one shared map, and label-aware attention.

H = dropout(E[items]) -> capsules -> D -> 4D -> D with ReLU -> interests g_1 .. g_K'. Of n events there are
K' = max(1, min(K, floor(log2 n))) interests. In training the target attends to them, at inference an item's score is
the highest. The paper's user features are not in a sequence; its weights are pow(g . e, p), which is no number for
negative scores: here softmax(p g . e), or the best interest alone.

Shapes: B batch, L length, Q queries, D width, K interests, R = K vectors per user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.configs import MINDConfig
from train.dropout import Dropout
from train.interests import History, Interests, RoutedInterests
from train.item_table import CosineItemModel, ItemTable
from train.layers import initialise
from train.protocol import LossParts, SequenceBatch


class MIND(CosineItemModel):
    """Routed interests over the history; input and output share the item table."""

    def __init__(self, config: MINDConfig, catalogue: int, items: ItemTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.embedding_dropout = Dropout(config.embedding_dropout)
        shape = (config.width, config.interests, config.max_length)
        self.routing = RoutedInterests(*shape, shared=True, adaptive=config.adaptive)
        self.out = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.ReLU(), nn.Linear(4 * config.width, config.width)
        ).apply(initialise)

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item under the interests it attends to, mean over the batch's known targets."""
        # One lookup: its gradient is as large as the table.
        shown_BLD, e_BLD = self.items(torch.stack([batch.items_BL, batch.targets_BL])).unbind()
        found, sharpness = self.interests(shown_BLD, batch), self.config.sharpness
        target_BLD = self.candidates(e_BLD)
        c_BLD = found.matching(target_BLD) if sharpness is None else found.attended(target_BLD, sharpness)
        return self.next_item_loss(c_BLD, batch, generator)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_BKD: the interests. Put the model in eval mode first."""
        batch = batch.latest(self.config.max_length)
        return self.interests(self.items(batch.items_BL), batch, latest=True).filled()[:, 0]

    def interests(self, shown_BLD: Tensor, batch: SequenceBatch, latest: bool = False) -> Interests:
        """Of every position, or of the `latest` alone, as scores take them."""
        found = self.routing(History.of(self.embedding_dropout(shown_BLD), batch, latest))
        return found.changed(self.out).changed(self.asking)
