"""Sampled softmax: the catalogue's log-sum-exp estimated from negatives that all positions of a batch share.

Shapes: N positions (any leading shape, flattened), D width, V rows of the table, K negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train.losses import Tiling, countable, product_dtype, tiled_logsumexp


class Proposal:
    """q(i) = (counts[i] + smoothing)^alpha / sum, 0 at padding and unknown: what negatives are drawn from.

    Kept as one float64 cumulative sum on the device of `counts_V`: 8 bytes a row, 800 MB at 100 million.
    """

    def __init__(self, counts_V: Tensor, alpha: float = 0.75, smoothing: float = 1.0) -> None:
        if len(counts_V) <= FIRST_INDEX:
            raise TrainingError("no negatives can be drawn: the catalogue has no items, check its vocabulary")
        weights_V = counts_V.to(torch.float64, copy=True).add_(smoothing).pow_(alpha)
        weights_V[:FIRST_INDEX] = 0
        if not bool(((weights_V[FIRST_INDEX:] > 0) & weights_V[FIRST_INDEX:].isfinite()).all()):
            raise TrainingError("no negatives can be drawn: counts must be finite and, with the smoothing, above 0")
        self._cumulative_V = weights_V.cumsum_(0)

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """negatives_K, independent and with replacement, from `generator`'s uniform numbers."""
        uniform_K = torch.rand(k, generator=generator, device=generator.device, dtype=torch.float64)
        at_K = uniform_K.to(self._cumulative_V.device) * self._cumulative_V[-1]
        # Rounding may reach the total itself.
        return torch.searchsorted(self._cumulative_V, at_K, right=True).clamp_(max=len(self._cumulative_V) - 1)

    def log_q(self, indices: Tensor) -> Tensor:
        """log q in float32, whatever the shape of `indices`; -inf at padding and unknown."""
        upper = self._cumulative_V[indices]
        lower = self._cumulative_V[(indices - 1).clamp(min=0)]
        return ((upper - lower) / self._cumulative_V[-1]).log().float()


def sampled_cross_entropy_sum(
    x_ND: Tensor,
    target_e_ND: Tensor,
    negative_e_KD: Tensor,
    targets_N: Tensor,
    negatives_K: Tensor,
    log_q_N: Tensor,
    log_q_K: Tensor,
) -> tuple[Tensor, Tensor]:
    """(sum over valid targets of -log(exp t / (exp t + sum_k exp n_k)), their count).

    n_k = x . e_k - log(K q_k), left out where negative k is the target; t = x . e_target - min(0, log(K q_target)).
    A negative stands once for every draw, so its correction is the expected number of draws. The target stands
    once however often it would have been drawn, hence the minimum: so as K grows the loss becomes the full softmax
    (uncapped, its gradient would become that divided by 1 - p_target).

    Rows come from whoever holds the table. Beside inputs and gradients this holds losses.LOGITS_AT_ONCE logits,
    whatever N and K.
    """
    valid_N, targets_N, (x_ND, target_e_ND, log_q_N) = countable(
        targets_N.flatten(), len(negatives_K), x_ND.flatten(0, -2), target_e_ND.flatten(0, -2), log_q_N.flatten()
    )
    dtype = product_dtype(x_ND, negative_e_KD)
    tiling = Tiling(dtype, bias_V=-(log_q_K + math.log(len(negatives_K))), ids=(negatives_K, targets_N))
    exact = tiling.exact
    own_N = (x_ND.to(exact) * target_e_ND.to(exact)).sum(dim=-1)
    own_N = own_N - (log_q_N + math.log(len(negatives_K))).clamp(max=0)
    losses_N = -F.logsigmoid(own_N - tiled_logsumexp(x_ND, negative_e_KD, tiling))
    return losses_N.masked_fill(~valid_N, 0).sum(), valid_N.sum().to(losses_N.dtype)


@torch.compiler.disable
def table_sampled_cross_entropy_sum(
    x_ND: Tensor,
    table: Callable[[Tensor], Tensor],
    targets_N: Tensor,
    proposal: Proposal,
    k: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """`sampled_cross_entropy_sum` with `k` negatives of `proposal` from a table, which gives e_*D for index_*."""
    x_ND, targets_N, negatives_K = x_ND.flatten(0, -2), targets_N.flatten(), proposal.draw(k, generator)
    indices = torch.cat([targets_N, negatives_K])
    # One look-up, for each makes a gradient of the whole table, or of a sharded one an exchange.
    (target_e_ND, negative_e_KD), (log_q_N, log_q_K) = (
        t.split([len(targets_N), k]) for t in (table(indices), proposal.log_q(indices))
    )
    return sampled_cross_entropy_sum(x_ND, target_e_ND, negative_e_KD, targets_N, negatives_K, log_q_N, log_q_K)
