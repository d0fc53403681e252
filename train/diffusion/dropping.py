"""The forward process of AsymDiffRec: each step drops one more feature field (arXiv 2508.12706).

Shapes: B samples, N feature fields.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drop(missing_BN: Tensor, generator: torch.Generator) -> Tensor:
    """Which fields are missing after T ~ Uniform{0, ..., N} steps, T drawn per sample.

    T steps, each dropping a field not yet dropped, leave a uniformly random set of T fields: those
    that a random permutation places first. Fields that are really missing stay missing. Every field
    is drawn with probability 1/2, the number of them uniformly.

    >>> drop(torch.ones(2, 3, dtype=torch.bool), torch.Generator().manual_seed(0)).all().item()
    True
    """
    batch, fields = missing_BN.shape
    device = generator.device
    steps_B1 = torch.randint(0, fields + 1, (batch, 1), generator=generator, device=device)
    place_BN = torch.rand(batch, fields, generator=generator, device=device).argsort(dim=1)
    return missing_BN | (place_BN < steps_B1).to(missing_BN.device)
