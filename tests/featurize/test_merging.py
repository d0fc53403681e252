"""featurize/merging.py: what is held while histories are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

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
