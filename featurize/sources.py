"""Which raw files there are: their arrival, their version, and how tasks share them out."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from featurize.contract import Contract, Source
from featurize.streams import COMPRESSED, DAMAGED, MAX_LINE_BYTES, Split, csv_cells, damaged, open_stream
from infra.errors import ConfigError, DataRefused
from infra.tables import UNDATED

SPLIT_BYTES = 64 << 20
_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"


@dataclass(frozen=True)
class RawFile:
    """One raw file; `path` is relative to the data root."""

    path: str
    size: int
    etag: str
    arrival: str


def list_files(root: Path, source: Source) -> list[RawFile]:
    """The source's files, sorted by path; with `{date}` in the path each has its own arrival.

    What a name that starts with `.` or `_` hides is left out, unless the path itself spells that name.
    Raises DataRefused when there is no file (an empty directory is never a successful run), and for a file or
    folder that is there but cannot be read, which would otherwise be rows lost without a word.
    """
    if not root.is_dir():
        raise ConfigError(f"data: the folder {root} does not exist; point the recipe's `data` at your logs")
    template = PurePosixPath(source.path)
    if ".." in template.parts or template.is_absolute():
        raise ConfigError(f"source.path: {source.path!r} must lie below the recipe's `data` folder")
    dated = re.compile(_template_regex(str(template))) if "{date}" in source.path else None
    files = []
    for path in _matches(root, template):
        relative = path.relative_to(root).as_posix()
        arrival = UNDATED
        if dated is not None:
            match = dated.fullmatch(relative)
            if match is None:
                continue  # a neighbour whose name holds no date is not part of the log
            arrival = _checked_date(match["date"], relative)
        files.append(_raw_file(path, relative, arrival))
    if not files:
        raise DataRefused(f"{root / source.path}: no file there; check the recipe's `data` and the contract's path")
    return files


def _raw_file(path: Path, relative: str, arrival: str) -> RawFile:
    try:
        status = path.stat()
    except OSError as error:  # it vanished, it is a link to nothing, its folder is closed to us
        link = " (a symbolic link to nothing)" if path.is_symlink() else ""
        raise DataRefused(f"{relative}: {error.strerror}{link}; restore the file or move it away") from None
    if not os.access(path, os.R_OK):
        raise DataRefused(f"{relative}: no permission to read it; grant it or move the file away")
    etag = hashlib.sha256(f"{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:16]
    return RawFile(relative, status.st_size, etag, arrival)


def refuse_changed(root: Path, files: Sequence[RawFile]) -> None:
    """Raise DataRefused when a file is no longer as it was listed: what was read of it is neither old nor new."""
    for file in files:
        if _raw_file(root / file.path, file.path, file.arrival) != file:
            raise DataRefused(f"{file.path}: it changed while it was read; nothing was published, run it again")


def _matches(root: Path, template: PurePosixPath) -> list[Path]:
    """The files that the template names and all files below the folders that it names."""
    pattern = str(template).replace("{date}", "*")
    try:
        matches = [root] if pattern == "." else list(root.glob(pattern))
    except ValueError as error:
        raise ConfigError(f"source.path: {str(template)!r} is not a usable pattern ({error})") from None
    inside = {p for m in matches for p in (_below(m) if m.is_dir() else [m]) if p.is_file() or _dangling(p)}
    return sorted(p for p in inside if not _hidden(p.relative_to(root).parts, template.parts))


def _below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise DataRefused(f"{error.filename}: {error.strerror}; grant access to the folder or move it away") from None

    found: list[Path] = []
    visited: set[str] = set()
    for top, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(top)) in visited:  # a link back up, or a second one to the same folder
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        found += (Path(top, name) for name in names)
    return found


def _dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _hidden(parts: Sequence[str], spelt: Sequence[str]) -> bool:
    """Whether a part is a temporary or marker name, as Spark's `_temporary` and `_SUCCESS`."""
    return any(part.startswith((".", "_")) and part not in spelt for part in parts)


