"""MIND (arXiv 1904.08030): interests by dynamic routing with one shared map, and label-aware attention.

H = dropout(E[items]) -> capsules -> D -> 4D -> D with ReLU -> interests g_1 .. g_K'. Of n events there are
K' = max(1, min(K, floor(log2 n))) interests. In training the target attends to them, at inference an item's score is
the highest. The paper's user features are not in a sequence; its weights are pow(g . e, p), which is no number for
negative scores: here softmax(p g . e), or the best interest alone.

Shapes: B batch, L length, Q queries, D width, K interests, R = K vectors per user.
"""

from __future__ import annotations

from torch import Tensor, nn

from train.configs import MINDConfig
from train.interests import History, InterestModel, Interests, RoutedInterests
from train.layers import initialise
from train.table_shard import LargeTable


class MIND(InterestModel):
    """Routed interests over the history; input and output share the item table."""

    def __init__(self, config: MINDConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        shape = (config.width, config.interests, config.max_length)
        self.routing = RoutedInterests(*shape, shared=True, adaptive=config.adaptive)
        self.out = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.ReLU(), nn.Linear(4 * config.width, config.width)
        ).apply(initialise)

    def extracted(self, history: History) -> Interests:
        """The capsules behind the layers with ReLU."""
        found: Interests = self.routing(history)
        return found.changed(self.out)

    def answering(self, found: Interests, target_BLD: Tensor) -> Tensor:
        """c_BLD: the interests that each target attends to, or the best alone."""
        sharpness = self.config.sharpness
        return super().answering(found, target_BLD) if sharpness is None else found.attended(target_BLD, sharpness)
