"""Exact retrieval over the whole catalogue: the target's rank, the top K, HR and NDCG from the rank.

Scores are inner products in float32, several vectors of one user merged by the maximum; without an item table
(None) the user vectors are the scores, D = V. Order: score descending, then item index ascending. Padding (0) and
unknown (1) are never candidates.

So many users at once that their scores of the whole catalogue stay within a bound: a score is one product, which the
target and its rivals share to the last bit, and memory does not grow with the catalogue. Passes over the scores are
what it costs beside the product, so there is one: what beats a target is counted, a list is sought where the largest
scores of groups are, and users with NaN or with ties in numbers are looked at by themselves.

Shapes: B users, R vectors per user, D width, V catalogue rows, C = V - 2 candidates, P users at once, H history,
K list.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from infra.errors import UsageError
from infra.tables import FIRST_INDEX, PADDING
from train.protocol import SequenceBatch, SequenceModel

#: Rank of a target that is no candidate (unknown, or outside the table): beyond any int32 catalogue.
MISS = 2**31 - 1

#: Scores held at once; of one user all of them are.
SCORES_AT_ONCE = 2**24

_LOW_BITS = 2**32
_NOTHING = -(2**63)
_GROUP = 32
"""Columns of which the largest score is taken first."""


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
    at_once: int = SCORES_AT_ONCE,
) -> Tensor:
    """rank_B (int64) = 1 + number of candidates that beat the target.

    `history_BH` (0-padded) leaves the candidates, the target itself never does. A NaN score beats
    nothing, and a target scored NaN is last: its rank is the number of candidates. A target that is
    no candidate has rank `MISS`. `at_once` bounds the scores held, and decides nothing.

    >>> e = torch.tensor([[9.0], [9.0], [1.0], [3.0], [3.0]])
    >>> target_ranks(torch.ones(3, 1, 1), e, torch.tensor([4, 2, 1])).tolist()
    [2, 3, 2147483647]
    """
    known_B = (target_B >= FIRST_INDEX) & (target_B < _catalogue(u_BRD, e_VD))
    column_B = torch.where(known_B, target_B - FIRST_INDEX, 0)
    parts = []
    for rows, s_PC in _scores(u_BRD, e_VD, at_once):
        if not s_PC.shape[1]:
            parts.append(torch.ones_like(target_B[rows]))
            continue
        column_P1 = column_B[rows, None]
        own_P1 = s_PC.gather(1, column_P1)
        rank_P = 1 + _better(s_PC, own_P1, column_P1)
        others_P = torch.full_like(rank_P, s_PC.shape[1] - 1)
        if history_BH is not None:
            inside_PH, seen_PH = _removed(history_BH[rows], s_PC.shape[1])
            inside_PH &= seen_PH != column_P1
            scores_PH = s_PC.gather(1, seen_PH)
            beats_PH = (scores_PH > own_P1) | ((scores_PH == own_P1) & (seen_PH < column_P1))
            rank_P -= (beats_PH & inside_PH).sum(dim=1)
            others_P -= inside_PH.sum(dim=1)
        parts.append(torch.where(own_P1[:, 0].isnan(), 1 + others_P, rank_P))
    rank_B = torch.cat(parts) if parts else torch.zeros_like(target_B)
    return torch.where(known_B, rank_B, MISS)


def top_k(
    u_BRD: Tensor,
    e_VD: Tensor | None,
    k: int,
    history_BH: Tensor | None = None,
    at_once: int = SCORES_AT_ONCE,
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
    items_BK = torch.full((len(u_BRD), k), PADDING, dtype=torch.int64, device=u_BRD.device)
    scores_BK = torch.full((len(u_BRD), k), -torch.inf, device=u_BRD.device)
    for rows, s_PC in _scores(u_BRD, e_VD, at_once):
        if history_BH is not None and s_PC.shape[1]:
            inside_PH, seen_PH = _removed(history_BH[rows], s_PC.shape[1])
            user_S, place_S = torch.nonzero(inside_PH, as_tuple=True)
            gone = (user_S, seen_PH[user_S, place_S])
        else:
            gone = (torch.zeros(0, dtype=torch.int64, device=s_PC.device),) * 2
        items_BK[rows], scores_BK[rows] = _best(s_PC, k, gone)
    return items_BK, scores_BK


def _best(s_PC: Tensor, k: int, gone: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(items_PK, scores_PK) without NaN and without the places `gone` (users, columns).

    A list's items are at least as large as the K-th largest of the groups' maxima, for that is the least of K scores.
    So they are in the groups with maxima of at least that; where these are more than are looked at, or the bound is no
    number, all scores are sorted.
    """
    users, candidates = s_PC.shape
    groups, looked_at = candidates // _GROUP, 2 * k + 8
    if groups <= looked_at:
        s_PC[gone] = torch.nan
        return _sorted(s_PC, _columns(s_PC), k)
    s_PC[gone] = -torch.inf
    whole_PJG = s_PC[:, : groups * _GROUP].view(users, _GROUP, groups)  # group g: columns g, g + G, g + 2 G, ...
    found = whole_PJG.amax(dim=1).topk(looked_at + 1, dim=1)  # NaN first
    place_PJL = found.indices[:, None, :-1].expand(-1, _GROUP, -1)
    column_PJL = place_PJL + groups * torch.arange(_GROUP, device=s_PC.device)[:, None]
    rest_PX = _columns(s_PC)[:, groups * _GROUP :].expand(users, -1)
    column_PS = torch.cat([column_PJL.flatten(1), rest_PX], dim=1)
    value_PS = s_PC.gather(1, column_PS)
    items_PK, scores_PK = _sorted(value_PS, column_PS, k)
    bound_P = found.values[:, k - 1]
    odd_P = found.values[:, 0].isnan() | bound_P.isneginf() | (found.values[:, -1] == bound_P)
    if odd_P.any():
        s_PC[gone] = torch.nan
        items_PK[odd_P], scores_PK[odd_P] = _sorted(s_PC[odd_P], _columns(s_PC), k)
    return items_PK, scores_PK


