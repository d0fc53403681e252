"""ComiRec (arXiv 2005.09347): K interests of a history, each of which retrieves items.

H = dropout(E[items]) -> interests g_1 .. g_K (self-attentive, or by dynamic routing). In training the interest that
scores the target highest answers for it: -log softmax(g . E)[target]. An item's score is the highest of the K.
Differences from the published code (github.com/THUDM/ComiRec), all deliberate: every position is a target instead of
one drawn from each history, events are also weighed by how far back they are, scores are cosines over a temperature
(`recency`, `temperature`: both off as published), the softmax is over the catalogue unless `negatives` are drawn, and
the aggregation that trades accuracy for categories is left out (its weight is 0).

Shapes: B batch, L length, D width, K interests, R = K vectors per user.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.configs import ComiRecConfig
from train.dropout import Dropout
from train.interests import History, Interests, RoutedInterests, SelfAttentiveInterests
from train.item_table import CosineItemModel, ItemTable
from train.protocol import LossParts, SequenceBatch


class ComiRec(CosineItemModel):
    """Several interests over the history; input and output share the item table."""

    def __init__(self, config: ComiRecConfig, catalogue: int, items: ItemTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.embedding_dropout = Dropout(config.embedding_dropout)
        shape = (config.width, config.interests, config.max_length)
        self.extract: SelfAttentiveInterests | RoutedInterests = (
            SelfAttentiveInterests(*shape, config.recency)
            if config.extraction == "attention"
            else RoutedInterests(*shape, shared=False)
        )

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item under its matching interest, mean over the batch's known targets."""
        # One lookup: its gradient is as large as the table.
        shown_BLD, e_BLD = self.items(torch.stack([batch.items_BL, batch.targets_BL])).unbind()
        return self.next_item_loss(self.interests(shown_BLD, batch).matching(self.candidates(e_BLD)), batch, generator)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_BKD: the interests, all alike without a history. Put the model in eval mode first."""
        batch = batch.latest(self.config.max_length)
        return self.interests(self.items(batch.items_BL), batch, latest=True).filled()[:, 0]

    def interests(self, shown_BLD: Tensor, batch: SequenceBatch, latest: bool = False) -> Interests:
        """Of every position, or of the `latest` alone, as scores take them."""
        found: Interests = self.extract(History.of(self.embedding_dropout(shown_BLD), batch, latest))
        return found.changed(self.asking)
