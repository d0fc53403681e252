"""Sparse gradients of sharded tables: their norm, clipping, and row-wise Adagrad.

For every row r of the gradient
    G_r ← G_r + mean_d(g_rd²)
    w_r ← w_r − lr · g_r / (√G_r + eps)
A row that is not in the gradient is neither read nor written, so a step's time depends on the batch,
not on the table; the state is one float32 per row, where AdamW keeps 2D.

Shapes: S rows of the parameter (a rank's shard), D width, U rows in the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from train.ranks import sum_over_ranks

ACCUMULATOR = "sum"


class RowWiseAdagrad(torch.optim.Optimizer):
    """Adagrad with one accumulator per row; parameters (S, D) whose gradients are sparse in rows."""

    def __init__(self, parameters: Any, lr: float, eps: float = 1e-8) -> None:
        if lr < 0 or eps <= 0:
            raise TrainingError(f"RowWiseAdagrad: lr {lr} must not be negative, and eps {eps} must be positive")
        super().__init__(parameters, {"lr": lr, "eps": eps})

    def accumulator(self, parameter: nn.Parameter) -> Tensor:
        """G_S of a parameter; zeros before its first step."""
        state = self.state[parameter]
        if ACCUMULATOR not in state:
            state[ACCUMULATOR] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
        return state[ACCUMULATOR]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the rows in the gradients; TrainingError for a gradient that is not sparse."""
        if closure is None:
            loss = None
        else:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _move(parameter, self.accumulator(parameter), group["lr"], group["eps"])
        return loss


def _move(parameter: nn.Parameter, G_S: Tensor, lr: float, eps: float) -> None:
    assert parameter.grad is not None
    if parameter.grad.layout != torch.sparse_coo:
        raise TrainingError(
            f"RowWiseAdagrad: a gradient of shape {tuple(parameter.shape)} is dense; give it sharded tables (or "
            "embeddings with sparse=True) only, and every other parameter to AdamW"
        )
    grad = parameter.grad.coalesce()
    row_U, g_UD = grad.indices()[0], grad.values()
    # Coalesced rows are distinct, so no two writes meet, on the GPU either.
    G_S.index_add_(0, row_U, g_UD.float().square().mean(dim=1))
    parameter.index_add_(0, row_U, g_UD / (G_S[row_U].sqrt() + eps)[:, None].to(g_UD.dtype), alpha=-lr)


# The norm of the whole gradient: dense parameters, the same on every rank after DDP, and the ranks' shards.


@torch.no_grad()
def shard_square_norm(shards: Iterable[nn.Parameter]) -> Tensor:
    """Σ g² over the sparse gradients of all ranks' shards, float64, the same on every rank. A collective.

    Coalesces the gradients in place, so that a row looked up twice counts once with its whole gradient.
    """
    shards = list(shards)
    total = torch.zeros((), dtype=torch.float64, device=shards[0].device if shards else None)
    for shard in shards:
        if shard.grad is not None:
            shard.grad = shard.grad.coalesce()
            total += shard.grad.values().double().square().sum()
    return sum_over_ranks(total) if shards else total


@torch.no_grad()
def scale_shards(shards: Iterable[nn.Parameter], factor: Tensor | float) -> None:
    """Multiply the sparse gradients by a number."""
    for shard in shards:
        if shard.grad is not None:
            shard.grad = shard.grad.coalesce()
            shard.grad.values().mul_(factor)


@torch.no_grad()
def clip_whole_gradient(dense: Iterable[nn.Parameter], shards: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Norm (0-dim) of dense and sparse gradients together, which are scaled so that it is at most `limit`.

    As nn.utils.clip_grad_norm_ with a limit; a norm that is not finite is the caller's to refuse, on every rank.
    """
    dense, shards = list(dense), list(shards)
    of_dense = nn.utils.get_total_norm([p.grad for p in dense if p.grad is not None])
    of_shards = shard_square_norm(shards)
    norm = (of_dense.double().square().to(of_shards.device) + of_shards).sqrt()
    nn.utils.clip_grads_with_norm_(dense, limit, norm.float())
    scale_shards(shards, (limit / (norm.float() + 1e-6)).clamp(max=1.0))
    return norm
