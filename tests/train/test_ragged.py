"""Rows of different length, against a row-by-row version."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from train.ragged import Ragged


def ragged(*rows: list[int]) -> Ragged:
    return Ragged.from_arrow(pa.chunked_array([pa.array(rows, pa.list_(pa.int32()))]))


class TestRagged:
    def test_left_padding_keeps_the_latest(self):
        data = ragged([2, 3, 4], [], [5, 6])
        assert data.left_padded(np.array([0, 1, 2])).tolist() == [[2, 3, 4], [0, 0, 0], [0, 5, 6]]
        assert data.left_padded(np.array([2, 0]), longest=2).tolist() == [[5, 6], [3, 4]]

    def test_an_empty_batch_of_values_still_has_a_column(self):
        assert ragged([], [7]).left_padded(np.array([0])).tolist() == [[0]]

    def test_null_lists_slices_and_chunks(self):
        first = pa.array([[9], [1, 2], None, [3]], pa.list_(pa.int32())).slice(1)
        column = pa.chunked_array([first, pa.array([[4, 5]], pa.list_(pa.int32()))])
        data = Ragged.from_arrow(column)
        assert data.values.tolist() == [1, 2, 3, 4, 5]
        assert data.offsets.tolist() == [0, 2, 2, 3, 5]

    def test_fingerprints_depend_on_order_and_length(self):
        prints = ragged([2, 3], [3, 2], [2, 3], [2], [], [0], [2, 3, 0]).fingerprints()
        assert prints[0] == prints[2]
        assert len({int(p) for p in prints}) == 6

    @given(st.lists(st.lists(st.integers(1, 50), max_size=6), min_size=1, max_size=6), st.integers(1, 7))
    def test_padding_agrees_with_a_row_by_row_one(self, rows, longest):
        width = max(1, max(min(len(r), longest) for r in rows))
        expected = [[0] * (width - len(r[-longest:])) + r[-longest:] for r in rows]
        assert ragged(*rows).left_padded(np.arange(len(rows)), longest).tolist() == expected
