"""Feature dropout: the base, trained on samples of which some fields are dropped, and served as it is.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from train.protocol import FieldSpec, LossParts, RankingBatch
from train.ranking_configs import FeatureDropoutConfig
from train.table_shard import LargeTable
from train.wrapped import Wrapped, dropped


class FeatureDropout(Wrapped):
    """The base with holes in its training samples."""

    def __init__(
        self, config: FeatureDropoutConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None
    ) -> None:
        super().__init__(config, fields, table)
        self.config = config

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """The base's own, on the dropped sample."""
        return self.base.loss(dropped(batch, self.config, generator), generator)