def _checked_date(text: str, path: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise DataRefused(f"{path}: {text} is no day of the calendar; rename it or move it away") from None
    return text


def _template_regex(path: str) -> str:
    pieces = re.split(r"(\{date\}|\*\*/?|\*|\?|\[!?[^]]+\])", path)
    known = {"{date}": f"(?P<date>{_DATE})", "**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    seen_date = False
    out = []
    for piece in pieces:
        if piece == "{date}" and seen_date:
            out.append("(?P=date)")
        elif piece.startswith("[") and piece.endswith("]"):
            out.append(piece.replace("[!", "[^", 1))
        else:
            out.append(known.get(piece, re.escape(piece)))
        seen_date = seen_date or piece == "{date}"
    return "".join(out) + "(?:/.*)?"


def splits(root: Path, files: Sequence[RawFile], source: Source, needed: Sequence[str]) -> list[Split]:
    """Shares of the files for tasks; the header (csv) or schema (Parquet) must hold the `needed` columns.

    A file of no bytes has no rows, whatever its format. Raises DataRefused naming the file and each
    missing column.
    """
    out = []
    for file in files:
        location = root / file.path
        columns: tuple[str, ...] = ()
        body = 0
        if source.format == "parquet":
            out += _parquet_splits(location, file, needed)
            continue
        if source.format == "csv" and (header := _header(location, file, source)) is not None:
            columns, body = header
            _need(file, columns, needed)
        if file.path.endswith(COMPRESSED):
            bounds = [(body, file.size)]  # a compressed stream cannot be entered in the middle
        else:
            bounds = [(s, min(s + SPLIT_BYTES, file.size)) for s in range(body, max(file.size, body + 1), SPLIT_BYTES)]
        out += [Split(str(location), file.path, file.arrival, s, e, columns) for s, e in bounds]
    return out


def _parquet_splits(location: Path, file: RawFile, needed: Sequence[str]) -> list[Split]:
    if file.size == 0:
        return []
    try:
        parquet = pq.ParquetFile(location)
    except (OSError, pa.ArrowException) as error:
        if damaged(error) and _starts_as_parquet(location):  # its task reports the one row that stands for the file
            return [Split(str(location), file.path, file.arrival, 0, 0, ())]
        raise DataRefused(f"{file.path}: not a readable Parquet file ({error})") from None
    with parquet:
        names = tuple(parquet.schema_arrow.names)
        groups = parquet.num_row_groups
    _need(file, names, needed)
    return [Split(str(location), file.path, file.arrival, g, g + 1, names) for g in range(groups)]


def _starts_as_parquet(location: Path) -> bool:
    with open(location, "rb") as file:
        return b"PAR1".startswith(file.read(4))


def _header(location: Path, file: RawFile, source: Source) -> tuple[tuple[str, ...], int] | None:
    """Column names and where the first row starts: a byte offset, or lines to skip in a compressed file.

    None when there is no first line to read: nothing is in the file, or its stream is cut before (which
    the task that reads it reports).
    """
    if source.columns is not None:
        return source.columns, 0
    try:
        with open_stream(str(location)) as stream:
            line = stream.readline(MAX_LINE_BYTES)
    except DAMAGED:
        return None
    except OSError as error:
        raise DataRefused(f"{file.path}: {error.strerror}; restore the file or move it away") from None
    if not line:
        return None
    try:
        columns = csv_cells(line.decode("utf-8-sig").rstrip("\r\n"), source.delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataRefused(f"{file.path}: its first line is no csv header ({error})") from None
    return tuple(columns), 1 if location.name.endswith(COMPRESSED) else len(line)


def _need(file: RawFile, columns: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [c for c in needed if c not in columns]:
        raise DataRefused(
            f"{file.path}: the column(s) {', '.join(map(repr, missing))} named by the contract are not there; "
            f"it has {', '.join(map(repr, columns))}"
        )
    if twice := [c for c in needed if columns.count(c) > 1]:
        raise DataRefused(f"{file.path}: the column(s) {', '.join(map(repr, twice))} are there more than once")


def columns_needed(contract: Contract) -> list[str]:
    """The log's columns that every file must have: ids, time, type, label and event key."""
    wanted = [contract.user, contract.item, contract.time.column, contract.type.column, contract.event_id]
    wanted += [contract.label.column if contract.label else None, *contract.key]
    wanted += [f.raw_column for f in contract.fields_from("log")]
    return list(dict.fromkeys(c for c in wanted if c is not None))
