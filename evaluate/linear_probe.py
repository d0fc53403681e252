"""What a model's item vectors know of categories: the accuracy of a linear classifier on vectors it was not shown.

The paper of DimeRec (arXiv 2408.12153) reports such an accuracy for its tables; how it split the items, and what it did
with several categories of one item, is not published. Here items are split in folds, and a prediction is right if it is
any of an item's categories.

Shapes: N items with categories, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.metrics.diversity import ItemCategories
from infra.errors import UsageError
from infra.tables import FIRST_INDEX

FOLDS = 5
LARGEST = 20_000
"""Items that are drawn from a larger catalogue."""


def linear_probe(e_VD: ArrayLike, categories: ItemCategories, seed: int = 0) -> float:
    """Share of the items whose predicted category is one of theirs, each predicted by a classifier trained without it.

    Multinomial logistic regression (L2, C = 1) on vectors whose dimensions were brought to mean 0 and, all together,
    variance 1; an item of c categories is c examples of weight 1 / c. Items are put into FOLDS folds at random.
    NaN with fewer than FOLDS items that have categories, or a single category in all.
    UsageError if the table has fewer rows than there are items with categories, or a value that is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    item_N, has_NC = _labelled(categories, seed)
    vectors = np.asarray(e_VD, dtype=np.float64)
    if item_N.size and item_N.max() >= len(vectors):
        raise UsageError(f"item table: has {len(vectors)} rows, but item {item_N.max()} has categories")
    x_ND = vectors[item_N]
    if not np.isfinite(x_ND).all():
        raise UsageError("item table: holds a value that is not finite, so nothing can be read off it")
    if len(item_N) < FOLDS or has_NC.shape[1] < 2:
        return float("nan")
    x_ND = x_ND - x_ND.mean(axis=0)
    x_ND /= max(x_ND.std(), np.finfo(float).tiny)
    fold_N = np.random.default_rng(seed).permutation(len(item_N)) % FOLDS
    right_N = np.zeros(len(item_N), bool)
    for fold in range(FOLDS):
        train, held = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        owner, label = np.nonzero(has_NC[train])
        weight = 1 / has_NC[train].sum(axis=1)[owner]
        if len(np.unique(label)) == 1:
            right_N[held] = has_NC[held, label[0]]
            continue
        classifier = LogisticRegression(max_iter=1000).fit(x_ND[train[owner]], label, sample_weight=weight)
        right_N[held] = has_NC[held, classifier.predict(x_ND[held])]
    return float(right_N.mean())


def _labelled(categories: ItemCategories, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(item indices (N,), which categories each has (N, C)); the categories of no item left out."""
    items = np.flatnonzero(np.diff(categories.offsets) > 0)
    items = items[items >= FIRST_INDEX]
    if len(items) > LARGEST:
        items = np.sort(np.random.default_rng(seed).choice(items, LARGEST, replace=False))
    rows = [categories.values[categories.offsets[i] : categories.offsets[i + 1]] for i in items]
    numbers, place = np.unique(np.concatenate([np.zeros(0, np.int64), *rows]), return_inverse=True)
    has_NC = np.zeros((len(items), len(numbers)), bool)
    has_NC[np.repeat(np.arange(len(items)), [len(row) for row in rows]), place] = True
    return items, has_NC
