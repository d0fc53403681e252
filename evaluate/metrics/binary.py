"""How well a ranking model separates positive from negative impressions: AUC, UAUC, log loss.

Shapes: B impressions, U users. Labels are 0 or 1. AUC is exact: pair counts are integers until the
last division, and a tied pair counts one half (Mann-Whitney with midranks).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import UsageError

CLIP = 1e-7
"""Probabilities are held in [CLIP, 1 - CLIP], so that one certain mistake costs 16.1 nats, not infinity."""


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2 over all pairs.

    NaN when there are no positives or no negatives: there is no pair to compare. Scores may be
    logits or probabilities, infinities included; a NaN score is a UsageError.

    >>> auc([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1])
    0.875
    """
    labels_B = _labels(labels)
    _, values_U = user_auc(labels_B, scores, np.zeros(len(labels_B), dtype=np.int64))
    return float(values_U[0]) if values_U.size else float("nan")


def uauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> tuple[float, int]:
    """(mean of the users' AUC, number of users in that mean); each user weighs the same.

    Users with labels of one class only have no pair and are left out. Without any user left the
    mean is NaN. Errors as in `auc`.

    >>> uauc([1, 0, 1, 0, 1], [0.9, 0.1, 0.2, 0.8, 0.7], ["a", "a", "b", "b", "c"])
    (0.5, 2)
    """
    _, values_U = user_auc(labels, scores, users)
    counted = values_U[~np.isnan(values_U)]
    return (float(counted.mean()) if counted.size else float("nan")), len(counted)


def user_auc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """(users ascending (U,), their AUC (U,)), NaN for a user with one class only.

    Per user with P positives, N negatives: AUC = (sum of the positives' midranks - P (P + 1) / 2)
    / (P N). One sort over all impressions, no loop over users.

    >>> names, values = user_auc([1, 0, 1], [0.9, 0.1, 0.5], ["b", "b", "a"])
    >>> names.tolist(), values.tolist()
    (['a', 'b'], [nan, 1.0])
    """
    labels_B, scores_B, users_B = checked_impressions(labels, scores, users)
    names_U, user_B = np.unique(users_B, return_inverse=True)

    order = np.lexsort((scores_B, user_B))
    label_B, score_B, user_B = labels_B[order], scores_B[order], user_B[order]
    position_B = np.arange(len(order))
    new_user_B = np.diff(user_B, prepend=-1) != 0
    new_tie_B = new_user_B.copy()
    new_tie_B[1:] |= score_B[1:] != score_B[:-1]
    tie_B = np.cumsum(new_tie_B) - 1
    first = np.flatnonzero(new_tie_B)
    past_last = np.append(first[1:], len(order))
    user_start_B = position_B[new_user_B][user_B]
    # A block of ties at 0-based positions [first, past_last) of its user has the midrank
    # (first + past_last + 1) / 2; twice that is an integer.
    midrank_twice_B = (first + past_last + 1)[tie_B] - 2 * user_start_B

    positive_B = label_B == 1
    positives_U = np.bincount(user_B[positive_B], minlength=len(names_U))
    negatives_U = np.bincount(user_B[~positive_B], minlength=len(names_U))
    ranks_twice_U = np.zeros(len(names_U), dtype=np.int64)
    np.add.at(ranks_twice_U, user_B[positive_B], midrank_twice_B[positive_B])
    wins_twice_U = ranks_twice_U - positives_U * (positives_U + 1)
    pairs_U = positives_U * negatives_U
    values_U = np.full(len(names_U), np.nan)
    np.divide(wins_twice_U, 2 * pairs_U, out=values_U, where=pairs_U > 0)
    return names_U, values_U


