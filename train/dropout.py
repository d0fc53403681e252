"""Dropout whose masks cost little on a CPU.

torch (2.13) draws a CPU mask one number at a time, 14 to 16 ns an element: nearly half the time of an ADRec step with
dropout 0.4 (measured, width 128, one worker). Here a draw of 64 bits serves four elements. On other devices, and where
torch.compile makes its own, torch's dropout is used.
"""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

_LANES = 4
_VALUES = 2**16
"""An element's chance is a multiple of 1 / 2^16."""


def factors(shape: Size, p: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """On the CPU, each 0 with chance p and else 1 / (1 - p), from torch's global generator."""
    elements, all_bits, dropped = math.prod(shape), torch.iinfo(torch.int64), min(round(p * _VALUES), _VALUES - 1)
    draws = torch.empty(-(-elements // _LANES), dtype=torch.int64).random_(all_bits.min, None)
    lanes = draws.view(torch.int16)[:elements].view(shape)
    # Into a number at once: by way of a boolean it takes four times as long.
    kept = torch.ge(lanes, dropped - _VALUES // 2, out=torch.empty(shape, dtype=dtype))
    return kept.mul_(_VALUES / (_VALUES - dropped))


def dropout(x: Tensor, p: float) -> Tensor:
    """x with each element 0 with chance p, the others over 1 - p."""
    if p == 0:
        return x
    if not _draws_here(x):
        return F.dropout(x, p)
    return x * factors(x.shape, p, x.dtype)


class Dropout(nn.Dropout):
    """torch's module with `dropout` in it."""

    def forward(self, input: Tensor) -> Tensor:
        """As `dropout` while training, else x."""
        return dropout(input, self.p) if self.training else input


def attention(q_BHLA: Tensor, k_BHLA: Tensor, v_BHLA: Tensor, mask_B1LL: Tensor | None, p: float) -> Tensor:
    """y_BHLA of scaled dot-product attention, weights dropped with chance p; causal where `mask_B1LL` is None."""
    if p == 0 or not _draws_here(q_BHLA):
        causal = mask_B1LL is None
        return F.scaled_dot_product_attention(q_BHLA, k_BHLA, v_BHLA, mask_B1LL, p, is_causal=causal)
    if mask_B1LL is None:
        mask_B1LL = torch.ones(q_BHLA.shape[2], k_BHLA.shape[2], dtype=torch.bool).tril()
    # What torch does itself on a CPU where weights are dropped.
    weight_BHLL = (q_BHLA * q_BHLA.shape[-1] ** -0.5) @ k_BHLA.mT
    weight_BHLL = weight_BHLL.masked_fill(~mask_B1LL, -math.inf).softmax(dim=-1)
    return dropout(weight_BHLL, p) @ v_BHLA


def _draws_here(x: Tensor) -> bool:
    """Whether masks for x are drawn by this file."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
