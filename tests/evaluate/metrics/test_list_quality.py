"""Expected values: by hand, one fault at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluate.metrics.list_quality import distinct_items, list_quality
from infra.errors import UsageError
from train.ragged import Ragged

#: User 0 has had 2, user 1 nothing, user 2 (of a catalogue of items 2 to 5) all but 5.
SEEN = Ragged(np.array([2, 2, 3, 4, 2], np.int32), np.array([0, 1, 1, 5]))
AVAILABLE = np.array([3, 4, 1])
GOOD = [[3, 4], [2, 3], [5, 0]]


def found(lists: list[list[int]]) -> dict[str, float]:
    shares = list_quality(lists, SEEN, 6, AVAILABLE)
    return {name.removeprefix("quality/"): share for name, share in shares.items() if share < 1}


@pytest.mark.parametrize(
    ("user", "listed", "wrong"),
    [
        (0, [3, 4], set()),
        (1, [2, 0], {"complete"}),
        (1, [0, 0], {"covered", "complete"}),
        (2, [0, 0], {"covered", "complete"}),
        (1, [3, 3], {"distinct"}),
        (0, [2, 3], {"unseen"}),
        (1, [1, 3], {"known"}),
        (1, [6, 3], {"known"}),
        (1, [0, 3], {"complete", "known"}),
    ],
)
def test_one_fault_at_a_time(user: int, listed: list[int], wrong: set[str]) -> None:
    lists = [row if i != user else listed for i, row in enumerate(GOOD)]
    assert found(lists) == {name: pytest.approx(2 / 3) for name in wrong}


def test_who_has_had_everything_needs_no_list() -> None:
    seen = Ragged(np.array([2, 3], np.int32), np.array([0, 2]))
    assert set(list_quality([[0, 0]], seen, 4, np.array([0])).values()) == {1.0}


def test_nobody() -> None:
    empty = Ragged(np.zeros(0, np.int32), np.array([0]))
    shares = list_quality(np.zeros((0, 3), int), empty, 4, np.zeros(0, np.int64))
    assert all(math.isnan(share) for share in shares.values())


def test_lists_and_histories_of_different_users() -> None:
    with pytest.raises(UsageError, match="lists of 1 users, histories of 3"):
        list_quality([[2]], SEEN, 6, AVAILABLE)


def test_distinct_items() -> None:
    assert distinct_items(SEEN, 6).tolist() == [1, 0, 3]
    assert distinct_items(SEEN, 4).tolist() == [1, 0, 2]
