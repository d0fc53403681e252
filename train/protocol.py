"""What a model is: two small protocols, so that loader, loop, evaluation and registry are written once.

Shapes: B batch, L length, D width, V catalogue rows (0 padding, 1 unknown included), R vectors per
user, F categorical fields, G numeric fields, N all fields, K values of a multi-valued field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from infra.tables import FIRST_INDEX, PADDING, Kind
from train.ragged import Ragged


@dataclass(frozen=True)
class Term:
    """One term of a loss: `weight * sum / count`, the count being that of `over` in the whole global batch.

    Sum and count are apart so that ranks and micro-batches, which hold different numbers of targets, add up to
    exactly the loss of the global batch.
    """

    sum: Tensor
    over: str
    """What it is a mean over, one of the batch's `counts`: targets, sequences or samples."""
    weight: float = 1.0


@dataclass(frozen=True)
class LossParts:
    """The named terms of a loss, and the counts of the batch that they were computed on."""

    terms: Mapping[str, Term]
    counts: Mapping[str, Tensor]

    @property
    def total(self) -> Tensor:
        """The loss of this batch alone."""
        return self.scaled(self.counts)

    @property
    def parts(self) -> dict[str, Tensor]:
        """Each term's mean over this batch alone, without its weight."""
        return self.means(self.counts)

    def means(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This batch's share of each term's mean over a global batch with these counts, detached, for the log."""
        return {name: (t.sum / counts[t.over].clamp(min=1)).detach() for name, t in self.terms.items()}

    def scaled(self, counts: Mapping[str, Tensor]) -> Tensor:
        """This batch's share of the loss of a global batch with these counts."""
        return added(self.shares(counts))

    def shares(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same, term by term."""
        return {name: t.weight * t.sum / counts[t.over].clamp(min=1) for name, t in self.terms.items()}


def added(shares: Mapping[str, Tensor]) -> Tensor:
    """The loss that its terms' shares come to."""
    return torch.stack([*shares.values()]).sum()


@dataclass(frozen=True)
class SequenceBatch:
    """Events of users, oldest first; 0 is padding.

    At inference a row is one LEFT-padded history, so that position -1 is always the latest event. In training a
    row may hold several sequences one after the other: `place_BL` is an event's place in its own sequence, from 0,
    and 0 at padding, so a new sequence begins wherever it is 0.

    items_BL: int64 item indices. targets_BL: the item that follows each position (0 = no target); empty (B, 0)
    at inference.
    """

    items_BL: Tensor
    targets_BL: Tensor
    place_BL: Tensor

    @classmethod
    def left_padded(cls, items_BL: Tensor, targets_BL: Tensor | None = None) -> SequenceBatch:
        """One sequence per row.

        >>> SequenceBatch.left_padded(torch.tensor([[0, 0, 7, 8]])).place_BL.tolist()
        [[0, 0, 0, 1]]
        """
        place_BL = ((items_BL != PADDING).long().cumsum(dim=1) - 1).clamp(min=0)
        return cls(items_BL, items_BL.new_zeros(len(items_BL), 0) if targets_BL is None else targets_BL, place_BL)

    def latest(self, length: int) -> SequenceBatch:
        """The last `length` columns of left-padded rows; without any column, one of padding.

        >>> none = torch.empty(2, 0, dtype=torch.int64)
        >>> SequenceBatch.left_padded(none).latest(2).items_BL.tolist()
        [[0], [0]]
        """
        items_BL = self.items_BL if self.items_BL.shape[1] else self.items_BL.new_zeros(len(self.items_BL), 1)
        return SequenceBatch.left_padded(items_BL[:, -length:])

    def widened(self, length: int) -> SequenceBatch:
        """Left-padded rows with padding in front up to `length` columns."""
        missing = max(0, length - self.items_BL.shape[1])
        targets_BL = F.pad(self.targets_BL, (missing, 0)) if self.targets_BL.shape[1] else self.targets_BL
        return SequenceBatch.left_padded(F.pad(self.items_BL, (missing, 0)), targets_BL)

    def by_length(self, events: int = 6400) -> Iterator[tuple[Tensor, SequenceBatch]]:
        """Left-padded histories of similar length, shortest first, as (their places in this batch, the batch as wide
        as its longest): as many at once as have up to `events` places, so that little of what is computed on them is
        padding, and short ones come in large numbers; of one and the same length four times as many.

        >>> batch = SequenceBatch.left_padded(torch.tensor([[5, 6, 7], [0, 0, 8], [0, 0, 9]]))
        >>> [(places.tolist(), part.items_BL.tolist()) for places, part in batch.by_length(events=3)]
        [([1, 2], [[8], [9]]), ([0], [[5, 6, 7]])]
        """
        length_B = (self.items_BL != PADDING).sum(dim=1).clamp(min=1)
        order_B = length_B.argsort(stable=True)
        lengths, start = length_B[order_B].tolist(), 0
        for end in range(1, len(lengths) + 1):
            if end < len(lengths):
                limit = 4 * events if lengths[end] == lengths[start] else events
                if (end + 1 - start) * lengths[end] <= limit:
                    continue
            places = order_B[start:end]
            yield places, self.rows(places).latest(lengths[end - 1])
            start = end

    def rows(self, places: Tensor) -> SequenceBatch:
        """Some of the rows."""
        return SequenceBatch(self.items_BL[places], self.targets_BL[places], self.place_BL[places])

    @property
    def counts(self) -> dict[str, Tensor]:
        """`targets`: positions with one; `sequences`: sequences that have any."""
        valid_BL = self.targets_BL >= FIRST_INDEX
        return {"targets": valid_BL.sum(), "sequences": (self.targets_per_sequence() > 0).sum()}

    def sequence_of(self) -> Tensor:
        """(B L,): which sequence each position belongs to, counted through the batch; padding has its own."""
        return (self.place_BL == 0).flatten().cumsum(0) - 1

    def of_sequence(self, values: Tensor) -> Tensor:
        """(B, L): to each position the value of its sequence, sequence i's being the i-th of `values` (flattened)."""
        return values.flatten()[self.sequence_of()].view_as(self.items_BL)

    def targets_per_sequence(self) -> Tensor:
        """(B L,): targets of sequence i, zeros beyond the last."""
        valid = (self.targets_BL >= FIRST_INDEX).flatten().long()
        return torch.zeros_like(valid).index_add_(0, self.sequence_of(), valid)


@dataclass(frozen=True)
class FieldSpec:
    """One feature field of `samples`, in mask order. `size` counts padding and unknown (0 if numeric)."""

    name: str
    kind: Kind
    size: int = 0
    mean: float = 0.0
    std: float = 1.0
    missing_rate: float = 0.0


@dataclass(frozen=True)
class RankingBatch:
    """Labelled impressions.

    categorical_BF: int64 indices; numeric_BG: float32 raw values (0 where missing); multi: one
    int64 (B, K) per multi-valued field, 0-padded; missing_BN: bool over ALL fields in mask order;
    label_B: float32. Categorical, numeric and multi keep the order of the specs among themselves.
    A missing field's value here is meaningless: only missing_BN decides.
    """

    categorical_BF: Tensor
    numeric_BG: Tensor
    multi: tuple[Tensor, ...]
    missing_BN: Tensor
    label_B: Tensor

    def with_missing(self, missing_BN: Tensor) -> RankingBatch:
        """The same impressions with another set of missing fields."""
        return replace(self, missing_BN=missing_BN)

    @property
    def counts(self) -> dict[str, Tensor]:
        """`samples`: rows."""
        return {"samples": torch.tensor(len(self.label_B), device=self.label_B.device)}


Batch = TypeVar("Batch", SequenceBatch, RankingBatch)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with every tensor on `device`; from pinned memory the copy does not wait."""
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which a GPU fetches it while it computes."""
    return _each(batch, Tensor.pin_memory)


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    def changed(value: Any) -> Any:
        return tuple(change(v) for v in value) if isinstance(value, tuple) else change(value)

    return replace(batch, **{f.name: changed(getattr(batch, f.name)) for f in fields(batch)})


@dataclass(frozen=True)
class Stage:
    """One named stage of training.

    `share` of the run's epochs; `frozen`: prefixes of parameter names that do not move at all (no
    gradient, no weight decay, no step). `loss` takes (batch, generator). `project`: its terms'
    gradients are not added up as they are, but without what is against each other (train.projection). `forgets`:
    prefixes of parameters of which the optimizer forgets what it knew.
    """

    name: str
    share: float
    loss: Callable[..., LossParts]
    frozen: tuple[str, ...] = ()
    project: bool = False
    forgets: tuple[str, ...] = ()


@runtime_checkable
class SequenceModel(Protocol):
    """Answers with vectors; items are retrieved by inner product, several vectors merged by the maximum.

    A model whose scores are no inner products of short vectors has no item table: its user vectors are the scores of
    all items, D = V, as if item i's vector were the unit vector i.
    """

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Training loss; time steps and noise from `generator`, dropout from the global one."""
        ...

    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_BRD: R interests or noise draws per user; `steps` of the reverse process (None: the model's own)."""
        ...

    def item_table(self) -> Tensor | None:
        """e_VD: row i is item index i; rows 0 and 1 are never candidates. None: unit vectors."""
        ...


@runtime_checkable
class CountedModel(SequenceModel, Protocol):
    """Counted in one pass over the training split; `loss` raises TrainingError."""

    def fit(self, items: Ragged, next_items: Ragged) -> None:
        """Count over all training chunks: their items, and the same with 0 where one is not to be predicted."""
        ...


@runtime_checkable
class RankingModel(Protocol):
    """Scores impressions."""

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """Training loss on the batch's labels."""
        ...

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B: log-odds of a positive label."""
        ...
