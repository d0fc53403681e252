"""The code of a diffusion step: sinusoids through a small network, as the published code of ADRec and DiffuRec has it.

Shapes: D width, T steps of the process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from train.layers import initialise


class TimeEmbedding(nn.Module):
    """temb(t): cosines and sines of the step scaled to [0, 1000), through D -> 4D -> D with SiLU."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.width, self.steps = width, steps
        self.scale = 1000 / steps
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.apply(initialise)

    def forward(self, t: Tensor) -> Tensor:
        """(..., D) of steps (...), in training, where there are more tokens than steps."""
        return self.codes()[t]

    def codes(self) -> Tensor:
        """temb_TD of all steps, for a reverse process to look up."""
        t_T = torch.arange(self.steps, device=next(self.mlp.parameters()).device)
        temb_TD: Tensor = self.mlp(sinusoid(t_T * self.scale, self.width))
        return temb_TD


def sinusoid(time: Tensor, width: int) -> Tensor:
    """(..., width): cos then sin of time * 10000^(-i / half), half = width // 2; an odd width ends in 0.

    >>> sinusoid(torch.tensor(0.0), 5).tolist()
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=time.device) / max(1, half)
    angle = time[..., None].float() * torch.exp(-math.log(10000.0) * exponent)
    code = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return nn.functional.pad(code, (0, width - 2 * half))
