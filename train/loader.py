"""Which rows come next: a pure function of (seed, epoch, position), whatever the number of workers.

An epoch of N rows is cut into ceil(N / batch_size) global batches; batch p holds places floor(p N / steps) to
floor((p + 1) N / steps) of the epoch's order, so every row is used exactly once and no batch is a small rest. A run
resumes at any position, also on another number of workers. Each global batch is dealt to ranks and micro-batches
by size, so that all of them carry the same number of tokens within a few per cent, unless a row outweighs a part.

Shapes: N rows of the split, M rows of a global batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.errors import TrainingError
from train.ragged import Ints

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class Rows(Protocol[B_co]):
    """What a loader needs of a split: a number of rows, their sizes, and any of them as a batch."""

    def __len__(self) -> int: ...

    def sizes(self, rows_B: Ints) -> Ints:
        """What each row costs."""
        ...

    def batch(self, rows_B: Ints) -> B_co:
        """The rows as one batch; their order there is the batch's own business."""
        ...


@dataclass(frozen=True)
class Share:
    """The part of a run that one rank loads: `rank` of `world`, in `micro` batches per step."""

    global_batch: int
    seed: int
    rank: int = 0
    world: int = 1
    micro: int = 1
    most: int = 1
    """The largest `world` that the run may grow to; what cannot be shared by so many is refused at the start."""

    @property
    def largest_world(self) -> int:
        """The most ranks that ever share the split."""
        return max(self.world, self.most)


@dataclass(frozen=True)
class Positioned(Generic[B]):
    """A rank's micro-batches of global batch `position` of its epoch."""

    position: int
    batches: list[B]


class Loader(Protocol[B_co]):
    """A split, cut into steps."""

    steps: int

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Positioned[Any]]:
        """This rank's batches of an epoch, from global batch `start` on."""
        ...


class Resident(Generic[B]):
    """A split in memory (or memory-mapped), shuffled as a whole.

    Raises TrainingError when the split has fewer rows than steps times the most ranks that the run may have.
    """

    def __init__(self, data: Rows[B], share: Share) -> None:
        self.data, self.share = data, share
        self.steps = steps_of(len(data), share.global_batch)
        if len(data) < share.largest_world * self.steps:
            raise TrainingError(
                f"{len(data)} training rows in {self.steps} steps for {share.largest_world} workers: lower "
                "training.workers or raise training.batch_size"
            )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Positioned[B]]:
        """This rank's batches; the order of the epoch is one permutation (Philox keyed by seed and epoch)."""
        rows = len(self.data)
        order_N = permutation(rows, self.share.seed, epoch)
        for position in range(start, self.steps):
            chosen_M = order_N[bounds(position, rows, self.steps)].astype(np.int64)
            if self.share.world * self.share.micro == 1:
                yield Positioned(position, [self.data.batch(chosen_M)])
                continue
            part_M = dealt(self.data.sizes(chosen_M), self.share.world, self.share.micro)
            mine = range(self.share.rank, part_M.max() + 1, self.share.world)
            yield Positioned(position, [self.data.batch(chosen_M[part_M == part]) for part in mine])


def steps_of(rows: int, global_batch: int) -> int:
    """Global batches of an epoch, all of about the same size, none above `global_batch` rows.

    Raises TrainingError for a batch larger than the split.

    >>> steps_of(10, 4), steps_of(8, 4)
    (3, 2)
    """
    if global_batch > rows:
        raise TrainingError(f"training.batch_size {global_batch} exceeds the {rows} training rows: lower it to {rows}")
    return -(-rows // global_batch)


def bounds(position: int, rows: int, steps: int) -> slice:
    """The places of the epoch's order that belong to global batch `position`.

    >>> [bounds(p, 10, 3) for p in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    return slice(position * rows // steps, (position + 1) * rows // steps)


def permutation(rows: int, *key: int) -> NDArray[Any]:
    """The numbers below `rows` in an order that is a function of the key (seed, epoch, …) alone."""
    seed = np.random.SeedSequence(key).generate_state(2, np.uint64)
    order = np.arange(rows, dtype=np.uint32 if rows < 2**32 else np.int64)
    np.random.Generator(np.random.Philox(key=seed)).shuffle(order)
    return order


def dealt(sizes_M: Ints, world: int, micro: int = 1) -> Ints:
    """part_M: rows dealt largest first to world * micro parts, each to the lightest; rank = part % world.

    Every part gets a row. The heaviest is heavier than the lightest by no more than its own last row. With fewer rows
    than parts there are fewer micro-batches, as many for every rank.

    >>> dealt(np.array([9, 1, 5, 5, 1, 9]), 2).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    rows = len(sizes_M)
    parts = world * max(1, min(micro, rows // world))
    order_M = np.argsort(-sizes_M, kind="stable")
    sizes = sizes_M[order_M].tolist()
    turns = list(range(min(parts, rows)))  # whatever their size, the first rows go to one part each
    loads = [(sizes[part], part) for part in turns]
    heapify(loads)
    # Vectorised rounds of `parts` rows are faster only for many parts, and leave up to 24 % (64 rows, 4 parts).
    for size in sizes[parts:]:
        load, part = loads[0]
        turns.append(part)
        heapreplace(loads, (load + size, part))
    part_M = np.empty(rows, np.int64)
    part_M[order_M] = turns
    return part_M


def prefetched(source: Iterator[B], depth: int) -> Iterator[B]:
    """The same values, made by a thread that is up to `depth` ahead; its exceptions are raised here."""
    # Simple queues wait in C: a queue.Queue costs half as much here as making a batch.
    ready, room = queue.SimpleQueue[Any](), queue.SimpleQueue[None]()
    left, end = threading.Event(), object()

    def work() -> None:
        try:
            for value in source:
                room.get()
                if left.is_set():
                    return
                ready.put(value)
            ready.put(end)
        except BaseException as error:
            ready.put(error)

    for _ in range(depth):
        room.put(None)
    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not end:
            if isinstance(value, BaseException):
                raise value
            yield value
            room.put(None)
    finally:
        left.set()
        room.put(None)
        thread.join()