def auc_by_user(
    labels: ArrayLike, scores: ArrayLike, users: ArrayLike
) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """(users ascending (U,), values (U,)) whose mean is the AUC over all pairs and that vary as the users make it vary.

    v_u = AUC + U psi_u, psi_u = sum over u's positives of (V - AUC) / P and over its negatives of (V - AUC) / N, V
    being the share of the other class that a row stands on the right side of (ties half): DeLong's components, summed
    within users (Obuchowski, 1997, clustered data). So an AUC, which is no mean over users, is compared as one. All
    NaN without positives or negatives.

    >>> auc_by_user([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1], ["a", "a", "b", "b"])[1].tolist()
    [0.875, 0.875]
    """
    labels_B, scores_B, users_B = checked_impressions(labels, scores, users)
    names_U, user_B = np.unique(users_B, return_inverse=True)
    is_positive_B = labels_B == 1
    positive_P, negative_N = np.sort(scores_B[is_positive_B]), np.sort(scores_B[~is_positive_B])
    if not len(positive_P) or not len(negative_N):
        return names_U, np.full(len(names_U), np.nan)
    below_B = (_below(negative_N, scores_B)) / len(negative_N)
    above_B = 1 - _below(positive_P, scores_B) / len(positive_P)
    whole = below_B[is_positive_B].mean()
    share_B = np.where(is_positive_B, (below_B - whole) / len(positive_P), (above_B - whole) / len(negative_N))
    return names_U, whole + len(names_U) * np.bincount(user_B, share_B, minlength=len(names_U))


def _below(sorted_C: NDArray[np.float64], scores_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of the sorted ones stand below each score, ties half."""
    return (np.searchsorted(sorted_C, scores_B, "left") + np.searchsorted(sorted_C, scores_B, "right")) / 2


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of -[y ln p + (1 - y) ln(1 - p)] in nats, p clipped to [1e-7, 1 - 1e-7]; NaN without rows.

    UsageError for NaN or for anything outside [0, 1], which is a logit and not a probability.

    >>> round(log_loss([1, 0], [0.5, 0.5]), 6)
    0.693147
    """
    labels_B, p_B = checked_probabilities(labels, probabilities)
    if not labels_B.size:
        return float("nan")
    p_B = np.clip(p_B, CLIP, 1 - CLIP)
    return float(-np.log(np.where(labels_B == 1, p_B, 1 - p_B)).mean())


def checked_impressions(
    labels: ArrayLike, scores: ArrayLike, users: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.generic]]:
    """(labels, scores, users), each (B,). UsageError for labels but 0 and 1, NaN scores, or lengths that differ."""
    labels_B, scores_B, users_B = _labels(labels), _without_nan(scores, "scores"), np.asarray(users)
    _same_length(labels_B, scores_B, "scores")
    _same_length(labels_B, users_B, "users")
    return labels_B, scores_B, users_B


def checked_probabilities(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(labels, probabilities), each (B,). UsageError also for anything outside [0, 1]."""
    labels_B, p_B = _labels(labels), _without_nan(probabilities, "probabilities")
    _same_length(labels_B, p_B, "probabilities")
    outside = int(((p_B < 0) | (p_B > 1)).sum())
    if outside:
        raise UsageError(f"probabilities: {outside} of {p_B.size} outside [0, 1]; apply the sigmoid to logits first")
    return labels_B, p_B


def _labels(labels: ArrayLike) -> NDArray[np.int64]:
    labels_B = np.asarray(labels)
    if labels_B.ndim != 1:
        raise UsageError(f"labels: expected shape (B,), found {labels_B.shape}")
    wrong = int((~np.isin(labels_B, (0, 1))).sum())
    if wrong:
        raise UsageError(f"labels: {wrong} of {labels_B.size} are neither 0 nor 1")
    return labels_B.astype(np.int64)


def _without_nan(values: ArrayLike, name: str) -> NDArray[np.float64]:
    values_B = np.asarray(values, dtype=np.float64)
    missing = int(np.isnan(values_B).sum())
    if missing:
        raise UsageError(f"{name}: {missing} of {values_B.size} are NaN; the model's output cannot be ranked")
    return values_B


def _same_length(labels_B: NDArray[np.int64], other_B: NDArray[np.generic], name: str) -> None:
    if other_B.shape != labels_B.shape:
        raise UsageError(f"{name}: shape {other_B.shape}, but there are {len(labels_B)} labels")
