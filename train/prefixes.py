"""What stands before each target of a batch, as a sequence of its own: for models that read both directions.

A bidirectional model cannot be trained on all positions of a sequence at once, since each would see its own target.

Shapes: B rows and L length of the batch, N prefixes, C rows and P width of the packed prefixes, T events of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infra.tables import FIRST_INDEX
from train.packing import pack
from train.protocol import SequenceBatch


@dataclass(frozen=True)
class Prefixes:
    """Prefixes side by side in rows of one width (train.packing).

    items_CP and place_CP as in a batch; owner_CP: which prefix a place belongs to (padding: any); last_N: flat
    position of each prefix's last event; target_N: what follows it.
    """

    items_CP: Tensor
    place_CP: Tensor
    owner_CP: Tensor
    last_N: Tensor
    target_N: Tensor


@torch.compiler.disable
def prefixes_of(batch: SequenceBatch, longest: int, per_sequence: int, generator: torch.Generator) -> Prefixes:
    """The prefix of every target, its latest `longest` events; without any target, one of padding without one.

    `per_sequence` above 0: of so many targets for each sequence with any, drawn from all the batch's targets alike.

    >>> batch = SequenceBatch.left_padded(torch.tensor([[0, 7, 8, 9]]), torch.tensor([[0, 8, 1, 2]]))
    >>> found = prefixes_of(batch, 2, 0, torch.Generator())
    >>> found.items_CP.tolist(), found.last_N.tolist(), found.target_N.tolist()
    ([[8, 9, 7]], [1, 2], [2, 8])
    """
    (end_N,) = (batch.targets_BL.flatten() >= FIRST_INDEX).nonzero(as_tuple=True)
    if per_sequence:
        wanted = per_sequence * int(batch.counts["sequences"])
        drawn = torch.randperm(len(end_N), generator=generator, device=generator.device)[:wanted]
        end_N = end_N[drawn.sort().values.to(end_N.device)]
    if len(end_N) == 0:
        none = batch.items_BL.new_zeros(1, 1)
        return Prefixes(none, none, none, none[0], none[0])
    length_N = (batch.place_BL.flatten()[end_N] + 1).clamp(max=longest)
    packing = pack(length_N.cpu().numpy())
    order_N, start_N = (torch.from_numpy(a).to(end_N.device) for a in (packing.order_S, packing.start_S))
    end_N, length_N = end_N[order_N], length_N[order_N]
    owner_T = torch.arange(len(end_N), device=end_N.device).repeat_interleave(length_N)
    place_T = torch.arange(len(owner_T), device=end_N.device) - (length_N.cumsum(0) - length_N)[owner_T]
    there_T = start_N[owner_T] + place_T
    items_T = batch.items_BL.flatten()[(end_N - length_N + 1)[owner_T] + place_T]

    def laid_out(column_T: Tensor) -> Tensor:
        return column_T.new_zeros(packing.rows * packing.width).index_put((there_T,), column_T).view(packing.rows, -1)

    target_N = batch.targets_BL.flatten()[end_N]
    return Prefixes(laid_out(items_T), laid_out(place_T), laid_out(owner_T), start_N + length_N - 1, target_N)
