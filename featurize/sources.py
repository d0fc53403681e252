"""Which raw files there are: their arrival, their version, and how tasks share them out."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from featurize.contract import Contract, Source
from featurize.streams import COMPRESSED, Split, open_stream
from infra.errors import ConfigError, DataRefused
from infra.tables import UNDATED

SPLIT_BYTES = 64 << 20
_DATE = r"\d{4}-\d{2}-\d{2}"


@dataclass(frozen=True)
class RawFile:
    """One raw file; `path` is relative to the data root."""

    path: str
    size: int
    etag: str
    arrival: str


def list_files(root: Path, source: Source) -> list[RawFile]:
    """The source's files, sorted by path; with `{date}` in the path each has its own arrival.

    Raises DataRefused when there is none: an empty directory is never a successful run.
    """
    if not root.is_dir():
        raise ConfigError(f"data: the folder {root} does not exist; point the recipe's `data` at your logs")
    if ".." in Path(source.path).parts or Path(source.path).is_absolute():
        raise ConfigError(f"source.path: {source.path!r} must lie below the recipe's `data` folder")
    dated = "{date}" in source.path
    pattern = source.path.replace("{date}", "*")
    found = sorted({f for match in root.glob(pattern) for f in _below(match)})
    matcher = re.compile(_template_regex(source.path))
    files = []
    for path in found:
        relative = path.relative_to(root).as_posix()
        arrival = UNDATED
        if dated:
            match = matcher.match(relative)
            if match is None:
                continue  # a neighbour whose name holds no date is not part of the log
            arrival = match["date"]
        status = path.stat()
        etag = hashlib.sha256(f"{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:16]
        files.append(RawFile(relative, status.st_size, etag, arrival))
    if not files:
        raise DataRefused(f"{root / source.path}: no file there; check the recipe's `data` and the contract's path")
    return files


def _below(match: Path) -> list[Path]:
    inside = sorted(match.rglob("*")) if match.is_dir() else [match]
    return [p for p in inside if p.is_file() and not p.name.startswith((".", "_"))]


def _template_regex(path: str) -> str:
    pieces = re.split(r"(\{date\}|\*\*/?|\*|\?)", path)
    known = {"{date}": f"(?P<date>{_DATE})", "**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    seen_date = False
    out = []
    for piece in pieces:
        if piece == "{date}" and seen_date:
            out.append("(?P=date)")
        else:
            out.append(known.get(piece, re.escape(piece)))
        seen_date = seen_date or piece == "{date}"
    return "".join(out) + "(?:/.*)?$"


def splits(root: Path, files: Sequence[RawFile], source: Source, needed: Sequence[str]) -> list[Split]:
    """Shares of the files for tasks; the header (csv) or schema (Parquet) must hold the `needed` columns.

    Raises DataRefused naming the file and each missing column.
    """
    out = []
    for file in files:
        location = root / file.path
        if source.format == "parquet":
            out += _parquet_splits(location, file, needed)
            continue
        columns, body = _header(location, source) if source.format == "csv" else ((), 0)
        if source.format == "csv":
            _need(file, columns, needed)
        if file.path.endswith(COMPRESSED):
            bounds = [(body, file.size)]  # a compressed stream cannot be entered in the middle
        else:
            bounds = [(s, min(s + SPLIT_BYTES, file.size)) for s in range(body, max(file.size, body + 1), SPLIT_BYTES)]
        out += [Split(str(location), file.path, file.arrival, s, e, columns) for s, e in bounds]
    return out


def _parquet_splits(location: Path, file: RawFile, needed: Sequence[str]) -> list[Split]:
    try:
        parquet = pq.ParquetFile(location)
    except Exception as error:
        raise DataRefused(f"{file.path}: not a readable Parquet file ({error})") from None
    with parquet:
        names = tuple(parquet.schema_arrow.names)
        groups = parquet.num_row_groups
    _need(file, names, needed)
    return [Split(str(location), file.path, file.arrival, g, g + 1, names) for g in range(groups)]


def _header(location: Path, source: Source) -> tuple[tuple[str, ...], int]:
    """Column names and where the first row starts: a byte offset, or lines to skip in a compressed file."""
    if source.columns is not None:
        return source.columns, 0
    with open_stream(str(location)) as stream:
        line = stream.readline()
    text = line.decode("utf-8", "replace").removeprefix("﻿").rstrip("\r\n")
    columns = tuple(next(csv.reader(io.StringIO(text), delimiter=source.delimiter), []))
    return columns, 1 if location.name.endswith(COMPRESSED) else len(line)


def _need(file: RawFile, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in columns]:
        raise DataRefused(
            f"{file.path}: the column(s) {', '.join(map(repr, missing))} named by the contract are not there; "
            f"it has {', '.join(map(repr, columns))}"
        )


def columns_needed(contract: Contract) -> list[str]:
    """The log's columns that every file must have: ids, time, type, label and event key."""
    wanted = [contract.user, contract.item, contract.time.column, contract.type.column, contract.event_id]
    wanted += [contract.label.column if contract.label else None, *contract.key]
    wanted += [f.raw_column for f in contract.fields_from("log")]
    return list(dict.fromkeys(c for c in wanted if c is not None))
