"""The forward process of AsymDiffRec: each step drops one more feature field (arXiv 2508.12706).

Shapes: B samples, N feature fields.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop(
    missing_BN: Tensor,
    generator: torch.Generator,
    counted: bool = True,
    weight_N: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """Which fields are missing after T = floor((N + 1) u^power) steps, u ~ Uniform[0, 1) drawn per sample.

    With power 1 T is uniform on {0, ..., N}; with more it is rather small. T steps, each dropping a field not yet
    dropped, leave a random set of T fields: those that a random permutation places first. Fields that are really
    missing stay missing. `counted`: they are drawn among the others and count in T; if not, N is the number of fields
    that are there. `weight_N`: each step draws a field in proportion to its weight, those of weight 0 when no other is
    left (and uniformly among themselves); None or all 0: uniformly.

    >>> drop(torch.ones(2, 3, dtype=torch.bool), torch.Generator().manual_seed(0)).all().item()
    True
    """
    batch, fields = missing_BN.shape
    device = generator.device
    gone_BN = None if counted else missing_BN.to(device)
    most_B = fields if gone_BN is None else fields - gone_BN.sum(dim=1)
    steps_B = (torch.rand(batch, generator=generator, device=device) ** power * (most_B + 1)).long()
    # A permutation by weights w: the order of E_n / w_n, E_n exponential (Efraimidis and Spirakis, 2006).
    turn_BN = torch.rand(batch, fields, generator=generator, device=device).log().neg()
    if weight_N is not None:
        weight_N = weight_N.to(device)
        last = 1e30 * (weight_N == 0)
        turn_BN = turn_BN / weight_N.where(weight_N > 0, 1) + last * turn_BN
    if gone_BN is not None:
        turn_BN = turn_BN.masked_fill(gone_BN, torch.inf)
    place_BN = turn_BN.argsort(dim=1).argsort(dim=1)
    return missing_BN | (place_BN < steps_B[:, None]).to(missing_BN.device)


def drop_each(missing_BN: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Which fields are missing when each is dropped with probability `rate`, by itself."""
    dropped_BN = torch.rand(missing_BN.shape, generator=generator, device=generator.device) < rate
    return missing_BN | dropped_BN.to(missing_BN.device)
