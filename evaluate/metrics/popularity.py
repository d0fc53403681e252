"""What recommendations owe to popularity: novelty, the share of the head, serendipity.

Shapes: B users, K slots, V item indices. Lists are item indices (B, K); 0 is an empty slot and never counts.
counts_V: training events of each item, 0 for padding and unknown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.metrics.accuracy import hr
from evaluate.metrics.diversity import checked_lists
from infra.errors import UsageError
from infra.tables import PADDING

HEAD = 0.8
"""The head are the fewest items that hold this share of the training events; the rest is the tail."""


def head(counts_V: NDArray[np.int64], share: float = HEAD) -> NDArray[np.bool_]:
    """(V,): the most popular items, ties by index, until they hold `share` of all events. UsageError without events.

    >>> head(np.array([0, 0, 5, 1, 3, 1])).tolist()
    [False, False, True, False, True, False]
    """
    total = _events(counts_V)
    order = np.argsort(-counts_V, kind="stable")
    before = np.cumsum(counts_V[order]) - counts_V[order]
    out_V = np.zeros(len(counts_V), bool)
    out_V[order[before < share * total]] = True
    return out_V & (counts_V > 0)


def head_share(lists: ArrayLike, counts_V: NDArray[np.int64]) -> float:
    """Share of all filled slots that items of the head take; NaN for empty lists. Of the events it is about `HEAD`:
    above that, lists are more popular than what people do by themselves. 1 less it is the share of the tail.

    >>> head_share([[2, 3], [2, 0]], np.array([0, 0, 5, 1, 3, 1]))
    0.6666666666666666
    """
    lists_BK = checked_lists(lists, len(counts_V), "the counts hold")
    filled = lists_BK[lists_BK != PADDING]
    return float(head(counts_V)[filled].mean()) if filled.size else float("nan")


def novelty(lists: ArrayLike, counts_V: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean self-information of a list's items in bits, -log2(n_i / N): how unlikely a training event is of them.

    (B, K) -> (B,) (Zhou et al., 2010). n_i is the item's training events, counted as 1 where there are none; N those
    of all items. 0 for an empty list. UsageError without events, or for an item beyond the counts.

    >>> novelty([[2, 3], [4, 0]], np.array([0, 0, 4, 1, 2, 1])).tolist()
    [2.0, 2.0]
    """
    lists_BK = checked_lists(lists, len(counts_V), "the counts hold")
    bits_V = np.log2(_events(counts_V)) - np.log2(np.maximum(counts_V, 1))
    there_BK = lists_BK != PADDING
    return (bits_V[lists_BK] * there_BK).sum(axis=1) / np.maximum(there_BK.sum(axis=1), 1)


def serendipity(
    ranks: ArrayLike, targets: NDArray[np.int64], counts_V: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """1 where the target is among the first k and is none of the k most popular items (ties by index), else 0.

    (B,) ranks as in `evaluate.metrics.accuracy`, and the items that they are of -> (B,): a hit that the obvious list
    would not have had (Ge et al., 2010, with popularity as the primitive recommender).

    >>> serendipity([1, 1, 9], np.array([2, 3, 3]), np.array([0, 0, 5, 1, 3, 1]), k=2).tolist()
    [0.0, 1.0, 0.0]
    """
    _events(counts_V)
    obvious = np.argsort(-counts_V, kind="stable")[:k]
    obvious = obvious[counts_V[obvious] > 0]
    return hr(ranks, k) * ~np.isin(targets, obvious)


def _events(counts_V: NDArray[np.int64]) -> int:
    total = int(counts_V.sum())
    if not total:
        raise UsageError("popularity: no item has a training event; there is nothing to be popular by")
    return total
