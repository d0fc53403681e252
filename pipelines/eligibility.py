"""The file of what may be recommended: its items, as ids of the log."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from infra.errors import DataRefused
from infra.lake import brief

COLUMN = "item"


def eligible_items(path: Path) -> pa.Array:
    """The distinct items of a Parquet file, or of a CSV file with a header, sorted.

    DataRefused for a file that is not there or cannot be read, without one column `item` of text, or without an item:
    nobody would get anything.
    """
    try:
        parquet = path.suffix == ".parquet"
        names = pq.read_schema(path).names if parquet else _header(path)
        if names.count(COLUMN) != 1:
            has = ", ".join(names)
            raise DataRefused(f"scoring.eligible: {path}: needs one column {COLUMN!r}; it has {has or 'none'}")
        items = pq.ParquetFile(path).read([COLUMN])[COLUMN] if parquet else _column(path)
        if not (pa.types.is_string(items.type) or pa.types.is_large_string(items.type)):
            raise DataRefused(
                f"scoring.eligible: {path}: {COLUMN} holds {items.type}; write the ids as text, as the log has them"
            )
        items = items.cast(pa.string())
        items.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise DataRefused(f"scoring.eligible: {path}: cannot be read ({brief(error)}); mend the file") from None
    found: pa.Array = items.drop_null().unique().sort()
    if not len(found):
        raise DataRefused(f"scoring.eligible: {path}: has no item; leave the setting out to allow every item")
    return found


def _header(path: Path) -> list[str]:
    with pcsv.open_csv(path) as reader:
        names: list[str] = reader.schema.names
    return names


def _column(path: Path) -> pa.ChunkedArray:
    """As text: 007 and 7 are two items."""
    options = pcsv.ConvertOptions(
        column_types={COLUMN: pa.string()}, include_columns=[COLUMN], null_values=[""], strings_can_be_null=True
    )
    return pcsv.read_csv(path, convert_options=options)[COLUMN]
