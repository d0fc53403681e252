"""Exact ranking over a sharded table: users travel to every shard, counts of rivals come back.

Shapes: B this rank's users, A those of all ranks, R vectors per user, D width, C rows of one chunk, H history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from infra.tables import FIRST_INDEX
from train.ranking import MISS, SCORES_AT_ONCE
from train.ranks import sum_over_ranks
from train.sharded import ShardedTable, require_group

#: (index_C, whether each is a candidate, s_AC) of one chunk of a shard.
Scores = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def sharded_target_ranks(
    u_BRD: Tensor,
    table: ShardedTable,
    target_B: Tensor,
    history_BH: Tensor | None = None,
    chunk: int | None = None,
    candidates: Callable[[Tensor], Tensor] = lambda e: e,
) -> Tensor:
    """rank_B of this rank's users, as train.ranking.target_ranks on the whole table. A collective; B may be 0.

    `candidates`: rows as scores take them (ItemModel.candidates).

    All users go to all ranks, each counts the rivals in its shard, the counts are added up. Scores may differ
    from those of the dense function in the last bit, as its own do from one chunk size to another.
    """
    world = table.world
    if history_BH is None:
        history_BH = target_B.new_zeros(len(target_B), 0)
    most, longest = _largest_shape(history_BH, world)
    history_AH = _gather(F.pad(history_BH, (0, longest - history_BH.shape[1])), most, world)
    u_ARD, target_A = _gather(u_BRD.float(), most, world), _gather(target_B, most, world)
    # One shape for every product on every rank, so that equal rows have equal scores wherever they lie.
    chunk = chunk or SCORES_AT_ONCE // max(1, u_ARD.shape[0] * u_ARD.shape[1])
    chunk = max(1, min(chunk, table.rows // world))
    own_A = sum_over_ranks(_own_scores(_scores(u_ARD, table, chunk, candidates), target_A, world))
    count_2A = sum_over_ranks(_rivals(_scores(u_ARD, table, chunk, candidates), own_A, target_A, history_AH, world))
    known_A = (target_A >= FIRST_INDEX) & (target_A < table.rows)
    rank_A = torch.where(known_A, 1 + torch.where(own_A.isnan(), count_2A[1], count_2A[0]), MISS)
    return rank_A[table.rank * most :][: len(target_B)]


def _scores(u_ARD: Tensor, table: ShardedTable, chunk: int, candidates: Callable[[Tensor], Tensor]) -> Iterator[Scores]:
    """The shard by chunks of one size: the last begins early, and its rows that had their turn are no candidates."""
    u_RAD = u_ARD.transpose(0, 1)
    for start in range(0, len(table.weight), chunk):
        first = min(start, len(table.weight) - chunk)
        row_C = torch.arange(first, first + chunk, device=u_ARD.device)
        index_C = row_C * table.world + table.rank
        e_CD = candidates(table.weight[first : first + chunk]).float()
        s_AC = (u_RAD @ e_CD.T).amax(dim=0)
        yield index_C, (row_C >= start) & (index_C >= FIRST_INDEX), s_AC


def _own_scores(scores: Iterable[Scores], target_A: Tensor, world: int) -> Tensor:
    """own_A: the target's score where it lies in this shard, else 0."""
    own_A = torch.zeros(target_A.shape, device=target_A.device)
    for index_C, candidate_C, s_AC in scores:
        column_A = _columns(target_A, index_C, world)
        some_A = column_A.clamp(max=len(index_C) - 1)
        here_A = (column_A < len(index_C)) & candidate_C[some_A]
        own_A = torch.where(here_A, s_AC.gather(1, some_A[:, None])[:, 0], own_A)
    return own_A


def _rivals(scores: Iterable[Scores], own_A: Tensor, target_A: Tensor, history_AH: Tensor, world: int) -> Tensor:
    """(rivals of this shard that beat the target, rivals), each (A,)."""
    count_2A = torch.zeros(2, len(target_A), dtype=torch.int64, device=target_A.device)
    for index_C, candidate_C, s_AC in scores:
        removed_AC = torch.zeros(len(s_AC), len(index_C) + 1, dtype=torch.bool, device=s_AC.device)
        removed_AC = removed_AC.scatter_(1, _columns(history_AH, index_C, world), True)[:, :-1]
        rival_AC = candidate_C & ~removed_AC & (index_C != target_A[:, None])
        tied_AC = s_AC == own_A[:, None]
        beats_AC = (s_AC > own_A[:, None]) | (tied_AC & (index_C < target_A[:, None]))
        count_2A += torch.stack([(beats_AC & rival_AC).sum(dim=1), rival_AC.sum(dim=1)])
    return count_2A


def _columns(index: Tensor, index_C: Tensor, world: int) -> Tensor:
    """Where indices stand in a chunk; C, one beyond it, for those that do not."""
    offset = index - index_C[0]
    inside = (offset % world == 0) & (offset >= 0) & (offset < len(index_C) * world)
    return torch.where(inside, offset // world, len(index_C))


def _largest_shape(history_BH: Tensor, world: int) -> list[int]:
    """The largest B and H of all ranks."""
    shape = torch.tensor(history_BH.shape, device=history_BH.device)
    if world > 1:
        require_group(world)
        dist.all_reduce(shape, dist.ReduceOp.MAX)
    return shape.tolist()


def _gather(x_B: Tensor, most: int, world: int) -> Tensor:
    """x_A: the rows of all ranks, `most` of each, filled up with zeros (target 0 has no rank)."""
    mine = x_B.new_zeros(most, *x_B.shape[1:])
    mine[: len(x_B)] = x_B
    if world == 1:
        return mine
    everyone = x_B.new_empty(world * most, *x_B.shape[1:])
    dist.all_gather_into_tensor(everyone, mine)
    return everyone
