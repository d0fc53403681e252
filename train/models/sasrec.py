"""SASRec (Kang and McAuley, 2018) with cross-entropy over the catalogue, or a sample of it, at every position.

x = E[items] + P[place] -> dropout -> LayerNorm -> causal blocks -> c; score(item) = c . E[item].

Shapes: B batch, L length, D width, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.configs import SASRecConfig
from train.item_table import ItemModel
from train.layers import HistoryEncoder, Visible, place_embedding
from train.protocol import LossParts, SequenceBatch, Stage
from train.table_shard import LargeTable


class SASRec(ItemModel):
    """A causal Transformer over the history; input and output share the item table."""

    def __init__(self, config: SASRecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.places = place_embedding(config.max_length, config.width) if config.positions else None
        self.encoder = HistoryEncoder.of(config)
        self.pretrain_encoder = HistoryEncoder.of(config) if config.pretrain_share else None

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item, mean over the batch's known targets."""
        return self.next_item_loss(self._encode(batch, self.items(batch.items_BL)), batch, generator)

    def pretrain_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """The same under another encoder, without positions, which leaves the table alone behind."""
        assert self.pretrain_encoder is not None
        visible = Visible.of(batch.items_BL, batch.place_BL)
        return self.next_item_loss(self.pretrain_encoder(self.items(batch.items_BL), visible), batch, generator)

    def stages(self) -> list[Stage]:
        """One, or with `pretrain_share` the table first."""
        if self.pretrain_encoder is None:
            return [Stage("main", 1.0, self.loss)]
        share, others = self.config.pretrain_share, ("encoder.", "places.")
        return [
            Stage("pretrain", share, self.pretrain_loss, frozen=others if self.places else others[:1]),
            Stage("main", 1 - share, self.loss, frozen=("pretrain_encoder.",)),
        ]

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: the summary at the latest event. Put the model in eval mode first."""
        batch = batch.latest(self.config.max_length)
        # One lookup: ranks that share a table have to make as many of them.
        x_BLD = self.items(batch.items_BL)
        u_BD = x_BLD.new_empty(len(x_BLD), self.config.width)
        for places, part in batch.by_length():
            u_BD[places] = self._encode(part, x_BLD[places, -part.items_BL.shape[1] :])[:, -1]
        return u_BD[:, None]

    def _encode(self, batch: SequenceBatch, x_BLD: Tensor) -> Tensor:
        """c_BLD of item vectors."""
        if self.places is not None:
            x_BLD = x_BLD + self.places(batch.place_BL)
        return self.encoder(x_BLD, Visible.of(batch.items_BL, batch.place_BL))
