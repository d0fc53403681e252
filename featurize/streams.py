"""Raw bytes to records: lines with their positions, and JSON, csv or Parquet records.

Runs in Spark tasks: standard library and pyarrow only (zstandard for `.zst` files).
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from featurize.reasons import Reason, Refused

COMPRESSED = (".gz", ".zst")
BATCH_ROWS = 8192


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
        import gzip

        return gzip.open(location, "rb")
    if location.endswith(".zst"):
        import zstandard

        raw = open(location, "rb")  # noqa: SIM115  (closed by the reader)
        reader = zstandard.ZstdDecompressor().stream_reader(raw, closefd=True, read_across_frames=True)
        return io.BufferedReader(reader)
    return open(location, "rb")


def read_split(split: Split, fmt: str, delimiter: str) -> Iterator[tuple[int, bytes, dict[str, Any] | Refused]]:
    """(position, raw bytes, record or refusal) of every row that the split owns."""
    if fmt == "parquet":
        yield from _parquet_rows(split)
        return
    parse = _json_record if fmt == "json" else _csv_parser(split.columns, delimiter)
    for position, line in _lines(split):
        if line is None:
            yield position, b"", Refused(Reason.TRUNCATED, "the compressed stream ends early")
            continue
        body = line.rstrip(b"\r\n")
        if not body.strip():
            yield position, body, Refused(Reason.EMPTY_LINE, "")
            continue
        try:
            yield position, body, parse(body)
        except Refused as refusal:
            yield position, body, refusal


def _lines(split: Split) -> Iterator[tuple[int, bytes | None]]:
    """(position, line with its end); one (position, None) at the end of a truncated stream."""
    if split.location.endswith(COMPRESSED):
        yield from _compressed_lines(split)
        return
    with open(split.location, "rb") as stream:
        position = split.start
        if position > 0:  # the line that runs across our start belongs to the split before
            stream.seek(position - 1)
            position += len(stream.readline()) - 1
        while position < split.end and (line := stream.readline()):
            yield position, line.removeprefix(b"\xef\xbb\xbf") if position == 0 else line
            position += len(line)


def _compressed_lines(split: Split) -> Iterator[tuple[int, bytes | None]]:
    number_ = 0
    try:
        with open_stream(split.location) as stream:
            for line in stream:
                number_ += 1
                if number_ > split.start:  # header lines
                    yield number_, line.removeprefix(b"\xef\xbb\xbf") if number_ == 1 else line
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        yield number_ + 1, None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        yield number_ + 1, None


def _json_record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not JSON: {error}"[:200]) from None
    if not isinstance(record, dict):
        raise Refused(Reason.MALFORMED, f"a JSON {type(record).__name__}, not an object")
    return record


def _csv_parser(columns: tuple[str, ...], delimiter: str) -> Callable[[bytes], dict[str, Any]]:
    def parse(line: bytes) -> dict[str, Any]:
        try:
            line_text = line.decode("utf-8")
            cells = (
                next(csv.reader([line_text], delimiter=delimiter)) if '"' in line_text else line_text.split(delimiter)
            )
        except (UnicodeDecodeError, csv.Error) as error:
            raise Refused(Reason.MALFORMED, str(error)[:200]) from None
        if len(cells) != len(columns):
            raise Refused(Reason.MALFORMED, f"{len(cells)} cells where the header has {len(columns)}")
        return dict(zip(columns, cells, strict=True))

    return parse


def _parquet_rows(split: Split) -> Iterator[tuple[int, bytes, dict[str, Any] | Refused]]:
    with pq.ParquetFile(split.location) as parquet:
        position = sum(parquet.metadata.row_group(g).num_rows for g in range(split.start))
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=list(range(split.start, split.end))):
            for record in batch.to_pylist():
                yield position, b"", record
                position += 1
