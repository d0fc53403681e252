"""Side files: one row per user or item with its feature fields, or several that say from when on they hold.

A repeated key (with the same time) keeps its last row. A row that cannot be read refuses the whole file,
and so does a file without rows: side files are reference data that somebody maintains, not a log. They are
read whole, in the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurize.contract import Contract, Side
from featurize.pseudonyms import UserKeys
from featurize.reasons import Refused, why
from featurize.rows import field_plan, reader_of
from featurize.sources import list_files, splits
from featurize.streams import read_split
from featurize.values import microseconds, text
from infra.errors import DataRefused
from infra.tables import Table, column_of, side_features

_YEAR_1, _YEAR_10000 = -62_135_596_800 * 10**6, 253_402_300_800 * 10**6


def side_table(contract: Contract, root: Path, of: str, keys: UserKeys | None = None) -> tuple[Table, pa.Table] | None:
    """The table of `of` ('user' or 'item') and its rows, without the arrival; None if the contract has no such file.

    With `keys` the users' ids become pseudonyms, and no message shows a value of their file.
    """
    side = contract.users if of == "user" else contract.items
    if side is None:
        return None
    fields = contract.fields_from(f"{of}s")
    table = side_features(of, contract.kinds_from(f"{of}s"), timed=side.time is not None)
    since = _valid_from(side)
    readers = [(column_of(n), c, reader_of(k, s)) for n, k, c, s in field_plan(fields)]
    named = [side.key, *([side.time.column] if side.time is not None else [])]
    needed = [*named, *(f.raw_column for f in fields)] if side.format != "json" else named
    read_columns = {*named, *(f.raw_column for f in fields)}
    keys = keys if of == "user" else None
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for split in splits(root, list_files(root, side), side, needed):
        for position, _, record in read_split(
            split, side.format, side.delimiter, contract.rules.max_line_bytes, read_columns
        ):
            where = f"{split.file}, position {position}"
            if isinstance(record, Refused):
                raise DataRefused(f"{where}: {record.reason.value} {record.detail}; mend the side file")
            try:
                key = text(record.get(side.key))
                if key is None:
                    raise ValueError(f"{side.key} is absent, null or empty")
                key = keys.pseudonym(key) if keys is not None else key
                fixed = {"key": key, **since(record)}
                features = {name: read(record.get(column)) for name, column, read in readers}
                rows[key, fixed.get("valid_from", 0)] = {**fixed, **features}
            except ValueError as error:
                words = why(error, personal=keys is not None)
                raise DataRefused(f"{where}: {words}; mend the side file") from None
    if not rows:
        raise DataRefused(f"{side.path}: the side file holds no row; mend it, or leave `{of}s` out of the contract")
    return table, pa.Table.from_pylist([rows[k] for k in sorted(rows)], schema=table.file_schema)


def _valid_from(side: Side) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A reader of the column that says from when on a row holds; nothing where the contract names none."""
    if (time := side.time) is None:
        return lambda record: {}
    read = microseconds(time.unit, time.format)

    def since(record: dict[str, Any]) -> dict[str, Any]:
        value = read(record.get(time.column))
        if value is None:
            raise ValueError(f"{time.column} is absent, null or empty")
        if not _YEAR_1 <= value < _YEAR_10000:
            raise ValueError(f"{time.column} lies outside the years 1 to 9999")
        return {"valid_from": value}

    return since
