"""Causal Transformer blocks over packed or left-padded sequences, shared by the sequence models.

Post-LayerNorm blocks (eps 1e-12, feed-forward 4D with tanh-GELU), as in the published SASRec and
ADRec code (papers.md 2.1). Unlike that code, a position reads its own sequence only: never padding, so
results do not depend on its amount (peers.md, defect 4), and never another sequence of the same row.

Shapes: B batch, L length, D width, H heads, A = D / H width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.tables import PADDING

LAYER_NORM_EPS = 1e-12
EMBEDDING_STD = 0.02


def item_embedding(catalogue: int, width: int) -> nn.Embedding:
    """An item table e_VD from N(0, 0.02^2); the row of padding is zero and never moves."""
    table = nn.Embedding(catalogue, width, padding_idx=PADDING)
    nn.init.normal_(table.weight, std=EMBEDDING_STD)
    with torch.no_grad():
        table.weight[PADDING].zero_()
    return table


@dataclass(frozen=True)
class Visible:
    """What a position may read, computed once per batch for all blocks.

    `mask_B1LL` None means causal only (the published mask, with `real_BL` False at padding).
    """

    mask_B1LL: Tensor | None
    real_BL: Tensor

    @classmethod
    def of(cls, items_BL: Tensor, place_BL: Tensor, seen_padding: bool = False) -> Visible:
        """Own sequence and earlier ones of it; with `seen_padding` everything earlier in the row."""
        return cls(None if seen_padding else attention_mask(place_BL), items_BL != PADDING)


def attention_mask(place_BL: Tensor) -> Tensor:
    """mask_B1LL: query q may read key k where k <= q and k is of the same sequence, that is k >= q - place of q.

    A padded position has place 0: it reads itself alone, hence finite output, and nobody else reads it.

    >>> attention_mask(torch.tensor([[0, 1, 0]])).int()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    at_L = torch.arange(place_BL.shape[1], device=place_BL.device)
    first_BL = at_L - place_BL
    return ((at_L <= at_L[:, None]) & (at_L >= first_BL[..., None]))[:, None]


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position reads itself and earlier ones.

    Under the published mask (`Visible.of` with `seen_padding`) padded QUERIES are neutralised (they weigh every
    earlier position alike), but padding stays visible to real positions.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """y_BLD."""
        q_BLD = self.query(x_BLD)
        if visible.mask_B1LL is None:
            # A zero query scores every key 0: the uniform weights of the published pad rows.
            q_BLD = q_BLD * visible.real_BL[..., None]
        y_BHLA = F.scaled_dot_product_attention(
            self._split(q_BLD),
            self._split(self.key(x_BLD)),
            self._split(self.value(x_BLD)),
            attn_mask=visible.mask_B1LL,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible.mask_B1LL is None,
        )
        return self.out(y_BHLA.transpose(1, 2).flatten(2))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One post-LayerNorm block: x <- LN(x + attention(x)), then x <- LN(x + feed_forward(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CausalSelfAttention(width, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """x_BLD of the next block."""
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, visible)))
        return self.feed_forward_norm(x_BLD + self.dropout(self.feed_forward(x_BLD)))


class CausalTransformer(nn.Module):
    """A stack of blocks under one mask; weights Xavier-normal, biases zero, as published."""

    def __init__(self, width: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.apply(initialise)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """y_BLD."""
        for block in self.blocks:
            x_BLD = block(x_BLD, visible)
        return x_BLD


class HistoryEncoder(nn.Module):
    """Item vectors -> dropout -> LayerNorm -> blocks: c_BLD, one summary per position."""

    def __init__(self, width: int, blocks: int, heads: int, dropout: float, embedding_dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.transformer = CausalTransformer(width, blocks, heads, dropout)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """c_BLD."""
        return self.transformer(self.norm(self.dropout(x_BLD)), visible)


def initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for a linear layer; anything else is left alone."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)
