"""Several interests of a user at once: what ComiRec, MIND and DimeRec's guidance make of a history.

Each module makes K vectors of the events that a query may read, for all queries of a batch in one pass: in training
every position of every sequence is a query (attention_mask), at inference the latest alone. Item vectors go in, so
interests and items are in one space.

Shapes: B batch, L length, Q queries (the last Q of the L places), D width, K interests, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.configs import InterestShape
from train.dropout import Dropout
from train.item_table import CosineItemModel
from train.layers import attention_mask, initialise, place_embedding
from train.protocol import LossParts, SequenceBatch
from train.table_shard import LargeTable

ROUNDS = 3
"""Of dynamic routing, as published."""


@dataclass(frozen=True)
class History:
    """Events, and what each query reads of them.

    h_BLD: their vectors, 0 at padding; place_BL: their places; mask_BQL: who reads what.
    """

    h_BLD: Tensor
    place_BL: Tensor
    mask_BQL: Tensor

    @classmethod
    def of(cls, h_BLD: Tensor, batch: SequenceBatch, latest: bool = False) -> History:
        """Every position a query, or the `latest` alone."""
        mask_BLL = attention_mask(batch.place_BL)[:, 0]
        return cls(h_BLD, batch.place_BL, mask_BLL[:, -1:] if latest else mask_BLL)

    @property
    def queries(self) -> int:
        """Q."""
        return self.mask_BQL.shape[1]

    def back(self) -> Tensor:
        """back_QL: how far before each query a place is."""
        at_L = torch.arange(self.h_BLD.shape[1], device=self.h_BLD.device)
        return at_L[-self.queries :, None] - at_L


@dataclass(frozen=True)
class Interests:
    """g_BQKD, and which of the K there are: `real_BQK`, at least the first; None = all."""

    g_BQKD: Tensor
    real_BQK: Tensor | None = None

    def changed(self, change: Callable[[Tensor], Tensor]) -> Interests:
        """The same of vectors that `change` makes of these."""
        return Interests(change(self.g_BQKD), self.real_BQK)

    def matching(self, e_BQD: Tensor) -> Tensor:
        """g_BQD: the one that scores e highest (hard argmax, without a gradient through the choice)."""
        with torch.no_grad():
            best_BQ = self._scores(e_BQD).argmax(dim=-1)
        at = best_BQ[..., None, None].expand(*best_BQ.shape, 1, self.g_BQKD.shape[-1])
        return self.g_BQKD.gather(2, at)[:, :, 0]

    def attended(self, e_BQD: Tensor, sharpness: float) -> Tensor:
        """g_BQD: their mean weighted by softmax(sharpness * g . e): MIND's label-aware attention."""
        weight_BQK = (sharpness * self._scores(e_BQD)).softmax(dim=-1)
        return (weight_BQK[..., None] * self.g_BQKD).sum(dim=2)

    def filled(self) -> Tensor:
        """g_BQKD with the first interest wherever there is none: merged by the maximum it then changes nothing."""
        if self.real_BQK is None:
            return self.g_BQKD
        return torch.where(self.real_BQK[..., None], self.g_BQKD, self.g_BQKD[:, :, :1])

    def _scores(self, e_BQD: Tensor) -> Tensor:
        score_BQK = (self.g_BQKD * e_BQD[:, :, None]).sum(dim=-1)
        return score_BQK if self.real_BQK is None else score_BQK.masked_fill(~self.real_BQK, -torch.inf)


class SelfAttentiveInterests(nn.Module):
    """ComiRec-SA (arXiv 2005.09347): A = softmax over the events of W2 tanh(W1 (h + P)) + b, g = A^T h.

    P: learned positions from the first event of the (cut) history. Hidden width 4D, as published. With `recency`, b is
    learned for each interest and distance back from the query, and begins at -4^(1 - k) a place, k from 0: the first
    interest with the latest event, the fourth with dozens. Without it b is 0, as published, where each history is one
    row and, of full ones, a place is a distance too.
    """

    def __init__(self, width: int, interests: int, max_length: int, recency: bool) -> None:
        super().__init__()
        self.places = place_embedding(max_length, width)
        self.score = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.Tanh(), nn.Linear(4 * width, interests, bias=False)
        ).apply(initialise)
        slope_K = 4.0 ** (1 - torch.arange(interests))
        bias_KL = -slope_K[:, None] * torch.arange(max_length)
        self.recency_KL = nn.Parameter(bias_KL) if recency else None

    def forward(self, history: History) -> Interests:
        """g_BQKD."""
        score_BLK = self.score(history.h_BLD + self.places(history.place_BL))
        score_BQKL = score_BLK.transpose(1, 2)[:, None]
        if self.recency_KL is not None:
            back_QL = history.back().clamp(0, self.recency_KL.shape[1] - 1)
            score_BQKL = score_BQKL + self.recency_KL[:, back_QL].transpose(0, 1)
        weight_BQKL = score_BQKL.masked_fill(~history.mask_BQL[:, :, None], -torch.inf).softmax(dim=-1)
        # In one product.
        g_BXD = weight_BQKL.flatten(1, 2) @ history.h_BLD
        return Interests(g_BXD.unflatten(1, (history.queries, -1)))


