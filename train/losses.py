"""Cross-entropy over the whole catalogue in bounded memory.

Shapes: N positions (any leading shape, flattened), D width, V catalogue rows, C = V - 2 candidates.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from infra.tables import FIRST_INDEX

#: Logits held at once: 2^24 of them are 64 MiB in float32.
LOGITS_AT_ONCE = 2**24


def catalogue_cross_entropy(x_ND: Tensor, e_VD: Tensor, targets_N: Tensor, chunk: int | None = None) -> Tensor:
    """Mean over valid targets of -log softmax(x . e^T)[target], candidates being the rows from 2.

    `x_ND` (..., D) and `targets_N` (...) share their leading shape. Padding (0) and unknown (1) are
    neither candidates nor valid targets; without any valid target the loss is 0, with a graph.
    Positions go by `chunk` (default: as many as keep 2^24 logits); beyond one chunk the logits are
    recomputed in the backward pass, so memory does not grow with positions x catalogue.

    >>> import torch
    >>> x, e = torch.zeros(3, 4), torch.ones(10, 4)
    >>> round(catalogue_cross_entropy(x, e, torch.tensor([0, 2, 9])).item(), 4)  # log 8
    2.0794
    """
    valid_N = targets_N >= FIRST_INDEX
    x_ND, targets_N, e_CD = x_ND[valid_N], targets_N[valid_N] - FIRST_INDEX, e_VD[FIRST_INDEX:]
    count = len(targets_N)
    if count == 0:
        return x_ND.sum() + e_VD[:0].sum()
    chunk = chunk or max(1, LOGITS_AT_ONCE // max(1, len(e_CD)))
    if count <= chunk:
        return _summed(x_ND, e_CD, targets_N) / count
    parts = [
        checkpoint(_summed, x, e_CD, t, use_reentrant=False, preserve_rng_state=False)
        for x, t in zip(x_ND.split(chunk), targets_N.split(chunk), strict=True)
    ]
    return sum(parts[1:], start=parts[0]) / count


def _summed(x_ND: Tensor, e_CD: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(x_ND @ e_CD.T, targets_N, reduction="sum")
