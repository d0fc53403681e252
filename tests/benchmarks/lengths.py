"""Lengths of training sequences as in shared/data/adrec-baby: those, or where it is absent a Zipf law near them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

BABY = Path(__file__).parents[3] / "shared" / "data" / "adrec-baby" / "sequences.parquet"
LONGEST = 51
"""Events that a chunk of the recipes shows: 50 and the last target."""


def baby_lengths() -> NDArray[np.int64]:
    """One length per user, cut to the longest chunk: the median is 4 events."""
    if BABY.exists():
        lengths = pc.list_value_length(pq.read_table(BABY, columns=["train"])["train"]).to_numpy()
    else:
        lengths = 2 + np.random.default_rng(0).zipf(2.1, 11_761)
    return np.minimum(lengths, LONGEST).astype(np.int64)
