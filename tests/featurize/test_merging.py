"""featurize/merging.py: what is held while histories are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from featurize import merging


def one(items: Sequence[int], user: str = "u") -> pa.Table:
    values = np.array(items, np.int32)
    columns = {"user": [user], "items": values, "ts": values.astype(np.int64), "is_target": None}
    return merging.table_of(columns, np.array([len(items)]))


def test_what_a_cap_of_the_whole_lets_go() -> None:
    tables = [one([1, 2, 3]), one([4, 5]), one([6], "v"), one([7])]
    assert [t["items"].to_pylist() for t in merging.trimmed(tables, 4)] == [[[3]], [[4, 5]], [[6]], [[7]]]
    assert [t["items"].to_pylist() for t in merging.trimmed(tables, 2)] == [[], [[5]], [[6]], [[7]]]
    whole = merging.merged(merging.trimmed(tables, 4), ["items"])
    assert (whole.users.to_pylist(), whole.columns["items"].tolist(), whole.ends.tolist()) == (
        ["u", "v"],
        [3, 4, 5, 7, 6],
        [4, 5],
    )


@pytest.mark.parametrize("start", [0, 2**31 - 2, 2**31 - 1, 2**40])
def test_ranges_on_both_sides_of_32_bits(start: int) -> None:
    found = merging.ranges(np.array([start + 1, start]), np.array([1, 2]))
    assert found.tolist() == [start + 1, start, start + 1]
    assert found.dtype == (np.int32 if start + 2 < 2**31 else np.int64)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.bool_])
def test_gathering_stays_inside_the_values(kind: type) -> None:
    values = np.array([0, 1, 1, 0, 1], kind)
    found = merging.gathered(values, np.array([3, 9, 0]), np.array([2, 0, 3]))
    assert (found.tolist(), found.dtype) == (values[[3, 4, 0, 1, 2]].tolist(), values.dtype)
    for starts, lengths in (([-1], [1]), ([4], [2]), ([5], [1])):
        with pytest.raises(IndexError, match="outside the 5 values"):
            merging.gathered(values, np.array(starts), np.array(lengths))


def test_lists_of_other_lengths_than_their_items_are_refused() -> None:
    table = one([1, 2, 3])
    table = table.set_column(table.schema.get_field_index("ts"), "ts", one([1, 2])["ts"])
    with pytest.raises(IndexError, match="ts: 2 values in lists of 3"):
        merging.merged([table], ["items", "ts"])
