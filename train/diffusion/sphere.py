"""The unit sphere: normalising, tangent vectors, the exponential map and its inverse.

Everything is computed, and returned, in float32 at least: half precision cannot hold a point of the sphere to 1e-5, and
loses the sine of a tiny angle. Defined everywhere: vectors without a direction are given one (below).

Shapes: (..., D), D at least 2; points x and y have length 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SMALLEST = 1e-18
"""A vector whose largest coordinate is no more has no direction."""
_ROUNDING = 16
"""A sine of so many units of rounding says nothing of the direction."""


def normalised(x: Tensor) -> Tensor:
    """x / |x|; the first unit vector, without a gradient, where x is 0 (or too short to have a direction).

    >>> normalised(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [1.0, 0.0]]
    """
    x = _exact(x)
    largest = x.detach().abs().amax(dim=-1, keepdim=True)  # first by it, lest a square overflow or vanish
    none = largest <= _SMALLEST
    scaled = torch.where(none, _first(x), x / largest.where(~none, 1.0))
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)


def tangent(x: Tensor, v: Tensor) -> Tensor:
    """v without its part along x: v - (v . x) x."""
    x, v = _exact(x), _exact(v)
    return v - (v * x).sum(dim=-1, keepdim=True) * x


def exp_map(x: Tensor, v: Tensor) -> Tensor:
    """cos|v| x + sin|v| v / |v|: where one arrives who walks |v| from x along the great circle in the tangent v's
    direction. v = 0 stays, |v| = pi is the antipode. x is normalised first: in half precision it is none."""
    x, v = normalised(x), _exact(v)
    angle = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return normalised(angle.cos() * x + torch.sinc(angle / math.pi) * v)


def log_map(x: Tensor, y: Tensor) -> Tensor:
    """The shortest tangent v at x with exp_map(x, v) = y; |v| is the angle between them, at most pi.

    From x to its antipode every direction is as short: then it is that of the unit vector on whose axis x has least.
    """
    x, y = normalised(x), normalised(y)
    cosine = (x * y).sum(dim=-1, keepdim=True)
    across = tangent(x, y)
    sine = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    least = torch.zeros_like(x).scatter_(-1, x.detach().abs().argmin(dim=-1, keepdim=True), 1.0)
    lost = (sine <= _ROUNDING * torch.finfo(x.dtype).eps) & (cosine < 0)
    # Twice: of a short vector rounding may have left as much along x as across.
    direction = tangent(x, normalised(torch.where(lost, tangent(x, least), across)))
    return torch.atan2(sine, cosine) * normalised(direction)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _first(like: Tensor) -> Tensor:
    return (torch.arange(like.shape[-1], device=like.device) == 0).to(like.dtype)
