"""Exact retrieval over the whole catalogue: the target's rank, the top K, HR and NDCG from the rank.

Scores are inner products in float32, several vectors of one user merged by the maximum; without an item table
(None) the user vectors are the scores, D = V. Order: score descending, then item index ascending. Padding (0) and
unknown (1) are never candidates.

Shapes: B users, R vectors per user, D width, V catalogue rows, C rows of one chunk, H history, K list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from infra.errors import UsageError
from infra.tables import FIRST_INDEX, PADDING
from train.protocol import SequenceBatch, SequenceModel

#: Rank of a target that is no candidate (unknown, or outside the table): beyond any int32 catalogue.
MISS = 2**31 - 1

#: Scores held at once when no chunk is given.
SCORES_AT_ONCE = 2**24

_LOW_BITS = 2**32
_NOTHING = -(2**63)


def user_vectors(
    model: SequenceModel, batch: SequenceBatch, steps: int | None, generator: torch.Generator, draws: int = 1
) -> Tensor:
    """u_BRD of several noise draws side by side, to be merged by the maximum: each draw is an answer of its own, so
    several are several interests. `generator` goes on from one to the next; a model without noise answers the same."""
    return torch.cat([model.user_vectors(batch, steps, generator) for _ in range(draws)], dim=1)


def target_ranks(
    u_BRD: Tensor,
    e_VD: Tensor | None,
    target_B: Tensor,
    history_BH: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """rank_B (int64) = 1 + number of candidates that beat the target.

    `history_BH` (0-padded) leaves the candidates, the target itself never does. A NaN score beats
    nothing, and a target scored NaN is last: its rank is the number of candidates. A target that is
    no candidate has rank `MISS`.

    >>> e = torch.tensor([[9.0], [9.0], [1.0], [3.0], [3.0]])
    >>> target_ranks(torch.ones(3, 1, 1), e, torch.tensor([4, 2, 1])).tolist()
    [2, 3, 2147483647]
    """
    chunk = chunk or _default_chunk(u_BRD)
    catalogue = _catalogue(u_BRD, e_VD)
    known_B = (target_B >= FIRST_INDEX) & (target_B < catalogue)
    # One product serves both passes when it fits; otherwise equal chunks repeat equal products, so the
    # target meets the others with the very score it has in its own chunk.
    kept = list(_chunks(u_BRD, e_VD, chunk)) if catalogue - FIRST_INDEX <= chunk else None
    own_B = _own_scores(kept or _chunks(u_BRD, e_VD, chunk), target_B)
    better_B = torch.zeros_like(target_B)
    others_B = torch.zeros_like(target_B)
    for start, s_BC in kept or _chunks(u_BRD, e_VD, chunk):
        index_C = torch.arange(start, start + s_BC.shape[1], device=s_BC.device)
        rival_BC = index_C != target_B[:, None]
        if history_BH is not None:
            rival_BC &= ~_removed(history_BH, start, s_BC.shape[1])
        tied_BC = s_BC == own_B[:, None]
        beats_BC = (s_BC > own_B[:, None]) | (tied_BC & (index_C < target_B[:, None]))
        better_B += (beats_BC & rival_BC).sum(dim=1)
        others_B += rival_BC.sum(dim=1)
    rank_B = 1 + torch.where(own_B.isnan(), others_B, better_B)
    return torch.where(known_B, rank_B, MISS)


def top_k(
    u_BRD: Tensor,
    e_VD: Tensor | None,
    k: int,
    history_BH: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(items_BK int64, scores_BK float32): the best K candidates, best first.

    `history_BH` (0-padded) leaves the candidates, and so does whatever is scored NaN; where fewer
    than K are left the rest is item 0 with score -inf. Raises UsageError when k < 1.

    >>> e = torch.tensor([[9.0], [9.0], [1.0], [3.0], [3.0]])
    >>> items, scores = top_k(torch.ones(1, 1, 1), e, 4, torch.tensor([[2]]))
    >>> items.tolist(), scores.tolist()
    ([[3, 4, 0, 0]], [[3.0, 3.0, -inf, -inf]])
    """
    if k < 1:
        raise UsageError(f"k: asked for the top {k}; ask for at least 1")
    best_BK = torch.full((len(u_BRD), k), _NOTHING, dtype=torch.int64, device=u_BRD.device)
    for start, s_BC in _chunks(u_BRD, e_VD, chunk or _default_chunk(u_BRD)):
        out_BC = s_BC.isnan()
        if history_BH is not None:
            out_BC |= _removed(history_BH, start, s_BC.shape[1])
        keys_BC = _keys(s_BC, start).masked_fill(out_BC, _NOTHING)
        best_BK = torch.cat([best_BK, keys_BC], dim=1).topk(k, dim=1).values
    return _unpack(best_BK)


