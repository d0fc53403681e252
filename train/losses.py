"""Cross-entropy over the whole catalogue in memory that does not grow with positions x catalogue.

Logits are made in tiles of some positions by some rows. Where a tile can have all rows, the forward pass makes
the gradients with it: three products. Where rows are too many for that, tiles are square, and the backward pass
makes them once more (as Cut Your Losses does, arXiv 2411.09009): four products, but none of few positions by many
rows, which would read and write the whole table and its gradient each time.

torch.nn.functional.linear_cross_entropy (2.13) does the former only; besides, it ignores autocast, sums a bfloat16
table's gradient in bfloat16, refuses a second backward pass, and its gradient is copied once more on its way to the
table: as much memory again as the table.

Shapes: N positions (any leading shape, flattened), D width, V rows of the table; a tile is P positions by C rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from infra.tables import FIRST_INDEX

#: Logits held at once, by kind of device. In float32 2^22 of them are 16 MiB: on a CPU larger tiles leave the cache
#: (2^24: 1.2 to 1.7 times the time, most where two processes share a memory bus). A GPU waits for each launch.
LOGITS_AT_ONCE = {"cpu": 2**22, "cuda": 2**24}


# Its sizes are worked out in Python, at which a compiler with symbolic shapes does not come to an end.
@torch.compiler.disable
def catalogue_cross_entropy_sum(
    x_ND: Tensor, e_VD: Tensor, targets_N: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """(sum over valid targets of -log softmax(x . e^T)[target], their count), candidates being the rows from 2.

    `x_ND` (..., D) and `targets_N` (...) share their leading shape. Padding (0) and unknown (1) are neither
    candidates nor valid targets, and their rows get no gradient. `chunk`: positions at once.

    Beside its inputs and their gradients this holds LOGITS_AT_ONCE logits, whatever N and V. Under autocast products
    are in its type, everything else and the table's gradient in float32. A target beyond the table makes it NaN.

    >>> x, e = torch.zeros(3, 4), torch.ones(10, 4)
    >>> total, count = catalogue_cross_entropy_sum(x, e, torch.tensor([0, 2, 9]))
    >>> round(total.item() / 2, 4), count.item()  # log 8
    (2.0794, 2.0)
    """
    valid_N, targets_N, (x_ND,) = countable(targets_N.flatten(), len(e_VD), x_ND.flatten(0, -2))
    tiling = Tiling(product_dtype(x_ND, e_VD), chunk, first=FIRST_INDEX, target_N=targets_N)
    total = _CrossEntropySum.apply(x_ND, e_VD, tiling, valid_N, torch.is_grad_enabled())
    return total, valid_N.sum().to(total.dtype)


def countable(targets_N: Tensor, candidates: int, *others: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """(which targets are valid, the targets, the others by position), rid of what stands at invalid ones.

    They are left out where that can save more than it costs to wait for the device's count of them; where all
    logits fit in one tile they are only overwritten, lest a NaN at a padded position reach a gradient.
    """
    valid_N = targets_N >= FIRST_INDEX
    if len(targets_N) * candidates > _at_once(targets_N):
        (kept,) = valid_N.nonzero(as_tuple=True)
        return valid_N[kept], targets_N[kept], tuple(t[kept] for t in others)
    cleared = tuple(t.masked_fill(~valid_N.view(-1, *[1] * (t.dim() - 1)), 0) for t in others)
    return valid_N, targets_N.clamp(min=FIRST_INDEX), cleared


def product_dtype(x_ND: Tensor, e_VD: Tensor) -> torch.dtype:
    """What the logits are multiplied in: autocast's type where it is on, which leaves float64 alone."""
    common, device = torch.promote_types(x_ND.dtype, e_VD.dtype), x_ND.device.type
    if torch.is_autocast_enabled(device) and common != torch.float64:
        return torch.get_autocast_dtype(device)
    return common


