"""train/protocol.py: histories read in groups of similar length."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from train.protocol import SequenceBatch


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 40))
def test_groups_of_similar_length_hold_everybody_once_and_are_no_larger_than_asked(lengths, events):
    items_BL = torch.zeros(len(lengths), 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        items_BL[row, 9 - length :] = torch.arange(2, 2 + length) + 10 * row
    batch = SequenceBatch.left_padded(items_BL)
    told, longest_before = [], 0
    for places, part in batch.by_length(events):
        own = [max(1, lengths[place]) for place in places]
        width = part.items_BL.shape[1]
        assert width == max(own)
        assert torch.equal(part.items_BL, items_BL[places, 9 - width :])
        assert len(own) == 1 or len(own) * width <= events * (4 if min(own) == width else 1)
        assert longest_before <= min(own)
        longest_before = width
        told += places.tolist()
    assert sorted(told) == list(range(len(lengths)))


def test_one_length_comes_in_larger_groups():
    batch = SequenceBatch.left_padded(torch.tensor([[3, 4]] * 5 + [[0, 3]] * 3))
    assert [places.tolist() for places, _ in batch.by_length(events=2)] == [[5, 6, 7], [0, 1, 2, 3], [4]]
