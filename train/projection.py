"""PCGrad (Yu et al., 2020): gradients of several objectives, each without its part against the others.

Shapes: M objectives, P numbers of all trained parameters together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def flat_gradient(share: Tensor, parameters: Sequence[Tensor], more: bool) -> Tensor:
    """g_P of one objective, zeros where it does not reach; `more` objectives of the same forward pass follow."""
    found = torch.autograd.grad(share, parameters, retain_graph=more, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([part.flatten() for part in parts])


def project(gradients_MP: Tensor) -> Tensor:
    """g_P = sum over i of g_i, from which, for each j != i with g_i . g_j < 0, the part along g_j was taken.

    The others come in their order, not in a random one (with two objectives there is only one).

    >>> project(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
    [0.5, 1.5]
    """
    total_P = torch.zeros_like(gradients_MP[0])
    for i, own_P in enumerate(gradients_MP):
        left_P = own_P.clone()
        for j, other_P in enumerate(gradients_MP):
            if i != j:
                against = (left_P @ other_P).clamp(max=0) / other_P.square().sum().clamp(min=torch.finfo().tiny)
                left_P -= against * other_P
        total_P += left_P
    return total_P


def put_gradient(parameters: Iterable[Tensor], g_P: Tensor) -> None:
    """Give each parameter its part."""
    start = 0
    for parameter in parameters:
        parameter.grad = g_P[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
