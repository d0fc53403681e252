"""Causal Transformer blocks over packed or left-padded sequences, shared by the sequence models.

Post-LayerNorm blocks (eps 1e-12, feed-forward 4D), as in the published SASRec and ADRec code. Unlike that code, a
position reads its own sequence only: never padding, so results do not depend on its amount, and never another sequence
of the same row. GELU is exact, not the published approximation by tanh, which is at most 5e-4 away and takes a CPU
three times as long.

Reading of a history that stays as it is while only its last token changes (a reverse process): `prefill` keeps what
enters each block at all tokens but the last, `extend` runs the last one over them at the cost of one token.

Shapes: B batch, L length, D width, H heads, A = D / H width of a head, C = L - 1 tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.tables import PADDING
from train.configs import BlockShape
from train.dropout import Dropout, attention

LAYER_NORM_EPS = 1e-12
EMBEDDING_STD = 0.02


def item_embedding(catalogue: int, width: int) -> nn.Embedding:
    """An item table e_VD from N(0, 0.02^2); the row of padding is zero and never moves."""
    table = nn.Embedding(catalogue, width, padding_idx=PADDING)
    nn.init.normal_(table.weight, std=EMBEDDING_STD)
    with torch.no_grad():
        table.weight[PADDING].zero_()
    return table


def place_embedding(length: int, width: int) -> nn.Embedding:
    """Learned positions from N(0, 0.02^2), counted from the first event of the (cut) history."""
    places = nn.Embedding(length, width)
    nn.init.normal_(places.weight, std=EMBEDDING_STD)
    return places


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

    def without_last(self) -> Visible:
        """The same of all tokens but the last."""
        mask_B1CC = None if self.mask_B1LL is None else self.mask_B1LL[:, :, :-1, :-1]
        return Visible(mask_B1CC, self.real_BL[:, :-1])

    def bias_of_last(self, dtype: torch.dtype) -> Tensor | None:
        """bias_B11L of the last token's scores; None where it sees everything."""
        if self.mask_B1LL is None or bool(self.mask_B1LL[:, :, -1].all()):
            return None
        seen_B11L = self.mask_B1LL[:, :, -1:]
        return torch.zeros_like(seen_B11L, dtype=dtype).masked_fill(~seen_B11L, torch.finfo(dtype).min)


