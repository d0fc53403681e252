"""Accuracy of a retrieval model, one value per user, from the exact rank of each user's one target.

Shapes: B users. Ranks are 1-based over the whole catalogue (1 = best). With a single relevant item
the ideal DCG is 1, so NDCG is the target's own discount; recall is the hit rate, and average precision the
reciprocal rank (`evaluate.metrics.impression_lists` has them with several). Means, intervals and slices are reductions
of these vectors; batches are never averaged first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import UsageError

MISS = 2**31 - 1
"""The rank of a target that is no candidate (as `train.ranking` gives it): 0 in every metric, at every k."""


def hr(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Hit rate: 1 where rank <= k, else 0; (B,) -> (B,). UsageError if k < 1 or a rank is below 1.

    >>> hr([1, 3, 7], k=3).tolist()
    [1.0, 1.0, 0.0]
    """
    ranks_B = _checked(ranks)
    return (ranks_B <= _cut_off(k)).astype(np.float64)


def ndcg(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """NDCG: 1 / log2(1 + rank) where rank <= k, else 0; (B,) -> (B,). Errors as in `hr`.

    >>> ndcg([1, 3, 7], k=3).tolist()
    [1.0, 0.5, 0.0]
    """
    ranks_B = _checked(ranks)
    return np.where(ranks_B <= _cut_off(k), 1.0 / np.log2(1.0 + ranks_B), 0.0)


def reciprocal_rank(ranks: ArrayLike) -> NDArray[np.float64]:
    """1 / rank, and 0 from `MISS` on; (B,) -> (B,). Its mean is the MRR, without a cut-off.

    >>> reciprocal_rank([1, 4, MISS]).tolist()
    [1.0, 0.25, 0.0]
    """
    ranks_B = _checked(ranks)
    return np.where(ranks_B >= MISS, 0.0, 1.0 / ranks_B)


def reciprocal_rank_at(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """1 / rank where rank <= k, else 0: MRR@k, and with one relevant item average precision too; (B,) -> (B,).

    >>> reciprocal_rank_at([1, 4, 7], k=5).tolist()
    [1.0, 0.25, 0.0]
    """
    ranks_B = _checked(ranks)
    return np.where(ranks_B <= _cut_off(k), 1.0 / ranks_B, 0.0)


def precision(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Relevant items among the first k over k, also where fewer than k are listed; (B,) -> (B,).

    >>> precision([1, 4, 7], k=5).tolist()
    [0.2, 0.2, 0.0]
    """
    return hr(ranks, k) / k


METRICS: dict[str, Callable[[ArrayLike, int], NDArray[np.float64]]] = {
    "hr": hr,
    "ndcg": ndcg,
    "mrr": reciprocal_rank_at,
    "recall": hr,
    "precision": precision,
    "map": reciprocal_rank_at,
}
"""What can be asked for at a cut-off; the names of `evaluate.settings.AccuracyMetric`."""


def summarise(
    ranks: ArrayLike, ks: Iterable[int], names: Iterable[str] = ("hr", "ndcg")
) -> dict[str, NDArray[np.float64]]:
    """The per-user vectors `NAME_at_K` for each name and K, and `mrr` without a cut-off, all of shape (B,).

    Names carry `_at_` because MLflow refuses `@`.

    >>> sorted(summarise([1, 2], ks=[5]))
    ['hr_at_5', 'mrr', 'ndcg_at_5']
    """
    ranks_B, chosen = _checked(ranks), list(names)
    vectors = {f"{name}_at_{k}": METRICS[name](ranks_B, k) for k in ks for name in chosen}
    return {**vectors, "mrr": reciprocal_rank(ranks_B)}


def mean(values: ArrayLike) -> float:
    """Mean over users; NaN for no users, because nothing was measured (0 would read as a bad model).

    >>> mean([0.0, 1.0]), mean([])
    (0.5, nan)
    """
    values_B = np.asarray(values, dtype=np.float64)
    return float(values_B.mean()) if values_B.size else float("nan")


def _cut_off(k: int) -> int:
    if k < 1:
        raise UsageError(f"cut-off k={k}: must be at least 1")
    return k


def _checked(ranks: ArrayLike) -> NDArray[np.int64]:
    ranks_B = np.asarray(ranks)
    if ranks_B.ndim != 1:
        raise UsageError(f"ranks: expected one rank per user, shape (B,), found shape {ranks_B.shape}")
    if ranks_B.size == 0:
        return np.zeros(0, dtype=np.int64)
    if ranks_B.dtype.kind not in "iu":
        raise UsageError(f"ranks: expected whole numbers, found {ranks_B.dtype}")
    if ranks_B.min() < 1:
        raise UsageError(f"ranks: {int((ranks_B < 1).sum())} below 1; ranks count from 1 = best")
    return ranks_B.astype(np.int64, copy=False)
