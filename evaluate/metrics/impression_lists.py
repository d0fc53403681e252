"""Lists of a user's own impressions in the order of their scores, with several relevant ones: HR, NDCG, MRR, recall,
precision and average precision at k.

Shapes: B impressions, U users. Labels are 0 or 1. Tied scores are in every order at once: each metric is its
expectation over the orders of ties (McSherry and Najork, 2008), so nothing depends on the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.metrics.binary import checked_impressions
from infra.errors import UsageError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def list_metrics(
    labels: ArrayLike, scores: ArrayLike, users: ArrayLike, ks: Iterable[int], names: Iterable[str] = ("hr", "ndcg")
) -> tuple[NDArray[np.generic], dict[str, Floats]]:
    """(users ascending (U,), `NAME_at_K` (U,) for each name and K); NaN for a user without a positive.

    hr: a positive is among the first k. ndcg = DCG@k / DCG@k of the best order, DCG@k = sum of 1 / log2(1 + place)
    over the positives among the first k. mrr: 1 / place of the first positive, 0 beyond k. recall, precision: the
    positives among the first k over all positives, over k. map = sum over the positives among the first k of the
    share of positives down to each one, over all positives (trec_eval's map_cut; others divide by at most k).
    UsageError as in `user_auc`, or for k < 1.

    >>> names, found = list_metrics([1, 0, 1, 0], [0.9, 0.5, 0.1, 0.2], ["a", "a", "b", "b"], ks=[1])
    >>> names.tolist(), found["hr_at_1"].tolist()
    (['a', 'b'], [1.0, 0.0])
    """
    blocks = _Blocks.of(*checked_impressions(labels, scores, users))
    found: dict[str, Floats] = {}
    chosen = list(names)
    for k in ks:
        if k < 1:
            raise UsageError(f"cut-off k={k}: must be at least 1")
        found |= {f"{name}_at_{k}": getattr(blocks, name)(k) for name in chosen}
    return blocks.names_U, found


@dataclass(frozen=True)
class _Blocks:
    """Each user's impressions with one score, best first. Shape T: blocks of ties."""

    names_U: NDArray[np.generic]
    user_T: Ints
    start_T: Ints
    """0-based place of its first one in the user's list."""
    size_T: Ints
    positives_T: Ints
    positives_U: Ints

    @classmethod
    def of(cls, label_B: Ints, score_B: Floats, users_B: NDArray[np.generic]) -> _Blocks:
        names_U, user_B = np.unique(users_B, return_inverse=True)
        order = np.lexsort((-score_B, user_B))
        label_B, score_B, user_B = label_B[order], score_B[order], user_B[order]
        new_user_B = np.diff(user_B, prepend=-1) != 0
        new_B = new_user_B.copy()
        new_B[1:] |= score_B[1:] != score_B[:-1]
        first_T = np.flatnonzero(new_B)
        user_T = user_B[first_T]
        positives_T = np.add.reduceat(label_B, first_T) if len(first_T) else np.zeros(0, np.int64)
        return cls(
            names_U=names_U,
            user_T=user_T,
            start_T=first_T - np.flatnonzero(new_user_B)[user_T],
            size_T=np.diff(first_T, append=len(label_B)),
            positives_T=positives_T,
            positives_U=np.bincount(user_B, label_B, minlength=len(names_U)).astype(np.int64),
        )

    def ndcg(self, k: int) -> Floats:
        """Each place of a block holds a positive with the block's share of them."""
        longest = int((self.start_T + self.size_T).max(initial=0))
        gain_to = np.concatenate([[0.0], np.cumsum(1 / np.log2(2 + np.arange(min(k, longest))))])
        past = len(gain_to) - 1
        gains_T = gain_to[np.minimum(self.start_T + self.size_T, past)] - gain_to[np.minimum(self.start_T, past)]
        share_T = self.positives_T / self.size_T
        dcg_U = np.bincount(self.user_T, gains_T * share_T, minlength=len(self.names_U)).astype(np.float64)
        return self._defined(dcg_U, gain_to[np.minimum(self.positives_U, past)])

    def hr(self, k: int) -> Floats:
        """1 less the chance that no block has a positive among those of its places that are within k."""
        within_T = np.clip(k - self.start_T, 0, self.size_T)
        sure_T = (self.positives_T > 0) & (within_T == self.size_T)
        missed_T = np.where(sure_T, 0.0, 1.0)
        for t in np.flatnonzero((self.positives_T > 0) & (within_T > 0) & ~sure_T):  # at most one per user
            size, drawn = int(self.size_T[t]), int(within_T[t])
            missed_T[t] = math.comb(size - int(self.positives_T[t]), drawn) / math.comb(size, drawn)
        missed_U: Floats = np.ones(len(self.names_U))
        np.multiply.at(missed_U, self.user_T, missed_T)
        return self._defined(np.subtract(1.0, missed_U), np.ones(len(self.names_U)))

    def mrr(self, k: int) -> Floats:
        """In a user's first block with positives, the first of r among n stands at place j with the chance
        C(n - j, r - 1) / C(n, r)."""
        some_T = np.flatnonzero(self.positives_T > 0)
        first_T = some_T[np.diff(self.user_T[some_T], prepend=-1) != 0]
        start, size, several = self.start_T[first_T], self.size_T[first_T], self.positives_T[first_T]
        chance, value = several / size, np.zeros(len(first_T))
        for place in range(1, min(k, int((start + size).max(initial=0))) + 1):
            offset = place - start  # 1-based within the block
            inside = (offset >= 1) & (offset <= size)
            value += np.where(inside, chance, 0.0) / place
            left = np.maximum(size - offset, 1)
            chance = np.where(inside, chance * np.maximum(size - offset - several + 1, 0) / left, chance)
        value_U = np.zeros(len(self.names_U))
        value_U[self.user_T[first_T]] = value
        return self._defined(value_U, np.ones(len(self.names_U)))

    def recall(self, k: int) -> Floats:
        """The positives within k, of which a block that is cut has its share, over all."""
        return self._defined(self._positives_within(k), self.positives_U)

    def precision(self, k: int) -> Floats:
        """The same over k."""
        return self._defined(self._positives_within(k), np.full(len(self.names_U), float(k)))

    def map(self, k: int) -> Floats:
        """Place j of a block of n with r positives, behind s places with p: r / n [p + 1 + (j - 1) (r - 1) / (n - 1)]
        / (s + j) is expected of it; summed over j through sums of 1 / place."""
        before_T = np.cumsum(self.positives_T) - self.positives_T
        opens_T = np.diff(self.user_T, prepend=-1) != 0
        before_T -= before_T[opens_T][self.user_T]
        within_T = np.clip(k - self.start_T, 0, self.size_T)
        places = np.arange(1, int((self.start_T + within_T).max(initial=0)) + 1)
        harmonic = np.concatenate([[0.0], np.cumsum(1 / places)])
        past = len(harmonic) - 1
        inverse_T = harmonic[np.minimum(self.start_T + within_T, past)] - harmonic[np.minimum(self.start_T, past)]
        steps_T = within_T - (self.start_T + 1) * inverse_T  # sum of (j - 1) / (s + j)
        more_T = (self.positives_T - 1) / np.maximum(self.size_T - 1, 1)
        sum_T = self.positives_T / self.size_T * ((before_T + 1) * inverse_T + more_T * steps_T)
        sum_U = np.bincount(self.user_T, sum_T, minlength=len(self.names_U)).astype(np.float64)
        return self._defined(sum_U, self.positives_U)

    def _positives_within(self, k: int) -> Floats:
        within_T = np.clip(k - self.start_T, 0, self.size_T)
        share_T = self.positives_T * within_T / self.size_T
        return np.bincount(self.user_T, share_T, minlength=len(self.names_U)).astype(np.float64)

    def _defined(self, value_U: Floats, ideal_U: Floats | Ints) -> Floats:
        return np.divide(value_U, ideal_U, out=np.full(len(value_U), np.nan), where=self.positives_U > 0)
