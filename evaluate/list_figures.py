"""Everything that is measured of the lists that a sequence model makes.

Shapes: N users, K slots, V catalogue rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.metrics.accuracy import mean
from evaluate.metrics.diversity import (
    ItemCategories,
    catalogue_coverage,
    category_count,
    embedding_distance,
    exposure_entropy,
    gini,
    intra_list_distance,
)
from evaluate.metrics.list_quality import distinct_items, list_quality
from evaluate.metrics.popularity import head_share, novelty
from infra.tables import FIRST_INDEX
from train.ragged import Ragged

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lists:
    """(N, K) lists and what they were drawn from."""

    items_NK: Ints
    seen: Ragged
    """N rows: what was left out of each."""
    catalogue: int
    """Today's rows; a model that knows fewer can only list its own."""
    known: int
    counts_V: Ints
    """Training events of each of today's rows."""
    e_VD: NDArray[np.float32] | None
    """The model's table; None if it has none."""
    categories: ItemCategories | None


def list_figures(lists: Lists) -> tuple[dict[str, float], dict[str, Floats]]:
    """(figures over all users, values per user (N,) whose means are among them).

    Without training events there is no popularity, without categories or table no distance by them: those are left out.
    """
    items_NK, rows = lists.items_NK, min(lists.catalogue, lists.known)
    candidates = lists.catalogue - FIRST_INDEX
    available_N = rows - FIRST_INDEX - distinct_items(lists.seen, rows)
    figures = {
        "catalogue_coverage": catalogue_coverage(items_NK, candidates),
        "gini": gini(items_NK, candidates),
        "exposure_entropy": exposure_entropy(items_NK, candidates),
    }
    per_user: dict[str, Floats] = {}
    if lists.categories is not None:
        per_user["category_count"] = category_count(items_NK, lists.categories).astype(np.float64)
        per_user["intra_list_distance"] = intra_list_distance(items_NK, lists.categories)
    if lists.e_VD is not None and lists.e_VD.shape[1] > 1:  # at a width of 1 there are no directions
        per_user["embedding_distance"] = embedding_distance(items_NK, lists.e_VD)
    if lists.counts_V.any():
        per_user["novelty"] = novelty(items_NK, lists.counts_V)
        figures["head_share"] = head_share(items_NK, lists.counts_V)
    figures |= {name: mean(value_N) for name, value_N in per_user.items()}
    return figures | list_quality(items_NK, lists.seen, lists.catalogue, available_N), per_user
