"""What requests hold, cell by cell: numpy and pandas taken out, read as the contract's rows were read.

A served value has to become what the same value became in training, so the readers are those of
featurize.values. Where they refuse a value (a list for a number), a request cannot be quarantined: the
value counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from featurize import values
from infra.tables import Kind

_READERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.CATEGORICAL: values.text,
    Kind.NUMERIC: values.number,
    Kind.MULTI: values.multi(None),
}


def read(value: Any, kind: Kind) -> Any:
    """Text, a float, or a list of texts, by the field's kind; None for missing.

    >>> read(7.0, Kind.CATEGORICAL), read("2.5", Kind.NUMERIC), read(np.array(["a", None]), Kind.MULTI)
    ('7', 2.5, ['a'])
    >>> read(np.array(3.5), Kind.NUMERIC)
    3.5
    >>> read(float("nan"), Kind.MULTI), read(pd.NA, Kind.CATEGORICAL), read("cheap", Kind.NUMERIC)
    (None, None, None)
    """
    try:
        return _READERS[kind](_plain(value))
    except ValueError:
        return None


def left_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 (rows, longest row, at least 1), zeros in front.

    >>> left_padded([[7], [8, 9]]).tolist(), left_padded([]).shape
    ([[0, 7], [8, 9]], torch.Size([0, 1]))
    """
    width = max([1, *(len(row) for row in rows)])
    padded = [[0] * (width - len(row)) + list(row) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), width)


def _plain(value: Any) -> Any:
    """The cell in Python's own types, every kind of null as None."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, np.ndarray | list | tuple | set):
        return [_plain(v) for v in value]
    null = value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))
    return None if null else value
