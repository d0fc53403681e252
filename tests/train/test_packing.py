"""Packing: every sequence somewhere, none over another or over a row's end, and hardly any place left."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks import chunks
from train.packing import Packing, pack

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=120)


def packed(*lengths: int) -> Packing:
    return pack(np.array(lengths, np.int64))


def filled(lengths: np.ndarray, packing: Packing) -> np.ndarray:
    """(rows, width): which sequence is at a place, -1 at a gap; no sequence may overlap another or leave its row."""
    rows = np.full((packing.rows, packing.width), -1)
    for sequence, start in zip(packing.order_S.tolist(), packing.start_S.tolist(), strict=True):
        row, begin = divmod(start, packing.width)
        end = begin + int(lengths[sequence])
        assert end <= packing.width
        assert (rows[row, begin:end] == -1).all()
        rows[row, begin:end] = sequence
    return rows


class TestEveryPacking:
    @given(LENGTHS)
    def test_holds_every_sequence_once(self, sizes: list[int]):
        """Hypothesis: as many places of each sequence as it is long, in rows of which none is empty."""
        lengths = np.array(sizes)
        packing = pack(lengths)
        rows = filled(lengths, packing)
        assert sorted(packing.order_S.tolist()) == list(range(len(sizes)))
        assert np.bincount(rows[rows >= 0], minlength=len(sizes)).tolist() == sizes
        assert (rows[:, 0] >= 0).all()
        assert packing.width >= max(sizes)

    @given(LENGTHS)
    def test_is_laid_out_from_left_to_right(self, sizes: list[int]):
        """Hypothesis: starts go up, gaps are at the ends of rows alone, equal lengths keep their order."""
        lengths = np.array(sizes)
        packing = pack(lengths)
        assert (np.diff(packing.start_S) > 0).all()
        real = filled(lengths, packing) >= 0
        assert (real[:, :-1] >= real[:, 1:]).all()
        for length in set(sizes):
            same = packing.order_S[lengths[packing.order_S] == length]
            assert (np.diff(same) > 0).all()

    @given(LENGTHS, st.randoms(use_true_random=False))
    def test_depends_on_the_lengths_alone(self, sizes: list[int], random):
        """Hypothesis: the same twice, and the same rows and starts in whatever order the lengths come."""
        shuffled = random.sample(sizes, len(sizes))
        one, again, other = packed(*sizes), packed(*sizes), packed(*shuffled)
        assert one.order_S.tolist() == again.order_S.tolist()
        assert (one.rows, one.width) == (other.rows, other.width)
        assert one.start_S.tolist() == again.start_S.tolist() == other.start_S.tolist()


@pytest.mark.parametrize("batch", [256, 512])
@pytest.mark.parametrize("source", [chunks.BABY, Path("absent")], ids=["published", "zipf"])
def test_lengths_as_in_logs_leave_hardly_a_gap(source: Path, batch: int):
    """Of 200 batches the worst is at least 95 % full, with the split's lengths and with those that stand in for it."""
    with patch.object(chunks, "BABY", source):
        shown = chunks.baby_lengths() - 1
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.choice(shown, batch)
        packing = pack(lengths)
        assert lengths.sum() >= 0.95 * packing.rows * packing.width


class TestByHand:
    @pytest.mark.parametrize(
        ("lengths", "rows", "width", "order", "start"),
        [
            ([7], 1, 7, [0], [0]),
            ([5, 5, 5], 3, 5, [0, 1, 2], [0, 5, 10]),
            ([2, 3, 1], 2, 3, [1, 0, 2], [0, 3, 5]),  # 3 | 2 1
            ([4, 3], 1, 7, [0, 1], [0, 4]),  # two rows of 4 would be 7 of 8 full, one of 7 is full
            ([400] * 8 + [325], 9, 400, list(range(9)), [400 * i for i in range(9)]),  # 98 % full: no other is tried
            # Nine rows of 400 are 96 % full and cost 3,600 * 800; one of 3,450 is full and would cost 3,450 * 3,850.
            ([400] * 8 + [250], 9, 400, list(range(9)), [400 * i for i in range(9)]),
        ],
        ids=str,
    )
    def test_small_ones(self, lengths: list[int], rows: int, width: int, order: list[int], start: list[int]):
        packing = packed(*lengths)
        assert (packing.rows, packing.width) == (rows, width)
        assert (packing.order_S.tolist(), packing.start_S.tolist()) == (order, start)

    def test_lengths_beyond_16_bits_keep_their_places(self):
        packing = packed(40_000, 1, 39_999, 2)
        assert (packing.rows, packing.width) == (2, 40_001)
        assert packing.order_S.tolist() == [0, 1, 2, 3]
        assert packing.start_S.tolist() == [0, 40_000, 40_001, 80_000]

    def test_nothing_has_no_packing(self):
        """A share without a sequence never comes here: it is one place of padding (test_sequence_data)."""
        with pytest.raises(ValueError, match="zero-size array"):
            packed()
