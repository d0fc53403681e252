"""Side files: one row per user or item with its feature fields.

A repeated key keeps its last row. A row that cannot be read refuses the whole file, and so does a file
without rows: side files are reference data that somebody maintains, not a log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from featurize.contract import Contract
from featurize.reasons import Refused
from featurize.rows import field_plan, reader_of
from featurize.sources import list_files, splits
from featurize.streams import read_split
from featurize.values import text
from infra.errors import DataRefused
from infra.tables import Table, column_of, side_features


def side_table(contract: Contract, root: Path, of: str) -> tuple[Table, pa.Table] | None:
    """The table of `of` ('user' or 'item') and its rows, without the arrival; None if the contract has no such file."""
    side = contract.users if of == "user" else contract.items
    if side is None:
        return None
    fields = contract.fields_from(f"{of}s")
    table = side_features(of, contract.kinds_from(f"{of}s"))
    readers = [(column_of(n), c, reader_of(k, s)) for n, k, c, s in field_plan(fields)]
    needed = [side.key, *(f.raw_column for f in fields)] if side.format != "json" else [side.key]
    rows: dict[str, dict[str, Any]] = {}
    for split in splits(root, list_files(root, side), side, needed):
        for position, _, record in read_split(split, side.format, side.delimiter):
            where = f"{split.file}, position {position}"
            if isinstance(record, Refused):
                raise DataRefused(f"{where}: {record.reason.value} {record.detail}; mend the side file")
            try:
                key = text(record.get(side.key))
                if key is None:
                    raise ValueError(f"{side.key} is absent, null or empty")
                rows[key] = {"key": key, **{name: read(record.get(column)) for name, column, read in readers}}
            except ValueError as error:
                raise DataRefused(f"{where}: {error}; mend the side file") from None
    if not rows:
        raise DataRefused(f"{side.path}: the side file holds no row; mend it, or leave `{of}s` out of the contract")
    return table, pa.Table.from_pylist([rows[k] for k in sorted(rows)], schema=table.file_schema)