@dataclass(frozen=True)
class Tiling:
    """How logits are made, tile by tile, and which of them count.

    `dtype`: of the products. `chunk`: positions at once. Rows before `first` are no candidates.
    `target_N`: the row of each position's target. `bias_V`: added to each row's logits.
    `ids`: (of rows, of positions); a row is no candidate of a position that has its id.
    """

    dtype: torch.dtype
    chunk: int | None = None
    first: int = 0
    target_N: Tensor | None = None
    bias_V: Tensor | None = None
    ids: tuple[Tensor, Tensor] | None = None

    @property
    def exact(self) -> torch.dtype:
        """What exponentials and sums are in."""
        return torch.promote_types(self.dtype, torch.float32)

    def shape(self, x_ND: Tensor, e_VD: Tensor) -> tuple[int, int]:
        """(positions, rows) of a tile: all candidate rows if it can then have D positions, else a square.

        With fewer than D, the table's traffic outweighs that of the logits, and its copy in `dtype` the logits.
        """
        positions, (rows, width), room = len(x_ND), e_VD.shape, _at_once(e_VD)
        rows = max(1, rows - self.first)
        limit = self.chunk or (room // rows if rows * width <= room else _side(e_VD))
        high = math.ceil(positions / max(1, math.ceil(positions / limit))) or 1
        return high, max(1, min(rows, room // max(high, width)))

    def tiles(self, x_ND: Tensor, e_VD: Tensor) -> Iterator[Tile]:
        """Each overwrites the one before."""
        high, wide = self.shape(x_ND, e_VD)
        # One buffer for all tiles: on a CPU, fresh pages for each would cost as much as the product.
        rooms = x_ND.new_empty(high * wide, dtype=self.dtype)
        exacts = rooms if self.dtype == self.exact else x_ND.new_empty(high * wide, dtype=self.exact)
        for c in _slices(self.first, len(e_VD), wide):
            e_CD = e_VD[c].to(self.dtype)
            for n in _slices(0, len(x_ND), high):
                shape = (n.stop - n.start, c.stop - c.start)
                room_PC = rooms[: shape[0] * shape[1]].view(shape)
                logits_PC = room_PC if exacts is rooms else exacts[: room_PC.numel()].view(shape)
                torch.mm(x_ND[n].to(self.dtype), e_CD.T, out=room_PC)
                yield Tile(n, c, e_CD, self._counting(logits_PC.copy_(room_PC), n, c), room_PC, self._own(n, c))

    def _counting(self, logits_PC: Tensor, n: slice, c: slice) -> Tensor:
        """In place: biased, and the smallest number where the row is no candidate (infinity would make NaN)."""
        if self.bias_V is not None:
            logits_PC += self.bias_V[c]
        if self.ids is not None:
            rows, positions = self.ids
            logits_PC.masked_fill_(positions[n, None] == rows[c], torch.finfo(logits_PC.dtype).min)
        return logits_PC

    def _own(self, n: slice, c: slice) -> tuple[Tensor, Tensor] | None:
        if self.target_N is None:
            return None
        place_P1 = self.target_N[n, None] - c.start
        clamped_P1 = place_P1.clamp(0, c.stop - c.start - 1)
        return clamped_P1, place_P1 == clamped_P1


@dataclass(frozen=True)
class Tile:
    """Exact logits of positions `n` and rows `c`, and `room_PC` for the same in the products' type.

    `own`: where among the rows each position's target stands, and whether it does at all.
    """

    n: slice
    c: slice
    e_CD: Tensor
    logits_PC: Tensor
    room_PC: Tensor
    own: tuple[Tensor, Tensor] | None


def tiled_logsumexp(x_ND: Tensor, e_VD: Tensor, tiling: Tiling) -> Tensor:
    """l_N = log sum over candidates v of exp(x_n . e_v + b_v)."""
    result_N: Tensor = _LogSumExp.apply(x_ND, e_VD, tiling)
    return result_N


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, e_VD: Tensor, tiling: Tiling) -> Tensor:
        sum_N, _ = _sums(x_ND, e_VD, tiling)
        ctx.save_for_backward(x_ND, e_VD, sum_N)
        ctx.tiling = tiling
        return sum_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, e_VD, sum_N = ctx.saved_tensors
        return *_recomputed(x_ND, e_VD, ctx.tiling, sum_N, g_N, ctx.needs_input_grad), None


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, e_VD: Tensor, tiling: Tiling, valid_N: Tensor, differentiated: bool) -> Tensor:
        """Where tiles have all rows, gradients for an incoming 1 are made at once, which saves a product."""
        ctx.tiling, ctx.whole = tiling, tiling.shape(x_ND, e_VD)[1] >= len(e_VD) - tiling.first
        ctx.made = _Gradients.zeros(x_ND, e_VD, tiling, ctx.needs_input_grad) if ctx.whole and differentiated else None
        sum_N, target_N = _sums(x_ND, e_VD, tiling, ctx.made)
        ctx.save_for_backward(x_ND, e_VD, sum_N, valid_N)
        return (sum_N - target_N).masked_fill(~valid_N, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, e_VD, sum_N, valid_N = ctx.saved_tensors
        g_N = g * valid_N
        if not ctx.whole:
            return *_recomputed(x_ND, e_VD, ctx.tiling, sum_N, g_N, ctx.needs_input_grad), None, None, None
        # Multiplied in place, lest there be a second table: a second backward pass makes them once more.
        made, ctx.made = ctx.made, None
        if made is None:
            made = _Gradients.zeros(x_ND, e_VD, ctx.tiling, ctx.needs_input_grad)
            _sums(x_ND, e_VD, ctx.tiling, made)
        return *made.times(g_N, g), None, None, None


@dataclass(frozen=True)
class _Gradients:
    """dx = g (p - own) e and de = (p - own)^T (g x), p being the softmax and own one-hot at the target, if any."""

    dx_ND: Tensor | None
    de_VD: Tensor | None

    @classmethod
    def zeros(cls, x_ND: Tensor, e_VD: Tensor, tiling: Tiling, wanted: Sequence[bool]) -> _Gradients:
        """`wanted` begins with whether x's is and whether e's is."""
        wants_x, wants_e, *_ = wanted
        zeros = partial(torch.zeros_like, dtype=tiling.exact)
        return cls(zeros(x_ND) if wants_x else None, zeros(e_VD) if wants_e else None)

    def add(self, tile: Tile, p_PC: Tensor, x_PD: Tensor) -> None:
        """One tile's share, `p_PC` being overwritten."""
        if tile.own:
            place_P1, inside_P1 = tile.own
            p_PC.scatter_add_(1, place_P1, -inside_P1.to(p_PC.dtype))
        p_PC = tile.room_PC.copy_(p_PC)
        if self.dx_ND is not None:
            _add_product(self.dx_ND[tile.n], p_PC, tile.e_CD)
        if self.de_VD is not None:
            _add_product(self.de_VD[tile.c], p_PC.T, x_PD.to(p_PC.dtype))

    def times(self, g_N: Tensor, g: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """(dx, de) multiplied by the gradient that comes in, per position and, if not yet in de, as a whole."""
        return (
            None if self.dx_ND is None else self.dx_ND.mul_(g_N[:, None]),
            self.de_VD if self.de_VD is None or g is None else self.de_VD.mul_(g),
        )


def _sums(x_ND: Tensor, e_VD: Tensor, tiling: Tiling, gradients: _Gradients | None = None) -> tuple[Tensor, Tensor]:
    """(log-sum-exp, target's logit) of each position; `gradients`, if given, are added to on the way."""
    sum_N = x_ND.new_full((len(x_ND),), -torch.inf, dtype=tiling.exact)
    # A target beyond the table is in no tile: its loss is NaN.
    target_N = torch.full_like(sum_N, torch.nan if tiling.target_N is not None else 0)
    for tile in tiling.tiles(x_ND, e_VD):
        n, logits_PC = tile.n, tile.logits_PC
        if tile.own:
            # From the tile itself, so that what rounding does to the target's logit cancels.
            place_P1, inside_P1 = tile.own
            target_N[n] = logits_PC.gather(1, place_P1).where(inside_P1, target_N[n, None])[:, 0]
        top_P1 = logits_PC.amax(dim=1, keepdim=True)
        part_P1 = logits_PC.sub_(top_P1).exp_().sum(dim=1, keepdim=True)
        if gradients is not None:
            gradients.add(tile, logits_PC.div_(part_P1), x_ND[n])
        sum_N[n] = torch.logaddexp(sum_N[n], (part_P1.log() + top_P1)[:, 0])
    return sum_N, target_N


def _recomputed(
    x_ND: Tensor, e_VD: Tensor, tiling: Tiling, sum_N: Tensor, g_N: Tensor, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """(dx, de) for the gradient `g_N` of each position, from the log-sum-exp."""
    gradients = _Gradients.zeros(x_ND, e_VD, tiling, wanted)
    gx_ND = x_ND.to(tiling.exact) * g_N[:, None]
    for tile in tiling.tiles(x_ND, e_VD):
        gradients.add(tile, tile.logits_PC.sub_(sum_N[tile.n, None]).exp_(), gx_ND[tile.n])
    return gradients.times(g_N)


def _add_product(into: Tensor, a: Tensor, b: Tensor) -> None:
    """into += a @ b, added in the type of `into`."""
    if a.dtype == into.dtype:
        into.addmm_(a, b)
        return
    for rows in _slices(0, len(into), _side(into)):
        into[rows] += a[rows] @ b


def _at_once(tensor: Tensor) -> int:
    return LOGITS_AT_ONCE.get(tensor.device.type, LOGITS_AT_ONCE["cuda"])


def _side(tensor: Tensor) -> int:
    return math.isqrt(_at_once(tensor))


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, stop)) for i in range(start, stop, step))
