"""featurize/past.py against a plain loop over each user's rows, for every way to cut the stream into batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.past import Past

SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("ts", pa.timestamp("us", tz="UTC")),
        ("label", pa.int8()),
        ("item_index", pa.int32()),
        ("draws", pa.list_(pa.int32())),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user": st.sampled_from(["a", "b", "c"]),
            "ts": st.integers(0, 6),
            "label": st.integers(0, 1),
            "item_index": st.integers(1, 6),
            "draws": st.lists(st.integers(2, 7), max_size=5, unique=True),
        }
    ),
    max_size=25,
)


def by_hand(rows: list[dict[str, Any]], history: int, negatives: int) -> list[tuple[Any, Any, list[int]]]:
    out = []
    for row in rows:
        past = [r for r in rows if r["user"] == row["user"] and r["ts"] < row["ts"] and r["label"] == 1]
        last = past[max(0, len(past) - history) :]
        taboo = {r["item_index"] for r in past} | {row["item_index"]}
        free = [d for d in row["draws"] if d not in taboo][:negatives]
        out.append(([r["item_index"] for r in last] or None, last[-1]["ts"] if last else None, free))
    return out


@settings(deadline=None, max_examples=400)
@given(ROWS, st.lists(st.integers(0, 25), max_size=6), st.integers(0, 3), st.integers(1, 3))
def test_every_row_sees_what_came_strictly_before(
    rows: list[dict[str, Any]], cuts: list[int], history: int, negatives: int
) -> None:
    rows = sorted(rows, key=lambda r: (r["user"], r["ts"]))
    table = pa.Table.from_pylist(rows, schema=SCHEMA).combine_chunks()
    bounds = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    past, found = Past(history, negatives), []
    for start, end in pairwise(bounds):
        batch = pa.RecordBatch.from_arrays(
            [table[n].chunk(0).slice(start, end - start) for n in SCHEMA.names], SCHEMA.names
        )
        out = past.extend(batch)
        assert out.schema.names == ["user", "ts", "label", "item_index", "history", "past_until", "negatives"]
        out.validate(full=True)
        micros = out.column("past_until").cast(pa.int64())
        found += list(
            zip(*(c.to_pylist() for c in (out.column("history"), micros, out.column("negatives"))), strict=True)
        )
        assert len(past.items) <= 2 * history
    assert found == by_hand(rows, history, negatives)


def test_an_empty_batch_passes() -> None:
    past = Past(2, 0)
    out = past.extend(pa.RecordBatch.from_pylist([], schema=SCHEMA))
    assert out.num_rows == 0
    assert past.user is None
