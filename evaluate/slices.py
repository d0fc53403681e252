"""Parts of the users, or of the impressions, whose figures are looked at by themselves.

A slice is a name ("history: 5 to 19") and a mask. Slices of one kind need not cover everybody, nor be disjoint (an
item has several tags).

Shapes: N users or impressions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Masks = dict[str, NDArray[np.bool_]]
VALUES = 10
"""Values of a field that get a slice each: the most frequent ones."""
_LENGTHS = (0, 1, 5, 20, 100)


@dataclass(frozen=True)
class FieldValues:
    """Values of the fields that slices are asked by; a field is of the users or of the items."""

    users: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Field -> user -> value."""
    items: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Field -> value of each catalogue row."""

    def masks(self, user_N: Sequence[str] | NDArray[np.object_], target_N: NDArray[np.int64]) -> Masks:
        """By each user's own value, and by that of its target."""
        found: Masks = {}
        for name, of_user in self.users.items():
            found |= by_values(name, [of_user.get(user) for user in user_N])
        for name, of_item in self.items.items():
            found |= by_values(name, [of_item[i] if i < len(of_item) else None for i in target_N])
        return found


def by_history(length_N: NDArray[np.int64]) -> Masks:
    """Users by the number of events in their history; those of 0 are cold.

    >>> {name: mask.tolist() for name, mask in by_history(np.array([0, 4, 7])).items()}
    {'history: 0 (cold)': [True, False, False], 'history: 1 to 4': [False, True, False], 'history: 5 to 19': [False, False, True]}
    """  # noqa: E501
    ends = (*_LENGTHS[1:], None)
    names = [
        "0 (cold)",
        *(f"{a} and more" if b is None else f"{a} to {b - 1}" for a, b in list(zip(_LENGTHS, ends, strict=True))[1:]),
    ]
    place_N = np.searchsorted(_LENGTHS, length_N, side="right") - 1
    return _some({f"history: {name}": place_N == place for place, name in enumerate(names)})


def by_activity(count_N: NDArray[np.int64]) -> Masks:
    """Quarters by how much there is of each, from the least active; those with the same count stay together.

    >>> [mask.tolist() for mask in by_activity(np.array([1, 9])).values()]
    [[True, False], [False, True]]
    """
    if not len(count_N):
        return {}
    edges = np.quantile(count_N, [0.25, 0.5, 0.75], method="lower")
    quarter_N = np.searchsorted(edges, count_N, side="left")
    names = ("least active quarter", "second quarter", "third quarter", "most active quarter")
    return _some({f"activity: {name}": quarter_N == place for place, name in enumerate(names)})


def by_target(count_N: NDArray[np.int64], head_N: NDArray[np.bool_], known_N: NDArray[np.bool_]) -> Masks:
    """Users by their target: of the head, of the tail, or cold: without an event before the cut.

    `count_N` (training events of the target) tells the tail from what is known but was not in a training chunk."""
    return _some(
        {
            "target: head": head_N & known_N,
            "target: tail": ~head_N & known_N & (count_N > 0),
            "target: cold": ~known_N,
        }
    )


def by_values(name: str, values: Sequence[Any]) -> Masks:
    """By the values of a field: a text or number, several, or None for missing. Numbers fall into quarters; of texts
    the `VALUES` most frequent count (ties by name).

    >>> {name: mask.tolist() for name, mask in by_values("tag", [["a", "b"], "a", None]).items()}
    {'tag: a': [True, True, False], 'tag: b': [True, False, False], 'tag: missing': [False, False, True]}
    """
    missing = np.array([value is None or value == [] for value in values], bool)
    found = [value for value in values if value is not None]
    if found and all(isinstance(value, int | float) and not isinstance(value, bool) for value in found):
        masks = _numbers(name, values, missing)
    else:
        several = [_several(value) for value in values]
        counts = Counter(text for texts in several for text in texts)
        frequent = sorted(counts, key=lambda text: (-counts[text], text))[:VALUES]
        masks = {f"{name}: {text}": np.array([text in texts for texts in several], bool) for text in frequent}
    return _some({**masks, f"{name}: missing": missing})


def _numbers(name: str, values: Sequence[Any], missing: NDArray[np.bool_]) -> Masks:
    value_N = np.array([0.0 if value is None else float(value) for value in values])
    there = value_N[~missing]
    edges = np.unique(np.quantile(there, [0, 0.25, 0.5, 0.75, 1], method="lower"))
    place_N = np.clip(np.searchsorted(edges, value_N, side="left"), 1, max(1, len(edges) - 1))
    last = len(edges) - 1
    if not last:
        return {f"{name}: {edges[0]:g}": ~missing}
    return {
        f"{name}: {'from' if place == 1 else 'above'} {edges[place - 1]:g} to {edges[place]:g}": (place_N == place)
        & ~missing
        for place in range(1, last + 1)
    }


def _several(value: Any) -> set[str]:
    if value is None:
        return set()
    return {str(v) for v in value} if isinstance(value, Iterable) and not isinstance(value, str) else {str(value)}


def _some(masks: Masks) -> Masks:
    """Those that anybody is in."""
    return {name: mask for name, mask in masks.items() if mask.any()}
