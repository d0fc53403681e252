"""Rows of different length as two arrays, in memory or memory-mapped.

Shapes: N rows, B chosen rows, L padded length, T values of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_NO_LISTS = pa.array([], pa.large_list(pa.int32()))
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Ragged:
    """Row i is values[offsets[i] : offsets[i + 1]]: int32 values and int64 offsets, one more than rows."""

    values: NDArray[np.int32]
    offsets: Ints

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> Ragged:
        """From a list column; a null list is an empty row."""
        lists = pa.concat_arrays([c.cast(pa.large_list(pa.int32())) for c in column.chunks] or [_NO_LISTS])
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Length of every row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows_B: Ints) -> Ints:
        """Length of the chosen rows."""
        return self.offsets[rows_B + 1] - self.offsets[rows_B]

    def left_padded(self, rows_B: Ints, longest: int | None = None) -> Ints:
        """The last `longest` values of the rows, zeros in front; at least one column.

        >>> Ragged(np.array([7, 8, 9], np.int32), np.array([0, 1, 3])).left_padded(np.array([0, 1])).tolist()
        [[0, 7], [8, 9]]
        """
        lengths_B = self.lengths_of(rows_B)
        if longest is not None:
            lengths_B = np.minimum(lengths_B, longest)
        width = max(1, int(lengths_B.max(initial=0)))
        source_BL = self.offsets[rows_B + 1][:, None] - width + np.arange(width)
        real_BL = np.arange(width) >= width - lengths_B[:, None]
        padded_BL = np.zeros((len(rows_B), width), np.int64)
        padded_BL[real_BL] = self.values[source_BL[real_BL]]
        return padded_BL

    def fingerprints(self) -> NDArray[np.uint64]:
        """One number per row that depends on its values and their order."""
        place = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        with np.errstate(over="ignore"):
            mixed = (self.values.astype(np.uint64) + 1) * (place.astype(np.uint64) * _ODD + 1)
            mixed ^= mixed >> np.uint64(29)
            total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * _ODD, dtype=np.uint64)])
            return total[self.offsets[1:]] - total[self.offsets[:-1]]
