"""Causal Transformer blocks over left-padded histories, shared by the sequence models.

Post-LayerNorm blocks (eps 1e-12, feed-forward 4D with tanh-GELU), as in the published SASRec and
ADRec code (papers.md 2.1). Unlike that code, padding is masked as a KEY: a real position never
reads a padded one, so results do not depend on the amount of padding (peers.md, defect 4).

Shapes: B batch, L length, D width, H heads, A = D / H width of a head.
"""

from __future__ import annotations

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


def latest(items_BL: Tensor, length: int) -> Tensor:
    """The last `length` columns; a batch without any column becomes one column of padding.

    >>> latest(torch.tensor([[5, 6, 7]]), 2).tolist(), latest(torch.empty(2, 0, dtype=torch.int64), 2).tolist()
    ([[6, 7]], [[0], [0]])
    """
    if items_BL.shape[1] == 0:
        items_BL = F.pad(items_BL, (1, 0), value=PADDING)
    return items_BL[:, -length:]


def positions_from_first(real_BL: Tensor) -> Tensor:
    """Each event's place counted from the first real one, whatever the padding before it.

    >>> positions_from_first(torch.tensor([[False, False, True, True]])).tolist()
    [[0, 0, 0, 1]]
    """
    return (real_BL.long().cumsum(dim=1) - 1).clamp(min=0)


def attention_mask(real_BL: Tensor) -> Tensor:
    """mask_B1LL: query q may read key k where k <= q and k is real; every query may read itself.

    The diagonal gives padded queries something to read, hence finite output; no real query sees it,
    because a padded position is no key for anyone else.
    """
    length = real_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=real_BL.device).tril()
    own_LL = torch.eye(length, dtype=torch.bool, device=real_BL.device)
    return ((causal_LL & real_BL[:, None, :]) | own_LL)[:, None]


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position reads itself and earlier ones.

    `seen_padding=True` repeats the published mask: padded QUERIES are neutralised (they weigh every
    earlier position alike), but padding stays visible to real positions.
    """

    def __init__(self, width: int, heads: int, dropout: float, seen_padding: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.seen_padding = seen_padding
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, real_BL: Tensor, mask_B1LL: Tensor | None) -> Tensor:
        """y_BLD; `mask_B1LL` None means causal only."""
        q_BLD = self.query(x_BLD)
        if self.seen_padding:
            # A zero query scores every key 0: the uniform weights of the published pad rows.
            q_BLD = q_BLD * real_BL[..., None]
        y_BHLA = F.scaled_dot_product_attention(
            self._split(q_BLD),
            self._split(self.key(x_BLD)),
            self._split(self.value(x_BLD)),
            attn_mask=mask_B1LL,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_B1LL is None,
        )
        return self.out(y_BHLA.transpose(1, 2).flatten(2))

    def _split(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """One post-LayerNorm block: x <- LN(x + attention(x)), then x <- LN(x + feed_forward(x))."""

    def __init__(self, width: int, heads: int, dropout: float, seen_padding: bool) -> None:
        super().__init__()
        self.attention = CausalSelfAttention(width, heads, dropout, seen_padding)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.feed_forward_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, real_BL: Tensor, mask_B1LL: Tensor | None) -> Tensor:
        """x_BLD of the next block."""
        x_BLD = self.attention_norm(x_BLD + self.dropout(self.attention(x_BLD, real_BL, mask_B1LL)))
        return self.feed_forward_norm(x_BLD + self.dropout(self.feed_forward(x_BLD)))


class CausalTransformer(nn.Module):
    """A stack of blocks under one mask; weights Xavier-normal, biases zero, as published."""

    def __init__(self, width: int, blocks: int, heads: int, dropout: float, seen_padding: bool = False) -> None:
        super().__init__()
        self.seen_padding = seen_padding
        self.blocks = nn.ModuleList(Block(width, heads, dropout, seen_padding) for _ in range(blocks))
        self.apply(initialise)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """y_BLD; `real_BL` is False at padding."""
        mask_B1LL = None if self.seen_padding else attention_mask(real_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, real_BL, mask_B1LL)
        return x_BLD


class HistoryEncoder(nn.Module):
    """Item vectors -> dropout -> LayerNorm -> blocks: c_BLD, one summary per position."""

    def __init__(
        self,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        embedding_dropout: float,
        seen_padding: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.transformer = CausalTransformer(width, blocks, heads, dropout, seen_padding)

    def forward(self, x_BLD: Tensor, real_BL: Tensor) -> Tensor:
        """c_BLD."""
        return self.transformer(self.norm(self.dropout(x_BLD)), real_BL)


def initialise(module: nn.Module) -> None:
    """Xavier-normal weights and zero biases for a linear layer; anything else is left alone."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        nn.init.zeros_(module.bias)