class RoutedInterests(nn.Module):
    """Dynamic routing from events to interests, in three rounds (ComiRec-DR; MIND, arXiv 1904.08030).

    h' = S h; b the logits of an event's interests; c = softmax over the interests of b; g_k = squash(sum c_k h');
    b_k += h' . g_k. Only the last round has a gradient through h', as published. `shared`: one S and fixed random first
    logits (MIND), else an S for each interest and first logits of 0 (ComiRec-DR; its S is one for each place as well,
    which is as many parameters as places and left out here). `adaptive`: n events are routed to the first
    max(1, min(K, floor(log2 n))) interests alone (MIND).
    """

    def __init__(self, width: int, interests: int, max_length: int, shared: bool, adaptive: bool = False) -> None:
        super().__init__()
        self.interests, self.adaptive = interests, adaptive
        self.bilinear = nn.Linear(width, width if shared else interests * width, bias=False).apply(initialise)
        first_LK = torch.randn(max_length, interests) if shared else torch.zeros(max_length, interests)
        self.first_LK = nn.Parameter(first_LK, requires_grad=False)

    def forward(self, history: History) -> Interests:
        """g_BQKD, and which are real."""
        low_BLXD = self.bilinear(history.h_BLD).unflatten(2, (-1, history.h_BLD.shape[-1]))
        low_BKLD = low_BLXD.transpose(1, 2).expand(-1, self.interests, -1, -1)
        fixed_BKLD, read_BQ1L = low_BKLD.detach(), history.mask_BQL[:, :, None]
        b_BQKL = self.first_LK[history.place_BL].transpose(1, 2)[:, None].expand(-1, history.queries, -1, -1)
        real_BQK = self._real(history) if self.adaptive else None
        if real_BQK is not None:
            b_BQKL = b_BQKL.masked_fill(~real_BQK[..., None], -torch.inf)
        for _ in range(ROUNDS - 1):
            g_BQKD = self._made(b_BQKL.softmax(dim=2) * read_BQ1L, fixed_BKLD)
            b_BQKL = b_BQKL + (g_BQKD.transpose(1, 2) @ fixed_BKLD.mT).transpose(1, 2)
        return Interests(self._made(b_BQKL.softmax(dim=2) * read_BQ1L, low_BKLD), real_BQK)

    def _real(self, history: History) -> Tensor:
        events_BQ = history.place_BL[:, -history.queries :] + 1
        least_K = 2 ** (1 + torch.arange(self.interests, device=events_BQ.device))
        least_K[0] = 1
        return events_BQ[..., None] >= least_K

    @staticmethod
    def _made(weight_BQKL: Tensor, low_BKLD: Tensor) -> Tensor:
        return squash((weight_BQKL.transpose(1, 2) @ low_BKLD).transpose(1, 2))


class LatestItems(nn.Module):
    """The last K items themselves, the latest first; no parameters. Of a shorter history as many as there are."""

    def __init__(self, interests: int) -> None:
        super().__init__()
        self.interests = interests

    def forward(self, history: History) -> Interests:
        """g_BQKD, and which are real."""
        length, device = history.h_BLD.shape[1], history.h_BLD.device
        back_K = torch.arange(self.interests, device=device)
        real_BQK = back_K <= history.place_BL[:, -history.queries :, None]
        at_Q = torch.arange(length - history.queries, length, device=device)
        there_QK = (at_Q[:, None] - back_K).clamp(min=0)
        return Interests(history.h_BLD[:, there_QK] * real_BQK[..., None], real_BQK)


class InterestModel(CosineItemModel):
    """What models share that answer with their interests: trained by the best for a target, retrieving by all."""

    def __init__(self, shape: InterestShape, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(shape, catalogue, items)
        self.max_length = shape.max_length
        self.embedding_dropout = Dropout(shape.embedding_dropout)

    def extracted(self, history: History) -> Interests:
        """The model's interests of a history, not yet as scores take them."""
        raise NotImplementedError

    def answering(self, found: Interests, target_BLD: Tensor) -> Tensor:
        """c_BLD: what answers for each target in training."""
        return found.matching(target_BLD)

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item under what answers for it, mean over the batch's known targets."""
        # One lookup: its gradient is as large as the table.
        shown_BLD, e_BLD = self.items(torch.stack([batch.items_BL, batch.targets_BL])).unbind()
        c_BLD = self.answering(self.interests(shown_BLD, batch), self.candidates(e_BLD))
        return self.next_item_loss(c_BLD, batch, generator)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_BKD: the interests, all alike without a history. Put the model in eval mode first."""
        batch = batch.latest(self.max_length)
        return self.interests(self.items(batch.items_BL), batch, latest=True).filled()[:, 0]

    def interests(self, shown_BLD: Tensor, batch: SequenceBatch, latest: bool = False) -> Interests:
        """Of every position, or of the `latest` alone, as scores take them."""
        history = History.of(self.embedding_dropout(shown_BLD), batch, latest)
        return self.extracted(history).changed(self.asking)


def squash(x: Tensor) -> Tensor:
    """x |x| / (1 + |x|^2): the direction kept, the length brought below 1; 0 stays, with a gradient of 0.

    >>> squash(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.5769230723381042, 0.7692307829856873], [0.0, 0.0]]
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (length / (1 + length.square()))
