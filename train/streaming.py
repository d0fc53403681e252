"""A split too large for a node: row groups in a shuffled order, rows shuffled within a window of them.

The epoch's units (file, row group) are permuted and dealt to a fixed number of streams. A rank
owns the streams s with s % world == rank, so the streams, and with them every global batch, are the same on any
number of workers. Step p takes rows floor(p n / steps) to floor((p + 1) n / steps) of a stream of n rows: every row
group is read exactly once per epoch, by one rank, and all ranks make the same steps.

Tokens are dealt evenly to a rank's own micro-batches, not between ranks: each takes what its streams hold, so ranks are
balanced on average over steps, and only as evenly as the row groups are.

Shapes: N rows of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import DataRefused, TrainingError
from infra.lake import brief
from train.loader import Positioned, Rows, Share, bounds, dealt, permutation, steps_of

B = TypeVar("B")


@dataclass(frozen=True)
class Unit:
    """A row group of a file."""

    path: str
    group: int
    rows: int
    bytes: int
    """Of the columns that are read, uncompressed: about what they take in memory."""


@dataclass(frozen=True)
class Window:
    """Units that are in memory together, and the stream's rows that lie in front of them."""

    number: int
    before: int
    units: tuple[Unit, ...]

    @property
    def rows(self) -> int:
        """Rows of all its units."""
        return sum(unit.rows for unit in self.units)


class Streamed(Generic[B]):
    """A split read from its files while it is trained on; `make` turns rows of the table into a batch source.

    Raises TrainingError when there are fewer row groups than streams, or fewer streams than the run may have ranks.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        columns: Sequence[str],
        make: Callable[[pa.Table], Rows[B]],
        share: Share,
        streams: int,
        window: int,
    ) -> None:
        self.units, self.columns, self.make = tuple(units), list(columns), make
        self.share, self.streams, self.window = share, streams, window
        rows = sum(unit.rows for unit in units)
        self.steps = steps_of(rows, share.global_batch)
        if len(units) < streams:
            raise TrainingError(
                f"{len(units)} row groups for {streams} streams: lower training.streams, set training.loader to "
                "resident, or write the table with smaller row groups"
            )
        if streams < share.largest_world:
            raise TrainingError(
                f"{streams} streams for {share.largest_world} workers: raise training.streams or lower training.workers"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Positioned[B]]:
        """This rank's batches of an epoch, from global batch `start` on."""
        share = self.share
        streams = self._streams(epoch)
        mine = [self._slices(s, streams[s], epoch, start) for s in range(share.rank, self.streams, share.world)]
        for position in range(start, self.steps):
            rows = self.make(pa.concat_tables(next(stream) for stream in mine))
            everything = np.arange(len(rows))
            # Where rows are few some are empty: every rank makes as many, for sharded tables are looked up together.
            part = dealt(rows.sizes(everything), 1, share.micro) if share.micro > 1 else np.zeros_like(everything)
            batches = [rows.batch(np.flatnonzero(part == number)) for number in range(share.micro)]
            yield Positioned(position, batches)

    def parts(self) -> Iterator[Rows[B]]:
        """This rank's share of the split, a row group at a time, as it lies there: for counting, not for training."""
        return self._made(self.units[self.share.rank :: self.share.world])

    def is_empty(self) -> bool:
        """Whether `make` leaves not one row of the split. The same on every rank: each reads row groups, from the first
        on, until one has rows, which is hardly ever more than one."""
        return not any(len(rows) for rows in self._made(self.units))

    def _made(self, units: Sequence[Unit]) -> Iterator[Rows[B]]:
        for unit in units:
            with _readable(unit.path):
                table = pq.ParquetFile(unit.path).read_row_group(unit.group, self.columns)
            yield self.make(table)

    def _streams(self, epoch: int) -> list[list[Window]]:
        """Each stream's windows: units in the epoch's order, each to the stream that has fewest rows."""
        dealt_units: list[list[Unit]] = [[] for _ in range(self.streams)]
        rows = [0] * self.streams
        for number in permutation(len(self.units), self.share.seed, epoch):
            least = rows.index(min(rows))
            dealt_units[least].append(self.units[number])
            rows[least] += self.units[number].rows
        return [_windows(units, self.window) for units in dealt_units]

    def _slices(self, stream: int, windows: list[Window], epoch: int, start: int) -> Iterator[pa.Table]:
        """The stream's rows of each step from `start` on; windows before them are not read."""
        total = windows[-1].before + windows[-1].rows
        held: tuple[int, pa.Table] | None = None
        ahead = iter([w for w in windows if w.before + w.rows > bounds(start, total, self.steps).start])
        for position in range(start, self.steps):
            wanted, parts = bounds(position, total, self.steps), []
            while True:
                if held is not None:
                    before, table = held
                    first, last = max(wanted.start - before, 0), min(wanted.stop - before, len(table))
                    parts.append(table.slice(first, max(0, last - first)))
                    if wanted.stop <= before + len(table):
                        break
                following = next(ahead, None)
                if following is None:
                    break
                held = following.before, self._read(following, self.share.seed, epoch, stream, following.number)
            yield pa.concat_tables(parts)

    def _read(self, window: Window, *key: int) -> pa.Table:
        tables = []
        for path in dict.fromkeys(unit.path for unit in window.units):
            groups = [unit.group for unit in window.units if unit.path == path]
            with _readable(path):
                tables.append(pq.ParquetFile(path).read_row_groups(groups, self.columns))
        table = pa.concat_tables(tables)
        return table.take(pa.array(permutation(len(table), *key)))


def units_of(files: Sequence[str], columns: Sequence[str]) -> list[Unit]:
    """The row groups of a pinned version's files that have rows, from their footers."""
    units = []
    for path in files:
        with _readable(path):
            metadata = pq.read_metadata(path)
        for g in range(metadata.num_row_groups):
            group = metadata.row_group(g)
            chunks = [group.column(c) for c in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
            units.append(Unit(path, g, group.num_rows, size))
    return [unit for unit in units if unit.rows]


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(f"{path} cannot be read ({brief(error)}): vacuumed or damaged; run its stage again") from None


def _windows(units: Sequence[Unit], size: int) -> list[Window]:
    """Consecutive units, each window with at least `size` rows, or what is left."""
    windows: list[Window] = []
    before, taken = 0, list[Unit]()
    for unit in units:
        taken.append(unit)
        if sum(u.rows for u in taken) >= size:
            windows.append(Window(len(windows), before, tuple(taken)))
            before += windows[-1].rows
            taken = []
    return [*windows, Window(len(windows), before, tuple(taken))] if taken else windows
