"""One split of `sequences`, in batches: training chunks packed side by side, evaluation rows left-padded.

Shapes: N rows of the split, B rows of a batch, L width of a batch, H padded history length, S sequences chosen,
T events chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from infra.errors import TrainingError
from infra.lake import Lake
from infra.tables import FIRST_INDEX
from train.packing import pack
from train.protocol import SequenceBatch
from train.ragged import Ints, Ragged

COLUMNS = ["user", "items", "is_target", "target", "target_ts", "target_known"]
TRAINING_COLUMNS = ["items", "is_target"]


@dataclass(frozen=True)
class SequenceData:
    """One split of `sequences`. `target_N` is None for training chunks, which are their own targets."""

    items: Ragged
    next_items: Ragged
    """`items`, with 0 in the place of those that are not to be predicted (context events)."""
    target_N: Ints | None = None
    known_N: NDArray[np.bool_] | None = None
    """The target's item has an event before the cut; if not it is a miss."""
    user_N: NDArray[np.object_] = field(default_factory=lambda: np.empty(0, object))
    """User id of each row; empty in memory maps, which serve training."""
    max_length: int | None = None
    packed: bool = True
    """Whether training rows hold several sequences; left-padded rows are for models that need the padding."""

    @classmethod
    def from_lake(
        cls, lake: Lake, version: int, as_of: str, split: str, max_length: int | None = None, packed: bool = True
    ) -> SequenceData:
        """Read (as_of, split) of `sequences` at `version`; `max_length` caps what a batch shows of a row.

        Training chunks without a single target (fewer than two events, or nothing known to predict) are
        left out. Raises TrainingError when no row is left.
        """
        table = lake.read("sequences", version, {"as_of": as_of, "split": split}, COLUMNS)
        items, next_items = shown_and_predicted(table)
        ties = [items] if next_items is items else [items, next_items]
        table = in_own_order(table, ["user", "target_ts"], [tie.fingerprints() for tie in ties])
        if split == "train":
            data = cls.chunks(table, max_length, packed)
        else:
            known = pc.fill_null(table["target_known"], False).to_numpy()
            target = pc.fill_null(table["target"], 0).to_numpy().astype(np.int64)
            known &= target >= FIRST_INDEX
            data = cls(*shown_and_predicted(table), target, known, users(table), max_length, packed)
        require_rows(len(data), "sequences", version, as_of, split)
        return data

    @classmethod
    def chunks(cls, table: pa.Table, max_length: int | None, packed: bool = True) -> SequenceData:
        """Training chunks in the order of the table, without those that have no target."""
        items, next_items = shown_and_predicted(table)
        kept = targets_per_row(next_items, max_length) > 0
        if not kept.all():
            items, next_items = shown_and_predicted(table.filter(pa.array(kept)))
        return cls(items, next_items, max_length=max_length, packed=packed)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the user ids, by name, for memory maps."""
        arrays: dict[str, NDArray[Any]] = {"values": self.items.values, "offsets": self.items.offsets}
        if self.next_items is not self.items:
            arrays["next_values"] = self.next_items.values
        if self.target_N is not None and self.known_N is not None:
            arrays |= {"target": self.target_N, "known": self.known_N}
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], max_length: int | None, packed: bool = True
    ) -> SequenceData:
        """The inverse of `arrays`."""
        items = Ragged(arrays["values"], arrays["offsets"])
        next_items = Ragged(arrays["next_values"], items.offsets) if "next_values" in arrays else items
        target, known = arrays.get("target"), arrays.get("known")
        return cls(items, next_items, target, known, max_length=max_length, packed=packed)

    def __len__(self) -> int:
        return len(self.items)

    def sizes(self, rows_S: Ints) -> Ints:
        """Events that a training batch shows of each row, which is what it costs."""
        return self._shown(self.items.lengths_of(rows_S) - 1)

    def _shown(self, sizes_S: Ints) -> Ints:
        return sizes_S if self.max_length is None else np.minimum(sizes_S, self.max_length)

    def batch(self, rows_B: Ints) -> SequenceBatch:
        """The rows; training: the targets are the items one position later, none at padding, none that is unknown
        to the vocabulary, and none of a context event. Evaluation: the latest `max_length` events and no targets.
        """
        if self.target_N is not None:
            return SequenceBatch.left_padded(torch.from_numpy(self.items.left_padded(rows_B, self.max_length)))
        return self._packed(rows_B) if self.packed else self._left_padded(rows_B)

    def _packed(self, rows_S: Ints) -> SequenceBatch:
        if len(rows_S) == 0:
            return SequenceBatch(*(torch.zeros(1, 1, dtype=torch.int64) for _ in range(3)))
        end_S = self.items.offsets[rows_S + 1] - 1
        sizes_S = self._shown(end_S - self.items.offsets[rows_S])
        packing = pack(sizes_S)
        sizes_S, end_S, start_S = sizes_S[packing.order_S], end_S[packing.order_S], packing.start_S
        # A sequence is laid out over the gap behind it too; the gaps, which are few, are cleared in the end.
        reach_S = np.diff(start_S, append=packing.rows * packing.width)
        place_T = np.arange(packing.rows * packing.width, dtype=np.int32)
        place_T -= np.repeat(start_S.astype(np.int32), reach_S)
        source_T = np.repeat(end_S - sizes_S, reach_S)
        source_T += place_T
        items_T = self.items.values.take(source_T, mode="clip")
        if self.next_items is self.items:
            next_T = np.append(items_T[1:], np.int32(0))
            next_T[start_S + sizes_S - 1] = self.items.values[end_S]
        else:
            next_T = self.next_items.values[1:].take(source_T, mode="clip")
        next_T *= next_T >= FIRST_INDEX
        gap_G = _ranges(start_S + sizes_S, reach_S - sizes_S)
        return SequenceBatch(*(_laid_out(column_T, gap_G, packing.width) for column_T in (items_T, next_T, place_T)))

    def _left_padded(self, rows_B: Ints) -> SequenceBatch:
        """For models that see padding: always as much of it, whoever else is in the batch."""
        longest = None if self.max_length is None else self.max_length + 1
        items_BL = torch.from_numpy(self.items.left_padded(rows_B, longest))[:, :-1].contiguous()
        next_BL = torch.from_numpy(self.next_items.left_padded(rows_B, longest))[:, 1:]
        batch = SequenceBatch.left_padded(items_BL, next_BL * ((items_BL != 0) & (next_BL >= FIRST_INDEX)))
        return batch if self.max_length is None else batch.widened(self.max_length)

    def histories(self, rows_B: Ints) -> Ints:
        """history_BH: what the rows' users have taken so far, left-padded with 0; of context events nothing."""
        return self.next_items.left_padded(rows_B)


