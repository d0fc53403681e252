"""Which bucket a user belongs to: Spark's own hash in numpy, and its parameters as properties of a table.

Spark's `hash` is murmur3 (x86, 32 bit, seed 42) over the UTF-8 bytes, whole little-endian words first, then each
byte left over as a word of its own, signed.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from infra.errors import CommitError, DataRefused
from infra.lake import Lake
from infra.schemas import create
from infra.tables import Table

FUNCTION = "pmod(murmur3_x86_32(utf8(user), 42), buckets)"
"""What `repartition(n, "user")` does in Spark."""

FUNCTION_KEY, COUNT_KEY = "logs2rec.bucketFunction", "logs2rec.buckets"

_C1, _C2 = np.uint32(0xCC9E2D51), np.uint32(0x1B873593)


def bucket_of(users: pa.Array, buckets: int) -> np.ndarray:
    """The bucket of each user id (int64).

    >>> bucket_of(pa.array(["ann", "bob", ""]), 8).tolist()
    [2, 5, 4]
    """
    return np.mod(_hash(users).view(np.int32).astype(np.int64), buckets)


def _hash(users: pa.Array) -> np.ndarray:
    array = pa.concat_arrays([users.cast(pa.large_string())])  # an array of its own: no offset into a longer one
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    starts, lengths = bounds[:-1], np.diff(bounds)
    state = np.full(len(array), 42, np.uint32)
    whole = lengths // 4
    live = np.arange(len(array))
    for word in range(int(whole.max(initial=0))):
        live = live[whole[live] > word]  # long ids are few: each further word costs only those that have it
        at = starts[live] + 4 * word
        value = np.zeros(len(live), np.uint32)
        for byte in range(4):
            value |= content[at + byte].astype(np.uint32) << np.uint32(8 * byte)
        state[live] = _mix(state[live], value)
    for left in range(3):
        live = np.flatnonzero(lengths % 4 > left)
        value = content[starts[live] + 4 * whole[live] + left].view(np.int8).astype(np.int32).view(np.uint32)
        state[live] = _mix(state[live], value)
    return _finish(state ^ lengths.astype(np.uint32))


def _mix(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    mixed = state ^ (_rotate(value * _C1, 15) * _C2)
    return _rotate(mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _rotate(value: np.ndarray, by: int) -> np.ndarray:
    return (value << np.uint32(by)) | (value >> np.uint32(32 - by))


def _finish(state: np.ndarray) -> np.ndarray:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ (state >> np.uint32(shift))) * np.uint32(factor)
    return state ^ (state >> np.uint32(16))


def ensure(lake: Lake, table: Table, buckets: int) -> None:
    """Create the bucketed table, or check that its buckets are those asked for.

    Raises DataRefused when the table was written with another function or count: its files would be read as
    those of other users.
    """
    delta = create(lake, table)
    if COUNT_KEY not in delta.metadata().configuration and not lake.files(table.name, delta.version()):
        properties = {FUNCTION_KEY: FUNCTION, COUNT_KEY: str(buckets)}
        delta.alter.set_table_properties(properties, raise_if_not_exists=False)
    _check(delta, table, buckets)


def check(lake: Lake, table: Table, buckets: int) -> None:
    """Raise DataRefused unless the table's properties are these buckets, CommitError when it has none."""
    _check(lake.open(table.name), table, buckets)


def _check(delta: DeltaTable, table: Table, buckets: int) -> None:
    stored = delta.metadata().configuration
    if FUNCTION_KEY not in stored or COUNT_KEY not in stored:
        raise CommitError(f"table {table.name!r} does not say how it is bucketed; use another workspace")
    if stored[FUNCTION_KEY] != FUNCTION:
        raise DataRefused(
            f"table {table.name!r} is bucketed by {stored[FUNCTION_KEY]}, this version by {FUNCTION}; "
            "use another workspace"
        )
    if stored[COUNT_KEY] != str(buckets):
        raise DataRefused(
            f"table {table.name!r} has {stored[COUNT_KEY]} buckets, sequences.buckets asks for {buckets}; "
            f"set sequences.buckets to {stored[COUNT_KEY]} or use another workspace"
        )
