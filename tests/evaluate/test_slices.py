"""Slices by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluate.slices import VALUES, FieldValues, by_activity, by_history, by_target, by_values


def places(masks: dict[str, Any]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()}


def test_history_lengths_at_the_ends_of_their_bins() -> None:
    assert places(by_history(np.array([0, 1, 4, 5, 19, 20, 99, 100, 5000]))) == {
        "history: 0 (cold)": [0],
        "history: 1 to 4": [1, 2],
        "history: 5 to 19": [3, 4],
        "history: 20 to 99": [5, 6],
        "history: 100 and more": [7, 8],
    }


def test_quarters_of_activity() -> None:
    found = places(by_activity(np.array([1, 2, 3, 4, 5, 6, 7, 8])))
    assert sorted(i for part in found.values() for i in part) == list(range(8))
    assert [name.removeprefix("activity: ") for name in found] == [
        "least active quarter", "second quarter", "third quarter", "most active quarter"
    ]  # fmt: skip
    assert places(by_activity(np.array([3, 3, 3]))) == {"activity: least active quarter": [0, 1, 2]}
    assert by_activity(np.zeros(0, np.int64)) == {}


def test_targets() -> None:
    counts, head, known = (
        np.array([9, 1, 0, 0]),
        np.array([True, False, False, False]),
        np.array([True, True, True, False]),
    )
    assert places(by_target(counts, head, known)) == {"target: head": [0], "target: tail": [1], "target: cold": [3]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", None, "b"], {"f: b": [0, 3], "f: a": [1], "f: missing": [2]}),
        ([["a", "b"], [], ["b"]], {"f: b": [0, 2], "f: a": [0], "f: missing": [1]}),
        ([1.0, 2.0, 3.0, 4.0, None], {"f: from 1 to 2": [0, 1], "f: above 2 to 3": [2], "f: above 3 to 4": [3],
                                      "f: missing": [4]}),
        ([7, 7], {"f: 7": [0, 1]}),
        ([None], {"f: missing": [0]}),
        ([], {}),
    ],
)  # fmt: skip
def test_values(values: list[Any], expected: dict[str, list[int]]) -> None:
    assert places(by_values("f", values)) == expected


def test_only_the_most_frequent_values_count() -> None:
    values = [f"v{i:02d}" for i in range(VALUES + 5)] + ["v14"]
    found = by_values("f", values)
    assert len(found) == VALUES
    assert next(iter(found)) == "f: v14"


def test_values_of_users_and_of_their_targets() -> None:
    fields = FieldValues({"age": {"u": "old"}}, {"genre": [None, None, "war", "war"]})
    found = places(fields.masks(["u", "v"], np.array([3, 7])))
    assert found == {"age: old": [0], "age: missing": [1], "genre: war": [0], "genre: missing": [1]}