def hr_at(rank_B: Tensor, k: int) -> Tensor:
    """Hit rate per user: 1 where rank <= k, else 0 (float64).

    >>> hr_at(torch.tensor([1, 5, MISS]), 3).tolist()
    [1.0, 0.0, 0.0]
    """
    return (rank_B <= k).double()


def ndcg_at(rank_B: Tensor, k: int) -> Tensor:
    """NDCG per user with one relevant item: 1 / log2(1 + rank) where rank <= k, else 0 (float64).

    >>> ndcg_at(torch.tensor([1, 3, MISS]), 3).tolist()
    [1.0, 0.5, 0.0]
    """
    return hr_at(rank_B, k) / torch.log2(1 + rank_B.double())


def _default_chunk(u_BRD: Tensor) -> int:
    return max(1, SCORES_AT_ONCE // max(1, u_BRD.shape[0] * u_BRD.shape[1]))


def _catalogue(u_BRD: Tensor, e_VD: Tensor | None) -> int:
    """V."""
    return u_BRD.shape[2] if e_VD is None else len(e_VD)


def _chunks(u_BRD: Tensor, e_VD: Tensor | None, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """(first item index, s_BC) over the candidates, float32, R merged by the maximum (NaN if any is)."""
    u_RBD = u_BRD.float().transpose(0, 1)
    for start in range(FIRST_INDEX, _catalogue(u_BRD, e_VD), chunk):
        rows = slice(start, start + chunk)
        s_RBC = u_RBD[..., rows] if e_VD is None else u_RBD @ e_VD[rows].float().T
        yield start, s_RBC.amax(dim=0)


def _own_scores(chunks: Iterable[tuple[int, Tensor]], target_B: Tensor) -> Tensor:
    """Each target's own score; NaN where it is no candidate."""
    own_B = torch.full(target_B.shape, torch.nan, device=target_B.device)
    for start, s_BC in chunks:
        here_B = (target_B >= start) & (target_B < start + s_BC.shape[1])
        column_B = torch.where(here_B, target_B - start, 0)
        own_B = torch.where(here_B, s_BC.gather(1, column_B[:, None])[:, 0], own_B)
    return own_B


def _removed(history_BH: Tensor, start: int, width: int) -> Tensor:
    """removed_BC: which columns of the chunk stand in the history; one spare column takes the rest."""
    inside_BH = (history_BH >= start) & (history_BH < start + width)
    column_BH = torch.where(inside_BH, history_BH - start, width)
    flags = torch.zeros(len(history_BH), width + 1, dtype=torch.bool, device=history_BH.device)
    return flags.scatter_(1, column_BH, True)[:, :width]


def _keys(s_BC: Tensor, start: int) -> Tensor:
    """Integers that sort like (score, -index): no two alike, so the order of ties is never left to topk.

    A float's bits, read as a signed magnitude, sort as the float does, and -0.0 meets +0.0.
    """
    bits_BC = s_BC.contiguous().view(torch.int32).long()
    order_BC = torch.where(bits_BC >= 0, bits_BC, -(bits_BC & 0x7FFFFFFF))
    index_C = torch.arange(start, start + s_BC.shape[1], device=s_BC.device)
    return order_BC * _LOW_BITS + (_LOW_BITS - 1 - index_C)


def _unpack(keys_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Items and scores back from `_keys`."""
    order_BK = keys_BK >> 32
    magnitude_BK = order_BK.abs().to(torch.int32).view(torch.float32)
    empty_BK = keys_BK == _NOTHING
    items_BK = (_LOW_BITS - 1 - (keys_BK & (_LOW_BITS - 1))).masked_fill(empty_BK, PADDING)
    scores_BK = torch.where(order_BK < 0, -magnitude_BK, magnitude_BK).masked_fill(empty_BK, -torch.inf)
    return items_BK, scores_BK
