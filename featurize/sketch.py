"""A distribution sketch: what one day's values of a column looked like, in bounded space, with exact counts.

Categorical and multi: the TOP_VALUES most frequent values, all others together, missing. Numeric: bins
between the day's own deciles, missing. Nothing here knows of Spark; tasks count their batches with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.tables import Kind

TOP_VALUES = 20
"""Values of a categorical or multi-valued field that have a bin of their own."""
LONGEST = 200
"""Characters of a value that are kept; of a longer one the first 160 and a hash stand for it."""


@dataclass(frozen=True)
class Sketch:
    """One column on one day; counts are rows, for a multi-valued column occurrences (and rows for missing)."""

    kind: str
    rows: int
    missing: int
    distinct: int | None = None
    """Categorical and multi: different values."""
    values: tuple[tuple[str, int], ...] = ()
    """Categorical and multi: the most frequent values, by (count descending, value); an empty list is ''."""
    other: int = 0
    """Categorical and multi: occurrences of all other values."""
    edges: tuple[float, ...] = ()
    """Numeric: minimum, deciles and maximum, each once."""
    counts: tuple[int, ...] = ()
    """Numeric: rows below the first edge, at it, then up to each further edge, then above the last."""
    mean: float | None = None
    std: float | None = None

    @property
    def bins(self) -> tuple[str, ...]:
        """The bins' names, in the order of `tally`."""
        own = numeric_bins(self.edges) if self.kind == Kind.NUMERIC else (*(v for v, _ in self.values), "(other)")
        return (*own, "(missing)")

    @property
    def tally(self) -> tuple[int, ...]:
        """Counts per bin, missing last."""
        own = self.counts if self.kind == Kind.NUMERIC else (*(n for _, n in self.values), self.other)
        return (*own, self.missing)


def numeric_bins(edges: Sequence[float]) -> tuple[str, ...]:
    """The names of the bins between edges.

    >>> numeric_bins([0.0, 5.0])
    ('below 0', '0', 'over 0 to 5', 'above 5')
    """
    if not edges:
        return ("(any)",)
    names = [f"{e:.6g}" for e in edges]
    between = [f"over {low} to {high}" for low, high in pairwise(names)]
    return (f"below {names[0]}", names[0], *between, f"above {names[-1]}")


def bin_counts(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Values per bin of `numeric_bins(edges)`.

    >>> bin_counts(np.array([-1.0, 0.0, 0.0, 3.0, 5.0, 9.0]), [0.0, 5.0])
    [1, 2, 2, 1]
    """
    if not edges:
        return [len(values)]
    bins = np.searchsorted(np.asarray(edges), values, side="left") + 1
    bins[values < edges[0]] = 0
    return [int(n) for n in np.bincount(bins, minlength=len(edges) + 2)]


def value_counts(values: pa.Array, kind: Kind) -> Iterator[tuple[str, int]]:
    """(value, occurrences) of an array without nulls; of lists their elements, an empty list as ''."""
    if kind is Kind.MULTI:
        if empty := pc.sum(pc.equal(pc.list_value_length(values), 0)).as_py():
            yield "", empty
        values = pc.list_flatten(values).drop_null()
    for pair in pc.value_counts(values):
        yield shorten(pair["values"].as_py()), pair["counts"].as_py()


def shorten(value: str) -> str:
    """A value of at most LONGEST characters, the same for equal values only."""
    if len(value) <= LONGEST:
        return value
    return f"{value[:160]}…{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
