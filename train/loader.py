"""Training data: one split of a pinned table version, materialised once, in batches by position.

What comes next is a pure function of (seed, epoch, position), so a run resumes at the exact row.
Rows are ragged arrays: row i of a column is values[offsets[i] : offsets[i + 1]].

Shapes: B batch, L padded length, H padded history length, N rows of the split, F categorical fields,
G numeric fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from infra.errors import TrainingError
from infra.lake import Lake
from infra.tables import FIRST_INDEX, Kind, column_of
from train.protocol import FieldSpec, RankingBatch, SequenceBatch

Ints = NDArray[np.int64]
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Ragged:
    """Rows of different length: int32 values and int64 offsets, one more than rows."""

    values: NDArray[np.int32]
    offsets: Ints

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> Ragged:
        """From a list column; a null list is an empty row."""
        lists = pa.concat_arrays([c.cast(pa.large_list(pa.int32())) for c in column.chunks] or [_NO_LISTS])
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @property
    def lengths(self) -> Ints:
        """Length of every row."""
        return np.diff(self.offsets)

    def left_padded(self, rows_B: Ints, longest: int | None = None) -> Ints:
        """The last `longest` values of the rows, zeros in front; at least one column.

        >>> Ragged(np.array([7, 8, 9], np.int32), np.array([0, 1, 3])).left_padded(np.array([0, 1])).tolist()
        [[0, 7], [8, 9]]
        """
        lengths_B = self.lengths[rows_B]
        if longest is not None:
            lengths_B = np.minimum(lengths_B, longest)
        width = max(1, int(lengths_B.max(initial=0)))
        source_BL = self.offsets[rows_B + 1][:, None] - width + np.arange(width)
        real_BL = np.arange(width) >= width - lengths_B[:, None]
        padded_BL = np.zeros((len(rows_B), width), np.int64)
        padded_BL[real_BL] = self.values[source_BL[real_BL]]
        return padded_BL

    def fingerprints(self) -> NDArray[np.uint64]:
        """One number per row that depends on its values and their order."""
        place = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        with np.errstate(over="ignore"):
            mixed = (self.values.astype(np.uint64) + 1) * (place.astype(np.uint64) * _ODD + 1)
            mixed ^= mixed >> np.uint64(29)
            total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * _ODD, dtype=np.uint64)])
            return total[self.offsets[1:]] - total[self.offsets[:-1]]


_NO_LISTS = pa.array([], pa.large_list(pa.int32()))
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class SequenceData:
    """One split of `sequences`. `target_N` is None for training chunks, which are their own targets."""

    items: Ragged
    next_items: Ragged
    """`items`, with 0 in the place of those that are not to be predicted (context events)."""
    target_N: Ints | None
    known_N: NDArray[np.bool_] | None
    """The target's item has an event before the cut; if not it is a miss."""
    user_N: NDArray[np.object_]
    """User id of each row."""
    max_length: int | None = None

    @classmethod
    def from_lake(cls, lake: Lake, version: int, as_of: str, split: str, max_length: int | None = None) -> SequenceData:
        """Read (as_of, split) of `sequences` at `version`; `max_length` caps what a batch shows of a row.

        Training chunks without a single target (fewer than two events, or nothing known to predict) are
        left out. Raises TrainingError when no row is left.
        """
        columns = ["user", "items", "is_target", "target", "target_ts", "target_known"]
        table = lake.read("sequences", version, {"as_of": as_of, "split": split}, columns)
        ties = (Ragged.from_arrow(table["items"]), predicted(table))
        table = _in_own_order(table, ["user", "target_ts"], [tie.fingerprints() for tie in ties])
        items = Ragged.from_arrow(table["items"])
        if split == "train":
            kept = _targets_per_row(predicted(table), max_length) > 0
            table = table.filter(pa.array(kept))
            items = Ragged.from_arrow(table["items"])
            data = cls(items, predicted(table), None, None, _users(table), max_length)
        else:
            known = pc.fill_null(table["target_known"], False).to_numpy()
            target = pc.fill_null(table["target"], 0).to_numpy().astype(np.int64)
            data = cls(items, predicted(table), target, known & (target >= FIRST_INDEX), _users(table), max_length)
        _require_rows(len(data), "sequences", version, as_of, split)
        return data

    def __len__(self) -> int:
        return len(self.items.offsets) - 1

    def batch(self, rows_B: Ints) -> SequenceBatch:
        """The rows, left-padded to the longest of them.

        Training: the targets are the items one position later; none at padding, none that is unknown to the
        vocabulary, and none of a context event. Evaluation: the latest `max_length` events and no targets.
        """
        if self.target_N is not None:
            items_BL = torch.from_numpy(self.items.left_padded(rows_B, self.max_length))
            return SequenceBatch(items_BL, items_BL.new_zeros(len(rows_B), 0))
        longest = None if self.max_length is None else self.max_length + 1
        items_BL = torch.from_numpy(self.items.left_padded(rows_B, longest))[:, :-1]
        next_BL = torch.from_numpy(self.next_items.left_padded(rows_B, longest))[:, 1:]
        is_target_BL = (items_BL != 0) & (next_BL >= FIRST_INDEX)
        return SequenceBatch(items_BL.contiguous(), next_BL * is_target_BL)

    def histories(self, rows_B: Ints) -> Ints:
        """history_BH: what the rows' users have taken so far, left-padded with 0; of context events nothing."""
        return self.next_items.left_padded(rows_B)