def attention_mask(place_BL: Tensor) -> Tensor:
    """mask_B1LL: query q may read key k where k <= q and k is of the same sequence, that is k >= q - place of q.

    A padded position has place 0: it reads itself alone, hence finite output, and nobody else reads it.

    >>> attention_mask(torch.tensor([[0, 1, 0]])).int()[0, 0].tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    at_L = torch.arange(place_BL.shape[1], device=place_BL.device)
    first_BL = at_L - place_BL
    return ((at_L <= at_L[:, None]) & (at_L >= first_BL[..., None]))[:, None]


@dataclass(frozen=True)
class Kept:
    """What enters each block of a stack at the earlier tokens, with a free place for the last; rows are users.

    `bias_B11L` is 0 where the last token may look and the smallest number elsewhere; None: everywhere. `real_B1` is
    False where the last token is padding itself, of a user without a history.
    """

    entering_BLD: list[Tensor]
    bias_B11L: Tensor | None
    real_B1: Tensor


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
        p = self.dropout if self.training else 0.0
        k_BHLA, v_BHLA = self._split(self.key(x_BLD)), self._split(self.value(x_BLD))
        y_BHLA = attention(self._split(q_BLD), k_BHLA, v_BHLA, visible.mask_B1LL, p)
        return self.out(y_BHLA.transpose(1, 2).flatten(2))

    def extend(self, x_BD: Tensor, earlier_BLD: Tensor, kept: Kept) -> Tensor:
        """y_BD of one more token after those in `earlier_BLD`, which takes the free place there.

        Without their keys and values: with one query q, q . (K x) is (q K) . x, and a weighted mean of V x is V of the
        weighted mean of x. That is half the memory to read, and products of H rows instead of one.
        """
        earlier_BLD[:, -1] = x_BD
        # As in `forward` under the published mask; under ours padding sees itself alone, whatever it asks.
        query_BD = self.query(x_BD) * kept.real_B1
        query_HBA = query_BD.unflatten(1, (self.heads, -1)).transpose(0, 1)
        # The bias of the keys adds the same to all scores of a query: softmax does not see it.
        query_BHD = (query_HBA @ self._of_heads(self.key)).transpose(0, 1)
        x_B1LD, scale = earlier_BLD[:, None], query_HBA.shape[-1] ** -0.5
        mean_B1HD = F.scaled_dot_product_attention(query_BHD[:, None], x_B1LD, x_B1LD, kept.bias_B11L, scale=scale)
        y_HBA = mean_B1HD[:, 0].transpose(0, 1) @ self._of_heads(self.value).mT
        return self.out(y_HBA.transpose(0, 1).flatten(1) + self.value.bias)

    def _of_heads(self, linear: nn.Linear) -> Tensor:
        """W_HAD."""
        return linear.weight.unflatten(0, (self.heads, -1))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One post-LayerNorm block: x <- LN(x + attention(x)), then x <- LN(x + feed_forward(x))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = CausalSelfAttention(width, heads, dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """x_BLD of the next block."""
        return self.after(x_BLD, self.attention(x_BLD, visible))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """The next block's x, where attention made `attended` of it."""
        x = self.attention_norm(x + self.dropout(attended))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


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

    def prefill(self, x_BCD: Tensor, visible: Visible) -> Kept:
        """What `extend` needs of the tokens before the last. `visible` is that of all L tokens, the last included.

        Evaluation only: dropout would be drawn once for all steps, and `extend` writes in place.
        """
        entering_BCD, earlier = [x_BCD], visible.without_last()
        for block in self._stack()[:-1]:
            entering_BCD.append(block(entering_BCD[-1], earlier))
        entering_BLD = [F.pad(x_BCD, (0, 0, 0, 1)) for x_BCD in entering_BCD]
        return Kept(entering_BLD, visible.bias_of_last(x_BCD.dtype), visible.real_BL[:, -1:])

    def extend(self, x_BD: Tensor, kept: Kept) -> Tensor:
        """y_BD of the last token, equal to the last position of `forward`."""
        for block, earlier_BLD in zip(self._stack(), kept.entering_BLD, strict=True):
            x_BD = block.after(x_BD, block.attention.extend(x_BD, earlier_BLD, kept))
        return x_BD

    def start_as_identity(self) -> None:
        """Zero what each block adds: what comes in normalised goes out as it came, and training starts from there."""
        for block in self._stack():
            for last in (block.attention.out, block.feed_forward[-1]):
                nn.init.zeros_(cast(nn.Linear, last).weight)

    def _stack(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))


class HistoryEncoder(nn.Module):
    """Item vectors -> dropout -> LayerNorm -> blocks: c_BLD, one summary per position."""

    def __init__(self, width: int, blocks: int, heads: int, dropout: float, embedding_dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.transformer = CausalTransformer(width, blocks, heads, dropout)

    @classmethod
    def of(cls, shape: BlockShape) -> HistoryEncoder:
        """The encoder of a model's configuration."""
        return cls(shape.width, shape.blocks, shape.heads, shape.dropout, shape.embedding_dropout)

    def size(self) -> Tensor:
        """||c|| / sqrt(D), as the gains and biases of the last LayerNorm have it."""
        last = self.transformer._stack()[-1].feed_forward_norm
        return (last.weight.square() + last.bias.square()).mean().sqrt()

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """c_BLD."""
        return self.transformer(self.norm(self.dropout(x_BLD)), visible)


def initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for a linear layer; anything else is left alone."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
