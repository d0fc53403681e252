"""Small pinned tables as the stages leave them, for whatever trains on them."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from infra.lake import Lake
from infra.tables import FIELDS, SEQUENCES, Kind, samples

AS_OF = "2024-03-02"
TS = datetime(2024, 3, 1, tzinfo=UTC)


def write_sequences(
    root: Path,
    train: list[list[int]],
    valid: list[tuple[list[int], int, bool]],
    is_target: dict[int, list[bool]] | None = None,
) -> Lake:
    """A `sequences` table whose users are numbered in the order given; `is_target` of some of the training rows."""
    marks = is_target or {}
    rows = [
        {"as_of": AS_OF, "split": "train", "user": f"u{i:04d}", "items": items, "is_target": marks.get(i)}
        for i, items in enumerate(train)
    ]
    rows += [
        {
            "as_of": AS_OF, "split": "valid", "user": f"u{i:04d}", "items": items,
            "target": target, "target_ts": TS, "target_known": known,
        }
        for i, (items, target, known) in enumerate(valid)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, SEQUENCES.schema)
    write_deltalake(root / "sequences", table, partition_by=["as_of", "split"], mode="overwrite")
    return Lake(root)


CONTRACT = [("colour", Kind.CATEGORICAL), ("price", Kind.NUMERIC), ("tags", Kind.MULTI), ("shop", Kind.CATEGORICAL)]


def write_samples(root: Path, rows: list[dict], sizes: tuple[int, int, int, int] = (6, 0, 9, 4)) -> Lake:
    """`samples` and `fields` as of AS_OF; a row gives the feature columns, label, missing and maybe split."""
    common = {"as_of": AS_OF, "split": "train", "user": "u", "item": 2, "ts": TS, "label_source": "observed"}
    full = [{**common, "event_id": f"e{i:04d}", **row} for i, row in enumerate(rows)]
    table = samples(CONTRACT)
    write_deltalake(root / "samples", pa.Table.from_pylist(full, table.schema), partition_by=["as_of", "split"])
    specs = [
        {
            "as_of": AS_OF, "position": i, "name": n, "kind": str(k), "size": size,
            "mean": 0.5, "std": 2.0, "missing_rate": 0.1,
        }
        for i, ((n, k), size) in enumerate(zip(CONTRACT, sizes, strict=True))
    ]  # fmt: skip
    shuffled = [specs[i] for i in (2, 0, 3, 1)]
    write_deltalake(root / "fields", pa.Table.from_pylist(shuffled, FIELDS.schema), partition_by=["as_of"])
    return Lake(root)