@dataclass(frozen=True)
class RankingData:
    """One split of `samples`, with its fields in mask order."""

    fields: tuple[FieldSpec, ...]
    categorical_NF: NDArray[np.int32]
    numeric_NG: NDArray[np.float32]
    multi: tuple[Ragged, ...]
    missing_N: Ints
    """Bit i set: field i is missing."""
    label_N: NDArray[np.float32]
    user_N: NDArray[np.object_]
    """User id of each row."""
    observed_N: NDArray[np.bool_]
    """Whether the label was logged; if not, the row is a sampled negative."""

    @classmethod
    def from_lake(cls, lake: Lake, version: int, fields_version: int, as_of: str, split: str) -> RankingData:
        """Read (as_of, split) of `samples`, described by `fields`, each at its version.

        A null or non-finite value becomes 0 and missing. Raises TrainingError when the split is empty or
        an index lies outside the size that `fields` states.
        """
        specs = read_fields(lake, fields_version, as_of)
        columns = ["event_id", "user", "item", "label", "label_source", "missing", *(column_of(s.name) for s in specs)]
        table = lake.read("samples", version, {"as_of": as_of, "split": split}, columns)
        _require_rows(len(table), "samples", version, as_of, split)
        table = _in_own_order(table, ["event_id", "item", "label"], [])
        missing_N = table["missing"].to_numpy().astype(np.int64)
        categorical: list[NDArray[np.int32]] = []
        numeric: list[NDArray[np.float32]] = []
        multi: list[Ragged] = []
        for bit, spec in enumerate(specs):
            column = table[column_of(spec.name)]
            absent_N = column.is_null().to_numpy()
            if spec.kind is Kind.NUMERIC:
                with np.errstate(over="ignore"):  # beyond float32 is infinite, hence missing
                    value_N = pc.fill_null(column, np.nan).to_numpy().astype(np.float32)
                absent_N = absent_N | ~np.isfinite(value_N)
                numeric.append(np.where(absent_N, np.float32(0), value_N))
            elif spec.kind is Kind.CATEGORICAL:
                categorical.append(pc.fill_null(column, 0).to_numpy().astype(np.int32))
                _require_known(categorical[-1], spec, version)
            else:
                multi.append(Ragged.from_arrow(column))
                _require_known(multi[-1].values, spec, version)
            missing_N = missing_N | (absent_N.astype(np.int64) << bit)
        rows = len(table)
        return cls(
            fields=specs,
            categorical_NF=np.stack(categorical, 1) if categorical else np.zeros((rows, 0), np.int32),
            numeric_NG=np.stack(numeric, 1) if numeric else np.zeros((rows, 0), np.float32),
            multi=tuple(multi),
            missing_N=missing_N,
            label_N=table["label"].to_numpy().astype(np.float32),
            user_N=_users(table),
            observed_N=pc.equal(table["label_source"], "observed").to_numpy(),
        )

    def __len__(self) -> int:
        return len(self.label_N)

    def batch(self, rows_B: Ints) -> RankingBatch:
        """The rows; multi-valued fields are padded to the longest of the batch."""
        bits_N = np.arange(len(self.fields), dtype=np.int64)
        return RankingBatch(
            categorical_BF=torch.from_numpy(self.categorical_NF[rows_B].astype(np.int64)),
            numeric_BG=torch.from_numpy(self.numeric_NG[rows_B]),
            multi=tuple(torch.from_numpy(m.left_padded(rows_B)) for m in self.multi),
            missing_BN=torch.from_numpy((self.missing_N[rows_B, None] >> bits_N & 1).astype(np.bool_)),
            label_B=torch.from_numpy(self.label_N[rows_B]),
        )


class Batched(Protocol[T_co]):
    """What `batches` needs: a number of rows, and any of them as a batch."""

    def __len__(self) -> int: ...

    def batch(self, rows_B: Ints) -> T_co: ...


B = TypeVar("B")


