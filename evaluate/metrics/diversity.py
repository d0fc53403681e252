"""How varied the recommendations are: catalogue coverage, exposure, and per list its categories and distances.

Shapes: B users, K slots, V item indices, D width, M category entries of all items together.
Lists are item indices (B, K); 0 is an empty slot and never counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import UsageError
from infra.tables import PADDING

#: Users at once in `category_count`, which needs about 40 bytes x this x K x categories per item.
_USERS_AT_ONCE = 65_536
#: Components of vectors at once in `embedding_distance` (8 bytes each).
_NUMBERS_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class ItemCategories:
    """The categories of each item, multi-valued, as compressed rows.

    Item i has the categories values[offsets[i] : offsets[i + 1]]; offsets (V + 1,), values (M,). The
    row of item 0 (padding) must be there. Categories are vocabulary indices; 1 (unknown) counts like
    any other. UsageError if the two arrays do not fit.
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.int64]

    def __post_init__(self) -> None:
        starts = self.offsets
        if starts.ndim != 1 or not starts.size or starts[0] != 0 or starts[-1] != len(self.values):
            raise UsageError(f"item categories: offsets must run from 0 to {len(self.values)} (their values)")
        if np.any(np.diff(starts) < 0):
            raise UsageError("item categories: offsets must not decrease")
        if self.values.size and not 0 <= self.values.min() <= self.values.max() < 2**31:
            raise UsageError("item categories: a category is no vocabulary index (0 to 2**31 - 1)")

    @classmethod
    def from_lists(cls, categories: Sequence[Iterable[int]]) -> ItemCategories:
        """From one collection of categories per item index (index 0 included).

        >>> ItemCategories.from_lists([[], [7], [7, 9]]).offsets.tolist()
        [0, 0, 1, 3]
        """
        rows = [list(row) for row in categories]
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        values = np.fromiter((value for row in rows for value in row), np.int64, count=int(offsets[-1]))
        return cls(offsets, values)


def catalogue_coverage(lists: ArrayLike, catalogue_items: int) -> float:
    """Distinct recommended items / candidate items, from exact counts; in [0, 1].

    `catalogue_items` counts the candidates (padding and unknown are none). UsageError if it is
    below 1 or below the number of distinct items recommended.

    >>> catalogue_coverage([[2, 3], [3, 0]], catalogue_items=8)
    0.25
    """
    items, _ = _exposure(lists, catalogue_items)
    return len(items) / catalogue_items


def gini(lists: ArrayLike, catalogue_items: int) -> float:
    """Gini coefficient of item exposure over all candidates, those never recommended included.

    0: every candidate is recommended equally often; 1 - 1/n: one of n candidates takes every slot.
    With exposures sorted ascending x_1..x_n: sum((2 i - n - 1) x_i) / (n sum(x)). NaN for empty lists.

    >>> gini([[2, 3]], catalogue_items=2), gini([[2], [2]], catalogue_items=4)
    (0.0, 0.75)
    """
    _, counts = _exposure(lists, catalogue_items)
    total = int(counts.sum())
    if not total:
        return float("nan")
    # Candidates without exposure come first and add nothing; only the positions of the others matter.
    position = np.arange(catalogue_items - len(counts) + 1, catalogue_items + 1)
    weighted = int(((2 * position - catalogue_items - 1) * np.sort(counts)).sum())
    return weighted / (catalogue_items * total)


def exposure_entropy(lists: ArrayLike, catalogue_items: int) -> float:
    """Shannon entropy of item exposure, in nats over the log of the catalogue: in [0, 1].

    -sum p_i ln p_i / ln n, p_i being item i's share of all slots: 1 where every one of n candidates is recommended
    equally often, 0 where one takes every slot. NaN for empty lists; 1 for a catalogue of one item.

    >>> exposure_entropy([[2, 3]], catalogue_items=4), exposure_entropy([[2], [2]], catalogue_items=4)
    (0.5, 0.0)
    """
    _, counts = _exposure(lists, catalogue_items)
    if not len(counts):
        return float("nan")
    share = counts / counts.sum()
    return float(abs((share * np.log(share)).sum()) / np.log(catalogue_items)) if catalogue_items > 1 else 1.0