def _sorted(s_PS: Tensor, column_PS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best K of some columns; NaN is not there."""
    keys_PS = _keys(s_PS, column_PS).masked_fill_(s_PS.isnan(), _NOTHING)
    spare = max(0, k - keys_PS.shape[1])
    keys_PS = torch.nn.functional.pad(keys_PS, (0, spare), value=_NOTHING)
    return _unpack(keys_PS.topk(k, dim=1).values)


def _columns(s_PC: Tensor) -> Tensor:
    return torch.arange(s_PC.shape[1], device=s_PC.device)[None]


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


def _catalogue(u_BRD: Tensor, e_VD: Tensor | None) -> int:
    """V."""
    return u_BRD.shape[2] if e_VD is None else len(e_VD)


def _scores(u_BRD: Tensor, e_VD: Tensor | None, at_once: int) -> Iterator[tuple[slice, Tensor]]:
    """(some of the users, their s_PC), float32, R merged by the maximum (NaN if any is); the caller's to change until
    it asks for the next."""
    users, interests = u_BRD.shape[:2]
    candidates = max(0, _catalogue(u_BRD, e_VD) - FIRST_INDEX)
    step = max(1, at_once // max(1, interests * candidates))
    e_DC = None if e_VD is None else e_VD[FIRST_INDEX:].float().T
    room_PC = u_BRD.new_empty(min(step, users) if interests == 1 else 0, candidates, dtype=torch.float32)
    for start in range(0, users, step):
        rows = slice(start, min(start + step, users))
        u_PRD = u_BRD[rows].float()
        if e_DC is None:
            yield rows, u_PRD[..., FIRST_INDEX:].amax(dim=1)
        elif interests == 1 and not u_BRD.requires_grad:
            yield rows, torch.mm(u_PRD[:, 0], e_DC, out=room_PC[: len(u_PRD)])  # fresh memory costs as much as a pass
        else:
            yield rows, (u_PRD @ e_DC).amax(dim=1)


def _better(s_PC: Tensor, own_P1: Tensor, column_P1: Tensor) -> Tensor:
    """int64 (P,): how many columns beat the own one, of which those in front of it do with a tie."""
    if s_PC.device.type != "cpu":
        in_front_PC = _columns(s_PC) < column_P1
        return torch.where(in_front_PC, s_PC >= own_P1, s_PC > own_P1).sum(dim=1)
    # Row by row in numpy: a row of booleans stays in the cache, and torch's sum of them takes longer than the product.
    rows = zip(s_PC.numpy(), own_P1[:, 0].numpy(), column_P1[:, 0].tolist(), strict=True)
    better = [np.count_nonzero(row[:c] >= own) + np.count_nonzero(row[c + 1 :] > own) for row, own, c in rows]
    return torch.tensor(better, dtype=torch.int64)


def _removed(history_PH: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """(inside_PH, column_PH): the candidates that leave, each once, and their columns; the others have some column."""
    column_PH = history_PH.sort(dim=1).values - FIRST_INDEX
    inside_PH = (column_PH >= 0) & (column_PH < candidates)
    inside_PH[:, 1:] &= column_PH[:, 1:] != column_PH[:, :-1]
    return inside_PH, column_PH.clamp(0, max(0, candidates - 1))


def _keys(s_PS: Tensor, column_PS: Tensor) -> Tensor:
    """Integers that sort like (score, -index): no two alike, so the order of ties is never left to topk.

    A float's bits, read as a signed magnitude, sort as the float does, and -0.0 meets +0.0.
    """
    bits_PS = s_PS.contiguous().view(torch.int32).long()
    order_PS = torch.where(bits_PS >= 0, bits_PS, -(bits_PS & 0x7FFFFFFF))
    return order_PS * _LOW_BITS + (_LOW_BITS - 1 - FIRST_INDEX - column_PS)


def _unpack(keys_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Items and scores back from `_keys`."""
    order_BK = keys_BK >> 32
    magnitude_BK = order_BK.abs().to(torch.int32).view(torch.float32)
    empty_BK = keys_BK == _NOTHING
    items_BK = (_LOW_BITS - 1 - (keys_BK & (_LOW_BITS - 1))).masked_fill(empty_BK, PADDING)
    scores_BK = torch.where(order_BK < 0, -magnitude_BK, magnitude_BK).masked_fill(empty_BK, -torch.inf)
    return items_BK, scores_BK
