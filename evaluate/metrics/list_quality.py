"""Whether lists are what a list has to be, apart from how good they are: each figure is a share of users, and 1 where
nothing is wrong.

Shapes: B users, K slots. Lists are item indices (B, K); 0 is an empty slot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.metrics.diversity import checked_lists
from infra.errors import UsageError
from infra.tables import FIRST_INDEX, PADDING
from train.ragged import Ragged

PREFIX = "quality/"


def list_quality(lists: ArrayLike, seen: Ragged, catalogue: int, available_B: NDArray[np.int64]) -> dict[str, float]:
    """Shares of users by name, under `PREFIX`; NaN without users.

    covered: there is an item, if any is available; complete: as many as there are slots, or are available; distinct:
    none twice; known: none but of the `catalogue` rows, padding and unknown aside, and no gap before the last one;
    unseen: none of the user's history. `seen` (B rows) is what lists may not have, `available_B` the number of
    candidates that are left to each user.

    >>> seen = Ragged(np.array([2], np.int32), np.array([0, 1, 1]))
    >>> list_quality([[3, 2], [4, 4]], seen, catalogue=5, available_B=np.array([2, 3]))["quality/unseen"]
    0.5
    """
    lists_BK = checked_lists(lists, None, "")
    if not len(lists_BK) == len(seen) == len(available_B):
        raise UsageError(f"lists of {len(lists_BK)} users, histories of {len(seen)}; pass both of the same users")
    there_BK = lists_BK != PADDING
    items_B = there_BK.sum(axis=1)
    ordered_BK = np.sort(lists_BK, axis=1)
    twice_BK = (ordered_BK[:, 1:] == ordered_BK[:, :-1]) & (ordered_BK[:, 1:] != PADDING)
    outside_BK = there_BK & ((lists_BK < FIRST_INDEX) | (lists_BK >= catalogue))
    gap_BK = there_BK[:, 1:] & ~there_BK[:, :-1]
    right = {
        "covered": items_B >= np.minimum(1, available_B),
        "complete": items_B >= np.minimum(lists_BK.shape[1], available_B),
        "distinct": ~twice_BK.any(axis=1),
        "known": ~outside_BK.any(axis=1) & ~gap_BK.any(axis=1),
        "unseen": ~repeats(lists_BK, seen),
    }
    return {f"{PREFIX}{name}": float(of_B.mean()) if len(of_B) else float("nan") for name, of_B in right.items()}


def repeats(items_BK: NDArray[np.int64], seen: Ragged) -> NDArray[np.bool_]:
    """(B,): the list has an item of the history; padding and unknown are none."""
    user_T = np.repeat(np.arange(len(seen)), seen.lengths)
    size = int(max(items_BK.max(initial=0), seen.values.max(initial=0))) + 1
    own_T = (user_T * size + seen.values)[seen.values >= FIRST_INDEX]
    listed_BK = np.arange(len(items_BK))[:, None] * size + items_BK
    found: NDArray[np.bool_] = (np.isin(listed_BK, own_T) & (items_BK != PADDING)).any(axis=1)
    return found


def distinct_items(seen: Ragged, catalogue: int) -> NDArray[np.int64]:
    """(B,): how many different candidates of the catalogue's rows stand in each history."""
    user_T = np.repeat(np.arange(len(seen)), seen.lengths)
    kept_T = (seen.values >= FIRST_INDEX) & (seen.values < catalogue)
    pairs = np.unique(user_T[kept_T] * catalogue + seen.values[kept_T])
    return np.bincount(pairs // max(1, catalogue), minlength=len(seen))