def _ranges(start_N: Ints, length_N: Ints) -> Ints:
    """start, start + 1, ... of each range, one after the other."""
    before_N = np.cumsum(length_N) - length_N
    return np.arange(int(length_N.sum())) + np.repeat(start_N - before_N, length_N)


def _laid_out(column_T: NDArray[np.int32], gap_G: Ints, width: int) -> torch.Tensor:
    column_T[gap_G] = 0
    return torch.from_numpy(column_T.astype(np.int64)).view(-1, width)


def shown_and_predicted(table: pa.Table) -> tuple[Ragged, Ragged]:
    """Of rows of `sequences`: their items, and those with 0 in the place of events that are not of a target type; the
    same object where all are."""
    items = Ragged.from_arrow(table["items"])
    if table["is_target"].null_count == len(table):
        return items, items
    told = np.repeat(table["is_target"].is_valid().to_numpy(), items.lengths)
    is_target = np.ones(len(items.values), np.int32)
    is_target[told] = pc.list_flatten(table["is_target"]).to_numpy(zero_copy_only=False)
    return items, Ragged(items.values * is_target, items.offsets)


def targets_per_row(chunks: Ragged, max_length: int | None) -> Ints:
    """How many targets a training batch shows of each row."""
    place_from_end = np.repeat(chunks.offsets[1:], chunks.lengths) - np.arange(len(chunks.values))
    place = np.arange(len(chunks.values)) - np.repeat(chunks.offsets[:-1], chunks.lengths)
    is_target = (chunks.values >= FIRST_INDEX) & (place > 0)
    if max_length is not None:
        is_target &= place_from_end <= max_length
    total = np.concatenate([[0], np.cumsum(is_target)])
    return total[chunks.offsets[1:]] - total[chunks.offsets[:-1]]


def users(table: pa.Table) -> NDArray[np.object_]:
    """The user id of each row."""
    return np.asarray(table["user"].to_pylist(), dtype=object)


def in_own_order(table: pa.Table, keys: list[str], ties: list[NDArray[np.uint64]]) -> pa.Table:
    """Sorted by content, so that how a table is cut into files decides nothing."""
    sortable = table.select(keys)
    for number, tie in enumerate(ties):
        sortable = sortable.append_column(f"tie {number}", pa.array(tie))
    indices = pc.sort_indices(sortable, sort_keys=[(name, "ascending") for name in sortable.column_names])
    return table.take(indices)


def require_rows(rows: int, table: str, version: int, as_of: str, split: str) -> None:
    """TrainingError for a split that has no row."""
    if rows == 0:
        raise TrainingError(
            f"table {table} version {version} has nothing to train on in split {split!r} as of {as_of}: "
            "look at the split's dates, or run the stage that writes it"
        )