def category_count(lists: ArrayLike, categories: ItemCategories) -> NDArray[np.int64]:
    """Number of distinct categories in each user's list; (B, K) -> (B,).

    A category that several items (or one item twice) carry counts once; an item without categories
    adds none. UsageError if a list holds an item index beyond the table.

    >>> genres = ItemCategories.from_lists([[], [], [5, 6], [6]])
    >>> category_count([[2, 3], [3, 0]], genres).tolist()
    [2, 1]
    """
    lists_BK = _listed(lists, categories)
    parts = [
        _count_distinct(lists_BK[start : start + _USERS_AT_ONCE], categories)
        for start in range(0, len(lists_BK), _USERS_AT_ONCE)
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def intra_list_distance(lists: ArrayLike, categories: ItemCategories) -> NDArray[np.float64]:
    """Mean over the pairs of a list of 1 - |A & B| / |A | B|, A and B being two items' categories; (B, K) -> (B,).

    1 where nothing is shared, which is also said of items without categories; 0 for fewer than two items. UsageError
    as `category_count`.

    >>> genres = ItemCategories.from_lists([[], [], [5, 6], [6], [7]])
    >>> intra_list_distance([[2, 3, 0], [2, 3, 4], [2, 0, 0]], genres).tolist()
    [0.5, 0.8333333333333334, 0.0]
    """
    from scipy.sparse import csr_array

    lists_BK = _listed(lists, categories)
    users, slots = lists_BK.shape
    numbers, column = np.unique(categories.values, return_inverse=True)
    shape = (len(categories.offsets) - 1, max(1, len(numbers)))
    has_VC = csr_array((np.ones(len(column)), column, categories.offsets), shape=shape)
    has_VC.sum_duplicates()
    has_VC.data[:] = 1
    shown = [has_VC[lists_BK[:, slot]] for slot in range(slots)]
    sizes_KB, there_KB = [x.sum(axis=1) for x in shown], [lists_BK[:, slot] != PADDING for slot in range(slots)]
    total_B, pairs_B = np.zeros(users), np.zeros(users)
    for a, b in combinations(range(slots), 2):
        shared_B = shown[a].multiply(shown[b]).sum(axis=1)
        distance_B = 1 - shared_B / np.maximum(sizes_KB[a] + sizes_KB[b] - shared_B, 1)
        pair_B = there_KB[a] & there_KB[b]
        total_B += distance_B * pair_B
        pairs_B += pair_B
    return total_B / np.maximum(pairs_B, 1)


def embedding_distance(lists: ArrayLike, e_VD: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over the pairs of a list of 1 - cosine of the items' vectors; (B, K) -> (B,), 0 for fewer than two items.

    With x_i the vectors at length 1 (a zero vector stays one, and is at distance 1 from all), the cosines of all pairs
    sum to (|sum x_i|^2 - sum |x_i|^2) / 2. Vectors of different models have different distances: compare lists of one
    table only. UsageError as `category_count`.

    >>> embedding_distance([[2, 3], [2, 2], [2, 0]], np.array([[0, 0], [0, 0], [3, 0], [0, 1]], np.float32)).tolist()
    [1.0, 0.0, 0.0]
    """
    lists_BK = checked_lists(lists, len(e_VD), "the table holds")
    length_V1 = np.linalg.norm(e_VD, axis=1, keepdims=True)
    x_VD = np.divide(e_VD, length_V1, out=np.zeros_like(e_VD), where=length_V1 > 0)
    x_VD[PADDING] = 0
    out_B = np.zeros(len(lists_BK))
    rows = max(1, _NUMBERS_AT_ONCE // max(1, lists_BK.shape[1] * e_VD.shape[1]))
    for start in range(0, len(lists_BK), rows):
        some_BK = lists_BK[start : start + rows]
        x_BKD = x_VD[some_BK].astype(np.float64)
        filled_B = (some_BK != PADDING).sum(axis=1)
        pairs_B = filled_B * (filled_B - 1) / 2
        cosines_B = ((x_BKD.sum(axis=1) ** 2).sum(axis=1) - (x_BKD**2).sum(axis=(1, 2))) / 2
        out_B[start : start + rows] = np.where(pairs_B > 0, 1 - cosines_B / np.maximum(pairs_B, 1), 0.0)
    return out_B


def _count_distinct(lists_BK: NDArray[np.int64], categories: ItemCategories) -> NDArray[np.int64]:
    user, slot = np.nonzero(lists_BK != PADDING)
    item = lists_BK[user, slot]
    first = categories.offsets[item]
    length = categories.offsets[item + 1] - first
    # Entry j of the expansion belongs to the item whose run of entries it falls into.
    run_start = np.cumsum(length) - length
    entry = np.arange(int(length.sum())) + np.repeat(first - run_start, length)
    # (user, category) as one integer: a user's equal categories become neighbours when sorted.
    pairs = (np.repeat(user, length) << 32) + categories.values[entry]
    pairs.sort()
    distinct = np.diff(pairs, prepend=-1) != 0
    return np.bincount(pairs[distinct] >> 32, minlength=len(lists_BK))


def _exposure(lists: ArrayLike, catalogue_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct items recommended and how often each is."""
    if catalogue_items < 1:
        raise UsageError(f"catalogue_items={catalogue_items}: must be at least 1")
    lists_BK = _checked(lists)
    items, counts = np.unique(lists_BK[lists_BK != PADDING], return_counts=True)
    if len(items) > catalogue_items:
        raise UsageError(
            f"{len(items)} distinct items are recommended from a catalogue of {catalogue_items}; "
            "pass the number of candidate items that the lists were drawn from"
        )
    return items, counts


def _listed(lists: ArrayLike, categories: ItemCategories) -> NDArray[np.int64]:
    """The lists, all of whose items stand in the table."""
    return checked_lists(lists, len(categories.offsets) - 1, "the category table holds")


def checked_lists(lists: ArrayLike, items: int | None, holder: str) -> NDArray[np.int64]:
    """The lists, (B, K); UsageError unless they are indices, below `items` (`holder` says what ends there)."""
    lists_BK = _checked(lists)
    if items is not None and lists_BK.size and lists_BK.max() >= items:
        raise UsageError(f"item index {lists_BK.max()}: {holder} indices up to {items - 1}")
    return lists_BK


def _checked(lists: ArrayLike) -> NDArray[np.int64]:
    lists_BK = np.asarray(lists)
    if lists_BK.ndim != 2:
        raise UsageError(f"lists: expected shape (users, slots), found {lists_BK.shape}")
    if lists_BK.size == 0:
        return np.zeros(lists_BK.shape, dtype=np.int64)
    if lists_BK.dtype.kind not in "iu" or lists_BK.min() < 0:
        raise UsageError("lists: expected item indices, whole numbers from 0 (0 = empty slot)")
    return lists_BK.astype(np.int64, copy=False)
