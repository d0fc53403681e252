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

from train.configs import ComiRecConfig
from train.interests import History, InterestModel, Interests, RoutedInterests, SelfAttentiveInterests
from train.table_shard import LargeTable


class ComiRec(InterestModel):
    """Several interests over the history; input and output share the item table."""

    def __init__(self, config: ComiRecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        shape = (config.width, config.interests, config.max_length)
        self.extract: SelfAttentiveInterests | RoutedInterests = (
            SelfAttentiveInterests(*shape, config.recency)
            if config.extraction == "attention"
            else RoutedInterests(*shape, shared=False)
        )

    def extracted(self, history: History) -> Interests:
        """ComiRec-SA's or -DR's."""
        found: Interests = self.extract(history)
        return found
