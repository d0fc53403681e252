"""Prefixes of a packed batch, against a naive list of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.models.contract import PACKED, TRAINING, seeded, shifted
from train.prefixes import Prefixes, prefixes_of
from train.protocol import SequenceBatch


def listed(found: Prefixes) -> list[tuple[list[int], int]]:
    """(prefix, target), each read back from the row in which it lies; every place is in one or is padding."""
    items, place, owner = (t.flatten() for t in (found.items_CP, found.place_CP, found.owner_CP))
    prefixes, used = [], torch.zeros(len(items), dtype=torch.bool)
    for number, (last, target) in enumerate(zip(found.last_N.tolist(), found.target_N.tolist(), strict=True)):
        own = slice(last - int(place[last]), last + 1)
        assert place[own].tolist() == list(range(own.stop - own.start))
        assert (owner[own] == number).all()
        assert own.start // found.items_CP.shape[1] == last // found.items_CP.shape[1]
        assert not used[own].any()
        used[own] = True
        prefixes.append((items[own].tolist(), target))
    assert (items[~used] == 0).all()
    assert (place[~used] == 0).all()
    return sorted(prefixes)


EXPECTED = sorted(
    [
        *(([2, 3, 4, 5, 6, 7][: n + 1], 3 + n) for n in range(6)),
        ([9], 10),
        ([9, 10, 1], 12),  # the unknown 1 is no target, but history
        ([3], 5),
    ]
)


@pytest.mark.parametrize("batch", [TRAINING, PACKED])
def test_all_prefixes_of_the_batch_and_no_others(batch):
    assert listed(prefixes_of(batch, 50, 0, seeded())) == EXPECTED


def test_the_latest_events_of_a_long_one():
    expected = sorted((prefix[-2:], target) for prefix, target in EXPECTED)
    assert listed(prefixes_of(PACKED, 2, 0, seeded())) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=9), min_size=1, max_size=5), st.integers(1, 9))
def test_against_a_naive_list(rows, longest):
    expected = sorted((row[max(0, i - longest) : i], row[i]) for row in rows for i in range(1, len(row)) if row[i] > 1)
    found = prefixes_of(shifted(*rows, length=8), longest, 0, seeded())
    assert listed(found) == (expected or [([0], 0)])


def test_so_many_are_drawn_each_target_as_likely_as_the_others():
    drawn = [tuple(target for _, target in listed(prefixes_of(PACKED, 50, 2, seeded(s)))) for s in range(300)]
    assert {len(targets) for targets in drawn} == {6}  # two for each of three sequences
    share = [sum(target in targets for targets in drawn) / 300 for target in (10, 12, 3, 4, 6, 7, 8)]
    assert share == pytest.approx([6 / 9] * 7, abs=0.1)
    assert listed(prefixes_of(PACKED, 50, 99, seeded())) == EXPECTED


def test_a_batch_without_targets_has_one_prefix_of_padding():
    nothing = replace(PACKED, targets_BL=torch.zeros_like(PACKED.targets_BL))
    for batch in (nothing, SequenceBatch(*(torch.zeros(1, 1, dtype=torch.int64) for _ in range(3)))):
        for per_sequence in (0, 3):
            assert listed(prefixes_of(batch, 50, per_sequence, seeded())) == [([0], 0)]
