"""Packing: sequences of different length side by side in rows of one width, so that hardly anything is padding.

Interaction logs are Zipf-long: padded to 50, an average sequence of 8 events makes five sixths of the work idle.
Rows are filled longest first (first-fit decreasing) over the histogram of lengths: equal rows are laid out at once,
so the work grows with the number of different lengths, not with the number of sequences.

Shapes: S sequences, B rows, P width of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Layout = list[tuple[list[int], int]]
"""(lengths of the sequences in a row, number of rows like it)."""

#: Good enough to stop looking for another width.
EFFICIENCY = 0.97
_WIDEST = 4.0  # times the longest sequence
_WIDTHS = 13
#: The width at which a place's attention costs as much as the rest of it (measured: ADRec, D = 128, a CPU).
_COSTLY_WIDTH = 400


@dataclass(frozen=True)
class Packing:
    """Where every sequence lies: sequence `order_S[k]` from flat position `start_S[k]` of (rows, width) on."""

    order_S: Ints
    start_S: Ints
    rows: int
    width: int


def pack(lengths_S: Ints) -> Packing:
    """Lay out sequences of these lengths (each at least 1) in as few and as narrow rows as fill up well.

    Widths from the longest sequence on are tried until 97 % of the places are used; of those tried the one of least
    cost is taken, places * (400 + width): wide rows waste fewer places, but their attention costs more. The same
    lengths always give the same layout.

    >>> packing = pack(np.array([2, 5, 3, 5, 4, 1]))
    >>> packing.rows, packing.width, packing.order_S.tolist(), packing.start_S.tolist()
    (4, 5, [1, 3, 4, 5, 2, 0], [0, 5, 10, 14, 15, 18])
    """
    total, longest = int(lengths_S.sum()), int(lengths_S.max())
    counts = np.bincount(lengths_S).tolist()
    best: tuple[int, int, Layout] | None = None
    for width in _widths(total, longest):
        layout = _layout(counts, width)
        places = width * sum(times for _, times in layout)
        cost = places * (_COSTLY_WIDTH + width)
        if best is None or cost < best[0]:
            best = cost, width, layout
        if total >= EFFICIENCY * places:
            break
    assert best is not None
    return _placed(lengths_S, best[1], best[2])


def _widths(total: int, longest: int) -> Iterable[int]:
    """The longest sequence, and one to four times it, rounded up to rows of equal fill (at most eight times)."""
    rows = (max(1, int(total / (longest * widening))) for widening in np.linspace(1, _WIDEST, _WIDTHS))
    return dict.fromkeys([longest, *(max(longest, -(-total // n)) for n in rows)])


def _layout(counts: list[int], width: int) -> Layout:
    """Rows by the histogram of lengths; each takes the longest that still fits, as often as there are such rows."""
    left = list(counts)
    open_lengths = [length for length in range(len(left) - 1, 0, -1) if left[length]]
    layout: Layout = []
    while open_lengths:
        room, taken, times = width, list[tuple[int, int]](), counts[open_lengths[0]]
        for length in open_lengths:
            if length <= room:
                fits = room // length
                if fits > left[length]:
                    fits = left[length]
                taken.append((length, fits))
                room -= length * fits
                if left[length] // fits < times:
                    times = left[length] // fits
                if room < open_lengths[-1]:
                    break
        row: list[int] = []
        for length, fits in taken:
            left[length] -= fits * times
            row += [length] * fits
            if left[length] == 0:
                open_lengths.remove(length)
        layout.append((row, times))
    return layout


def _by_size(lengths_S: Ints) -> Ints:
    """A stable order, in linear time where lengths fit into 16 bits: numpy then sorts by radix."""
    return np.argsort(lengths_S.astype(np.int16) if lengths_S.max() < 2**15 else lengths_S, kind="stable")


def _placed(lengths_S: Ints, width: int, layout: Layout) -> Packing:
    """Give the places of a layout to the sequences, those of equal length in their order."""
    patterns = np.concatenate([row for row, _ in layout])
    sizes = np.array([len(row) for row, _ in layout])
    # The slots of row b are those of its pattern; `pattern_B` says which one.
    pattern_B = np.repeat(np.arange(len(layout)), [times for _, times in layout])
    size_B = sizes[pattern_B]
    slot_S = np.arange(len(lengths_S)) + np.repeat(
        (np.cumsum(sizes) - sizes)[pattern_B] - np.cumsum(size_B) + size_B, size_B
    )
    length_S = patterns[slot_S]
    begin_S = np.cumsum(length_S) - length_S
    fill_B = np.add.reduceat(length_S, np.cumsum(size_B) - size_B)
    gaps_B = width * np.arange(len(size_B)) - (np.cumsum(fill_B) - fill_B)
    order_S = np.empty(len(length_S), np.int64)
    order_S[_by_size(length_S)] = _by_size(lengths_S)
    return Packing(order_S, begin_S + np.repeat(gaps_B, size_B), len(size_B), width)
