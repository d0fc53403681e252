"""Raw bytes to records: lines with their positions, and JSON, csv or Parquet records.

Runs in Spark tasks: standard library and pyarrow only. A row is a physical line: a quoted csv cell cannot hold a
line break. No line is held whole beyond a limit. A JSON object that repeats a key which is read is refused, because
two readers would take two values; of another key the last counts.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurize.reasons import Reason, Refused

COMPRESSED = (".gz", ".zst")
BATCH_ROWS = 8192
MAX_LINE_BYTES = 16 << 20
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a cut or damaged compressed stream raises; a disk that fails raises OSError, and the task is retried."""

_BOM = b"\xef\xbb\xbf"
_SKIPPED = 1 << 16  # bytes at a time of what is not kept


@dataclass(frozen=True)
class Split:
    """A task's share of a file: bytes (plain text), row groups (Parquet) or the whole (compressed).

    A text split owns the lines that START in [start, end).
    """

    location: str
    file: str
    arrival: str
    start: int
    end: int
    columns: tuple[str, ...]


def open_stream(location: str) -> io.BufferedIOBase:
    """The file's bytes, decompressed by its ending (.gz, .zst)."""
    if location.endswith(".gz"):
        return gzip.open(location, "rb")
    if location.endswith(".zst"):
        return io.BufferedReader(_ZstdStream(location), 1 << 16)
    return open(location, "rb")


class _ZstdStream(io.RawIOBase):
    """A `.zst` file's content, frame after frame; a cut or damaged frame raises EOFError.

    Arrow gives nothing of a call in which it meets the end of a cut stream. So the stream starts again there, and goes
    byte by byte: all that precedes a cut is read. Of what precedes other damage up to a megabyte may be lost.
    """

    def __init__(self, location: str) -> None:
        self._location, self._place, self._damaged = location, 0, False
        self._stream = self._opened()

    def _opened(self) -> pa.CompressedInputStream:
        stream = pa.CompressedInputStream(open(self._location, "rb"), "zstd")  # noqa: SIM115  (closed by close)
        for start in range(0, self._place, _SKIPPED):
            stream.read(min(self._place - start, _SKIPPED))
        return stream

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        try:
            count = self._stream.readinto(memoryview(target)[: 1 if self._damaged else len(target)])
        except OSError as error:
            if error.errno is not None:  # the disk's, not the content's
                raise
            if self._damaged:
                raise EOFError(str(error)) from None
            self._damaged = True
            self._stream.close()
            self._stream = self._opened()
            return self.readinto(target)
        self._place += count
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def read_split(
    split: Split, fmt: str, delimiter: str, max_line: int = MAX_LINE_BYTES, read: Collection[str] = ()
) -> Iterator[tuple[int, bytes, dict[str, Any] | Refused]]:
    """(position, raw bytes, record or refusal) of every row that the split owns.

    `max_line` is in bytes without the line's end; `read` are the JSON keys that may not be repeated.
    """
    if fmt == "parquet":
        yield from _parquet_rows(split)
        return
    parse = _json_parser(frozenset(read)) if fmt == "json" else _csv_parser(split.columns, delimiter)
    first = 1 if split.location.endswith(COMPRESSED) else 0
    for position, line in _lines(split, max_line):
        if line is None:
            yield position, b"", Refused(Reason.TRUNCATED, "the compressed stream is cut or damaged")
            continue
        if len(line) > max_line and not line.endswith(b"\n"):
            yield position, line, Refused(Reason.TOO_LONG, f"longer than rules.max_line_bytes {max_line}")
            continue
        body = (line.removeprefix(_BOM) if position == first else line).rstrip(b"\r\n")
        if not body.strip():
            yield position, body, Refused(Reason.EMPTY_LINE, "")
            continue
        try:
            yield position, body, parse(body)
        except Refused as refusal:
            yield position, body, refusal


def _lines(split: Split, most: int) -> Iterator[tuple[int, bytes | None]]:
    """(position, line with its end); one (position, None) at the end of a truncated stream.

    Of a line of more than `most` bytes the first `most` + 1 are given, without an end.
    """
    if split.location.endswith(COMPRESSED):
        yield from _compressed_lines(split, most)
        return
    with open(split.location, "rb") as stream:
        position = split.start
        if position > 0:  # the line that runs across our start belongs to the split before
            stream.seek(position - 1)
            position += _skip_line(stream) - 1
        while position < split.end and (line := stream.readline(most + 1)):
            yield position, line
            position += len(line)
            if len(line) > most and not line.endswith(b"\n"):
                position += _skip_line(stream)