@dataclass(frozen=True)
class Positioned(Generic[B]):
    """A rank's share of global batch `position` of its epoch."""

    position: int
    batch: B


def read_fields(lake: Lake, version: int, as_of: str) -> tuple[FieldSpec, ...]:
    """The field specs of a date, in mask order; TrainingError when there are none."""
    rows = lake.read("fields", version, {"as_of": as_of}).sort_by("position").to_pylist()
    if not rows:
        raise TrainingError(f"table fields version {version} has no fields as of {as_of}: run the samples stage")
    return tuple(FieldSpec(r["name"], Kind(r["kind"]), r["size"], r["mean"], r["std"], r["missing_rate"]) for r in rows)


def steps_per_epoch(rows: int, global_batch: int, world: int) -> int:
    """Global batches of an epoch: the full ones, and the rest if it has a row for every rank.

    >>> steps_per_epoch(10, 4, 2), steps_per_epoch(9, 4, 2), steps_per_epoch(3, 4, 2)
    (3, 2, 1)
    """
    whole, rest = divmod(rows, global_batch)
    return whole + (rest >= world)


def batches(
    data: Batched[B], *, global_batch: int, rank: int, world: int, seed: int, epoch: int, start_step: int = 0
) -> Iterator[Positioned[B]]:
    """A rank's batches of one epoch, from global batch `start_step` on.

    The epoch is one permutation of the rows (Philox keyed by seed and epoch), cut into global batches.
    Rank r of W takes rows floor(r m / W) to floor((r + 1) m / W) of a global batch of m rows, so shares
    differ by at most one row and all ranks make the same steps. Every row is used exactly once per
    epoch, except that a last batch with fewer than W rows is dropped (at most W - 1 rows, others in the
    next epoch; none with one worker).

    Raises TrainingError when the split has fewer rows than ranks.
    """
    steps = steps_per_epoch(len(data), global_batch, world)
    if steps == 0:
        raise TrainingError(f"{len(data)} training rows for {world} workers: lower training.workers to {len(data)}")
    key = np.array([seed, epoch], np.uint64)
    order_N = np.random.Generator(np.random.Philox(key=key)).permutation(len(data))
    for position in range(start_step, steps):
        rows = order_N[position * global_batch : (position + 1) * global_batch]
        share = rows[rank * len(rows) // world : (rank + 1) * len(rows) // world]
        yield Positioned(position, data.batch(share))


def _users(table: pa.Table) -> NDArray[np.object_]:
    return np.asarray(table["user"].to_pylist(), dtype=object)


def predicted(table: pa.Table) -> Ragged:
    """The items of rows of `sequences`, with 0 in the place of those whose event is not of a target type."""
    items = Ragged.from_arrow(table["items"])
    told = np.repeat(table["is_target"].is_valid().to_numpy(), items.lengths)
    is_target = np.ones(len(items.values), np.int32)
    is_target[told] = pc.list_flatten(table["is_target"]).to_numpy(zero_copy_only=False)
    return Ragged(items.values * is_target, items.offsets)


def _targets_per_row(chunks: Ragged, max_length: int | None) -> Ints:
    """How many targets a training batch shows of each row."""
    place_from_end = np.repeat(chunks.offsets[1:], chunks.lengths) - np.arange(len(chunks.values))
    place = np.arange(len(chunks.values)) - np.repeat(chunks.offsets[:-1], chunks.lengths)
    is_target = (chunks.values >= FIRST_INDEX) & (place > 0)
    if max_length is not None:
        is_target &= place_from_end <= max_length
    total = np.concatenate([[0], np.cumsum(is_target)])
    return total[chunks.offsets[1:]] - total[chunks.offsets[:-1]]


def _in_own_order(table: pa.Table, keys: list[str], ties: Sequence[NDArray[np.uint64]]) -> pa.Table:
    """Sorted by content, so that how a table is cut into files decides nothing."""
    sortable = table.select(keys)
    for number, tie in enumerate(ties):
        sortable = sortable.append_column(f"tie {number}", pa.array(tie))
    indices = pc.sort_indices(sortable, sort_keys=[(name, "ascending") for name in sortable.column_names])
    return table.take(indices)


def _require_rows(rows: int, table: str, version: int, as_of: str, split: str) -> None:
    if rows == 0:
        raise TrainingError(
            f"table {table} version {version} has nothing to train on in split {split!r} as of {as_of}: "
            "look at the split's dates, or run the stage that writes it"
        )


def _require_known(values: NDArray[np.int32], spec: FieldSpec, version: int) -> None:
    largest = int(values.max(initial=0))
    if largest >= spec.size:
        raise TrainingError(
            f"table samples version {version}: field {spec.name} has index {largest}, but fields says size "
            f"{spec.size}; the two versions do not belong together"
        )