def _compressed_lines(split: Split, most: int) -> Iterator[tuple[int, bytes | None]]:
    number_ = 0
    try:
        with open_stream(split.location) as stream:
            while line := stream.readline(most + 1):
                number_ += 1
                if number_ > split.start:  # header lines
                    yield number_, line
                if len(line) > most and not line.endswith(b"\n"):
                    _skip_line(stream)
    except DAMAGED:
        yield number_ + 1, None


def _skip_line(stream: io.BufferedIOBase) -> int:
    """Read to behind the next line end, holding little; the number of bytes."""
    skipped = 0
    while piece := stream.readline(_SKIPPED):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


class _Repeating(dict[str, Any]):
    """A JSON object some of whose keys are there more than once."""

    repeated: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        record = _Repeating(record)
        record.repeated = frozenset(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return record


def _json_parser(read: frozenset[str]) -> Callable[[bytes], dict[str, Any]]:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode

    def parse(line: bytes) -> dict[str, Any]:
        try:
            record = decode(line.decode())  # from bytes, json would guess UTF-16 where it sees a NUL
        except (ValueError, RecursionError) as error:
            raise Refused(Reason.MALFORMED, f"not JSON: {error}"[:200]) from None
        if isinstance(record, _Repeating) and (twice := sorted(read & record.repeated)):
            raise Refused(Reason.DUPLICATE_KEY, f"the keys {', '.join(twice)} are there more than once")
        if not isinstance(record, dict):
            raise Refused(Reason.MALFORMED, f"a JSON {type(record).__name__}, not an object")
        return record

    return parse


def csv_cells(line: str, delimiter: str) -> list[str]:
    """One line's cells; csv.Error where quotes do not close or have text behind them.

    >>> csv_cells('7,"a, b",', ",")
    ['7', 'a, b', '']
    """
    if '"' not in line:
        return line.split(delimiter)
    csv.field_size_limit(sys.maxsize)  # the process's own setting, 128 KB by default
    return next(csv.reader([line], delimiter=delimiter, strict=True))


def _csv_parser(columns: tuple[str, ...], delimiter: str) -> Callable[[bytes], dict[str, Any]]:
    def parse(line: bytes) -> dict[str, Any]:
        try:
            cells = csv_cells(line.decode(), delimiter)
        except (UnicodeDecodeError, csv.Error) as error:
            raise Refused(Reason.MALFORMED, str(error)[:200]) from None
        if len(cells) != len(columns):
            raise Refused(Reason.MALFORMED, f"{len(cells)} cells where the header has {len(columns)}")
        return dict(zip(columns, cells, strict=True))

    return parse


def damaged(error: Exception) -> bool:
    """Whether pyarrow's error is about the file's content, and not about the disk or who may read it."""
    return isinstance(error, pa.ArrowInvalid) or (isinstance(error, OSError) and error.errno is None)


def _parquet_rows(split: Split) -> Iterator[tuple[int, bytes, dict[str, Any] | Refused]]:
    position = 0
    try:
        with pq.ParquetFile(split.location, coerce_int96_timestamp_unit="us") as parquet:
            position = sum(parquet.metadata.row_group(g).num_rows for g in range(split.start))
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=list(range(split.start, split.end))):
                for record in _records(_in_microseconds(batch)):
                    yield position, b"", record
                    position += 1
    except (OSError, pa.ArrowException) as error:
        if not damaged(error):
            raise
        yield position, b"", Refused(Reason.TRUNCATED, "the Parquet file is cut or damaged")


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Nanosecond times cut to what Python's own times hold; else they could be read beside pandas only."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            cut = batch.column(place).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(place, field.name, cut)
    return batch


def _records(batch: pa.RecordBatch) -> list[dict[str, Any] | Refused]:
    """Rows as Python values; a row that has none (a year 100000, text that is not UTF-8) is refused alone."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [Refused(Reason.MALFORMED, f"a value that Python cannot hold ({type(error).__name__})")]
        return [record for i in range(batch.num_rows) for record in _records(batch.slice(i, 1))]
