"""The corpus of bad inputs: named tiny files, and the class in which each of their rows must land.

A class is `event`, `duplicate` or a reason of quarantine. Everything is written out here by hand; where the
number of rows before damage matters, zlib and pyarrow say how many there are.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ARRIVAL = "2024-01-02"
NOON = 1704196800  # of that day, UTC
DAY = 86400
MAX_LINE = 1 << 20

_FIELDS = [
    {"name": "price", "kind": "numeric", "column": "p"},
    {"name": "device", "kind": "categorical", "column": "d"},
    {"name": "tags", "kind": "multi", "column": "m"},
]
_BASE: dict[str, Any] = {
    "name": "bad",
    "personal": False,
    "user": "u",
    "item": "i",
    "type": {"column": "e"},
    "event_id": "id",
    "label": {"column": "r", "at_least": 3},
    "fields": _FIELDS,
    "rules": {"max_bad_share": 1, "window_days": 3, "max_line_bytes": MAX_LINE},
}


def _contract(fmt: str, time: Mapping[str, str]) -> dict[str, Any]:
    return {**_BASE, "source": {"path": "log/{date}", "format": fmt}, "time": {"column": "t", **time}}


CONTRACTS: dict[str, dict[str, Any]] = {
    "json": _contract("json", {"unit": "auto"}),
    "iso": _contract("json", {"unit": "iso"}),
    "csv": _contract("csv", {"unit": "s"}),
    "parquet": _contract("parquet", {"unit": "s"}),
}
"""Group of cases -> the contract under which they are ingested together."""


@dataclass(frozen=True)
class Case:
    """One file, and what becomes of its rows in order; `users` are those of its events, in order."""

    group: str
    name: str
    content: bytes
    want: tuple[str, ...]
    users: tuple[str, ...] | None = None
    suffix: str = ""

    @property
    def file(self) -> str:
        """Its name in the arrival's folder."""
        return f"{self.name}{self.suffix}"


def _row(name: str, n: int, **over: Any) -> dict[str, Any]:
    good = {"u": "ann", "i": "x", "t": NOON, "e": "click", "r": 5, "p": 1.5, "d": "phone", "m": ["a"]}
    row = {**good, "id": f"{name}-{n}", **over}
    return {k: v for k, v in row.items() if v is not ...}


def _lines(name: str, rows: tuple[Any, ...]) -> bytes:
    """A dict changes the good row (`...` leaves a column out), text and bytes stand as they are; @ is the name."""
    out = []
    for n, row in enumerate(rows):
        line = json.dumps(_row(name, n, **row)).encode() if isinstance(row, dict) else row
        line = line.encode() if isinstance(line, str) else line
        out.append(line.replace(b"@", name.encode()))
    return b"".join(line + b"\n" for line in out)


def _json(name: str, rows: tuple[Any, ...], want: str, users: tuple[str, ...] | None = None) -> Case:
    return Case("json", name, _lines(name, rows), tuple(want.split()), users)


def _good(name: str, n: int = 3) -> bytes:
    return _lines(name, ({},) * n)


_LONE = "\\ud800"  # as JSON can write it
_GOOD_TEXT = json.dumps(_row("@", 0))
_AT_LIMIT = _GOOD_TEXT.replace("@", "at-the-limit").ljust(MAX_LINE)

_JSON = [
    # lines
    _json("plain", ({},), "event"),
    _json("crlf", (_GOOD_TEXT + "\r", "\r"), "event empty_line"),
    Case("json", "no-final-newline", _good("no-final-newline", 2)[:-1], ("event",) * 2),
    Case("json", "bom-at-the-start", b"\xef\xbb\xbf" + _good("bom-at-the-start", 1), ("event",)),
    _json("bom-inside", ({}, b"\xef\xbb\xbf" + _GOOD_TEXT.encode()), "event malformed"),
    Case("json", "utf-16", "\ufeff{}\n{}\n".encode("utf-16-le"), ("malformed",) * 3),
    Case("json", "empty-file", b"", ()),
    Case("json", "only-a-newline", b"\n", ("empty_line",)),
    _json("blank-line", ("  \t ",), "empty_line"),
    _json("half-an-object", ('{"u": "ann", "i"',), "malformed"),
    _json("two-objects", (_GOOD_TEXT + _GOOD_TEXT,), "malformed"),
    _json("an-array", ("[1]",), "malformed"),
    _json("a-scalar", ("7", "null", '"text"'), "malformed malformed malformed"),
    _json("not-utf8", (b'{"u": "\xff"}',), "malformed"),
    _json("nul-line", (b"\x00" * 64, {}), "malformed event"),
    _json("deep", (b'{"u": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}), "malformed event"),
    _json("deep-objects", (b'{"x":' * 100_000 + b"1" + b"}" * 100_000, {}), "malformed event"),
    _json("deep-where-nobody-reads", ({"other": [[[[[[["deep"]]]]]]]},), "event"),
    _json("too-long", ({"note": "x" * MAX_LINE}, {}, b"y" * (2 * MAX_LINE)), "too_long event too_long"),
    _json("at-the-limit", (_AT_LIMIT, _AT_LIMIT + " "), "event too_long"),
    _json("repeated-key", (_GOOD_TEXT[:-1] + ', "u": "eve"}', {}), "duplicate_key event"),
    _json("repeated-key-same-value", (_GOOD_TEXT[:-1] + ', "u": "ann"}',), "duplicate_key"),
    _json("repeated-key-escaped", (_GOOD_TEXT[:-1] + ', "\\u0075": "eve"}',), "duplicate_key"),
    _json("repeated-key-nobody-reads", (_GOOD_TEXT[:-1] + ', "z": 1, "z": 2}',), "event"),
    _json("repeated-key-nested", (_GOOD_TEXT[:-1] + ', "z": {"u": 1, "u": 2}}',), "event"),
    # ids
    _json("null-user", ({"u": None}, {"u": ""}, {"u": ...}), "null_user null_user null_user"),
    _json("renamed-column", ({"u": ..., "user": "ann"},), "null_user"),
    _json("extra-column", ({"colour": "red", "more": {"a": [1]}},), "event"),
    _json("user-is-a-list", ({"u": ["ann"]}, {"u": {"id": "ann"}}), "bad_id bad_id"),
    _json("user-is-nan", ('{"u": NaN, "i": "x"}', '{"u": -Infinity, "i": "x"}'), "null_user null_user"),
    _json("user-is-1e400", ('{"u": 1e400, "i": "x"}',), "null_user"),
    _json("lone-surrogate", (_GOOD_TEXT.replace("ann", _LONE),), "bad_id"),
    _json("id-of-4-kb", ({"u": "\u00e9" * 2048},), "event", ("\u00e9" * 2048,)),
    _json("id-of-64-kib", ({"u": "y" * 65536}, {"u": "y" * 65537}), "event bad_id", ("y" * 65536,)),
    _json("id-of-64-kib-in-bytes", ({"i": "\u00e9" * 32769},), "bad_id"),
    _json("nfc-and-nfd", ({"u": "\u00e9"}, {"u": "e\u0301"}), "event event", ("\u00e9", "e\u0301")),
    _json("negative-id", ({"u": -7},), "event", ("-7",)),
    _json("64-bit-id", ({"u": 2**63 - 1}, {"u": -(2**63)}), "event event", (str(2**63 - 1), str(-(2**63)))),
    _json("beyond-64-bit", ({"u": 2**64 + 1},), "event", ("18446744073709551617",)),
    _json("5000-digits", ('{"u": ' + "9" * 5000 + "}",), "malformed"),
    _json("leading-zeros", ({"u": "007"}, {"u": "7"}), "event event", ("007", "7")),
    _json("number-or-text", ({"u": 1}, {"u": "1"}, {"u": 1.0}), "event event event", ("1", "1", "1")),
    _json("true-as-id", ({"u": True},), "event", ("true",)),
    _json("blank-id", ({"u": "  "},), "event", ("  ",)),
    _json("nul-in-id", ({"u": "a\x00b"},), "event", ("a\x00b",)),
    _json("null-item", ({"i": None}, {"i": ["x"]}), "null_item bad_id"),
    _json("null-type", ({"e": ...}, {"e": []}), "null_type bad_id"),
    _json("null-event-id", ({"id": None}, {"id": {"a": 1}}), "null_event_id bad_id"),
    # times
    _json("four-units-in-one-file", tuple({"t": NOON * 1000**k} for k in range(4)), "event event event event"),
    _json("seconds-with-fractions", ({"t": NOON + 0.25}, {"t": f"{NOON}.5"}), "event event"),
    _json("between-the-units", ({"t": 10**10}, {"t": 10**19}, {"t": 10**300}), "bad_time bad_time bad_time"),
    _json("zero-and-negative", ({"t": 0}, {"t": -NOON}), "bad_time bad_time"),
    _json("time-is-1e400", ({"t": float("inf")}, {"t": float("nan")}), "bad_time bad_time"),
    _json("time-is-no-number", ({"t": True}, {"t": "noon"}, {"t": None}, {"t": [1]}), "bad_time " * 4),
    _json("years-outside-bounds", ({"t": 500_000_000}, {"t": 5_000_000_000}), "time_out_of_bounds " * 2),
    _json("clock-a-day-ahead", ({"t": NOON + DAY},), "event"),
    _json("clock-two-days-ahead", ({"t": NOON + 2 * DAY},), "from_the_future"),
    _json("three-days-late", ({"t": NOON - 3 * DAY},), "event"),
    _json("four-days-late", ({"t": NOON - 4 * DAY},), "too_late"),
    # labels and fields
    _json("type-drift", ({"u": 1}, {"u": "one"}, {"u": [1]}), "event event bad_id", ("1", "one")),
    _json("label-is-text", ({"r": "good"}, {"r": ...}, {"r": {}}), "bad_label " * 3),
    _json("price-is-text", ({"p": "cheap"}, {"p": [1]}), "bad_field bad_field"),
    _json("price-is-not-finite", ({"p": float("nan")}, {"p": float("inf")}, {"p": 10**400}), "event event event"),
    _json("field-is-an-object", ({"d": {"name": "phone"}}, {"d": ["phone"]}), "bad_field bad_field"),
    _json("surrogate-in-a-list", (_GOOD_TEXT.replace('["a"]', f'["a", "{_LONE}"]'),), "bad_field"),
    # the same event again
    _json("exact-copy", ({}, {"id": "exact-copy-0"}), "event duplicate"),
    _json("copy-written-otherwise", ({"u": 1}, {"u": "1", "t": NOON * 1000, "id": "@-0"}), "event duplicate"),
    _json("another-user", ({}, {"u": "bob", "id": "@-0"}, {"id": "@-0"}), "event id_conflict duplicate"),
    _json("another-second", ({}, {"t": NOON + 1, "id": "@-0"}), "event id_conflict"),
    _json("another-day", ({}, {"t": NOON - DAY, "id": "@-0"}), "event id_conflict"),
    _json("another-label", ({}, {"r": 1, "id": "@-0"}), "event id_conflict"),
    _json(
        "another-field", ({}, {"m": ["a", "b"], "id": "@-0"}, {"p": None, "id": "@-0"}), "event id_conflict id_conflict"
    ),
    _json("same-label-other-rating", ({"r": 5}, {"r": 4, "id": "@-0"}), "event duplicate"),
]

_MANY = _lines("many", tuple({"noise": n * 7919**3 % 10**9} for n in range(2000)))
_GZ = gzip.compress(_MANY, mtime=0)
_ZST = zstandard.ZstdCompressor().compress(_good("zst-first-frame"))


def _cut(name: str, size: int) -> Case:
    """The rows that zlib gets out of the first `size` bytes, then one for the file."""
    data = gzip.compress(_MANY.replace(b"many", name.encode()), mtime=0)[:size]
    kept = zlib.decompressobj(31).decompress(data).count(b"\n")
    return Case("json", name, data, ("event",) * kept + ("truncated_file",), suffix=".gz")


_PACKED = [
    Case("json", "gz", gzip.compress(_good("gz")), ("event",) * 3, suffix=".gz"),
    Case("json", "gz-members", gzip.compress(_good("gz-members")[:100]) + gzip.compress(_good("gz-members")[100:]),
         ("event",) * 3, suffix=".gz"),
    Case("json", "gz-of-nothing", gzip.compress(b""), (), suffix=".gz"),
    _cut("gz-cut-in-its-header", 5),
    _cut("gz-cut-in-the-middle", len(_GZ) // 2),
    _cut("gz-cut-in-its-checksum", len(gzip.compress(_MANY.replace(b"many", b"gz-cut-in-its-checksum"), mtime=0)) - 3),
    Case("json", "gz-and-garbage", gzip.compress(_good("gz-and-garbage")) + b"garbage",
         (*("event",) * 3, "truncated_file"), suffix=".gz"),
    Case("json", "not-gz-at-all", _good("not-gz-at-all"), ("truncated_file",), suffix=".gz"),
    Case("json", "gz-with-a-long-line", gzip.compress(b"x" * (3 * MAX_LINE) + b"\n" + _good("gz-with-a-long-line", 1)),
         ("too_long", "event"), suffix=".gz"),
    Case("json", "zst-frames", _ZST + zstandard.ZstdCompressor().compress(_good("zst-frames")),
         ("event",) * 6, suffix=".zst"),
    Case("json", "zst-cut", _ZST[:-4], ("truncated_file",), suffix=".zst"),
    Case("json", "zst-with-a-long-line",
         zstandard.ZstdCompressor().compress(b"x" * (3 * MAX_LINE) + b"\n" + _good("zst-with-a-long-line", 1)),
         ("too_long", "event"), suffix=".zst"),
]  # fmt: skip


def _iso(name: str, time: Any, want: str) -> Case:
    return Case("iso", name, _lines(name, ({"t": time},)), (want,))


_ISO = [
    _iso("zulu", "2024-01-02T12:00:00Z", "event"),
    _iso("no-zone-is-utc", "2024-01-02 12:00:00.5", "event"),
    _iso("offset-into-the-day-before", "2024-01-01T23:30:00-05:00", "event"),
    _iso("offset-into-the-future", "2024-01-03T23:30:00-05:00", "from_the_future"),
    _iso("only-a-day", "2024-01-02", "event"),
    _iso("leap-second", "2016-12-31T23:59:60Z", "bad_time"),
    _iso("hour-24", "2024-01-02T24:00:00Z", "bad_time"),
    _iso("february-30", "2024-02-30T00:00:00Z", "bad_time"),
    _iso("year-1", "0001-01-01T00:00:00Z", "time_out_of_bounds"),
    _iso("year-10000", "10000-01-01T00:00:00Z", "bad_time"),
    _iso("number-for-text", NOON, "bad_time"),
]

_HEADER = "u,i,t,e,r,p,d,m,id"


def _csv(name: str, rows: tuple[str | bytes, ...], want: str, header: str = _HEADER, end: str = "\n") -> Case:
    lines = [r if isinstance(r, bytes) else r.encode() for r in (header, *rows)]
    content = b"".join(line.replace(b"@", name.encode()) + end.encode() for line in lines)
    return Case("csv", name, content, tuple(want.split()))


_CSV_GOOD = f"ann,x,{NOON},click,5,1.5,phone,a,@"

_CSV = [
    _csv("csv-plain", (_CSV_GOOD,), "event"),
    _csv("csv-other-order", (f"@,x,ann,{NOON},click,5,1.5,phone,a",), "event", "id,i,u,t,e,r,p,d,m"),
    _csv("csv-extra-column", (_CSV_GOOD + ",more",), "event", _HEADER + ",more"),
    _csv("csv-crlf", (_CSV_GOOD,), "event", end="\r\n"),
    _csv("csv-only-a-header", (), ""),
    Case("csv", "csv-empty", b"", ()),
    Case("csv", "csv-bom", b"\xef\xbb\xbf" + f"{_HEADER}\n{_CSV_GOOD.replace('@', 'csv-bom')}".encode(), ("event",)),
    _csv("csv-ragged", ("ann,x", _CSV_GOOD + ",more"), "malformed malformed"),
    _csv("csv-quotes", (f'"a, ""n"" n",x,{NOON},click,5,1.5,phone,a,@',), "event"),
    _csv("csv-open-quote", (f'"ann,x,{NOON},click,5,1.5,phone,a,@',), "malformed"),
    _csv("csv-line-break-in-quotes", (f'ann,x,{NOON},click,5,1.5,"pho\nne",a,@',), "malformed malformed"),
    _csv("csv-latin-1", ("caf\u00e9".encode("latin-1") + _CSV_GOOD.encode()[3:],), "malformed"),
    _csv("csv-empty-line", ("", _CSV_GOOD), "empty_line event"),
    _csv("csv-empty-cells", (f",x,{NOON},click,5,,,,@", f"ann,x,{NOON},click,5,,,,@"), "null_user event"),
    _csv("csv-epoch-0", (_CSV_GOOD.replace(str(NOON), "0"),), "time_out_of_bounds"),
    _csv("csv-fraction", (_CSV_GOOD.replace(str(NOON), f"{NOON}.75"),), "event"),
    _csv("csv-grouped-digits", (_CSV_GOOD.replace(str(NOON), "1_704_196_800"),), "bad_time"),
    _csv("csv-milliseconds", (_CSV_GOOD.replace(str(NOON), f"{NOON}000"),), "time_out_of_bounds"),
    _csv("csv-too-long", ("x" * (MAX_LINE + 1), _CSV_GOOD), "too_long event"),
    _csv("csv-copy-and-conflict", (_CSV_GOOD, _CSV_GOOD, "bob" + _CSV_GOOD[3:]), "event duplicate id_conflict"),
    Case(
        "csv", "csv-cut-in-its-header", gzip.compress(f"{_HEADER}\n".encode())[:12], ("truncated_file",), suffix=".gz"
    ),
]


def _parquet(name: str, want: str, users: tuple[str, ...] | None = None, groups: int = 1000, **columns: Any) -> Case:
    rows = max(len(c) for c in columns.values()) if columns else 1
    good: dict[str, Any] = {"u": ["ann"], "i": ["x"], "t": [NOON], "e": ["click"], "r": [5], "p": [1.5], "d": ["phone"]}
    table = {k: v * rows for k, v in good.items()} | {"m": pa.array([["a"]] * rows, pa.list_(pa.string()))}
    table |= {"id": [f"{name}-{n}" for n in range(rows)], **columns}
    sink = io.BytesIO()
    pq.write_table(pa.table(table), sink, row_group_size=groups, use_deprecated_int96_timestamps=name.endswith("int96"))
    return Case("parquet", name, sink.getvalue(), tuple(want.split()), users)


_WHEN = datetime.fromtimestamp(NOON, UTC)
_WHOLE = _parquet("whole", "event", u=["ann"] * 9, groups=3)


def _damaged() -> Case:
    """Its second row group's pages are overwritten; the footer is as it was."""
    case = _parquet("pq-damaged-group", "event", u=["ann"] * 9, groups=3)
    group = pq.ParquetFile(io.BytesIO(case.content)).metadata.row_group(1)
    starts = [
        group.column(c).dictionary_page_offset or group.column(c).data_page_offset for c in range(group.num_columns)
    ]
    data = bytearray(case.content)
    data[starts[0] : starts[0] + group.column(0).total_compressed_size] = (
        b"\xff" * group.column(0).total_compressed_size
    )
    return Case("parquet", case.name, bytes(data), (*("event",) * 3, "truncated_file", *("event",) * 3))


_PARQUET = [
    _parquet("pq-plain", "event"),
    _parquet("pq-nulls", "null_user event null_user", u=[None, "ann", None]),
    _parquet("pq-null-field", "event", p=pa.array([None], pa.float64())),
    _parquet("pq-nested", "bad_id", u=[{"id": "ann"}]),
    _parquet("pq-list-id", "bad_id", u=[["ann"]]),
    _parquet("pq-binary-id", "bad_id", u=[b"ann"]),
    _parquet("pq-decimal", "event event", ("12", "1.5"), u=[Decimal("12.0"), Decimal("1.5")]),
    _parquet("pq-float-id", "event null_user", ("7",), u=[7.0, float("nan")]),
    _parquet("pq-unsigned", "event", (str(2**64 - 1),), u=pa.array([2**64 - 1], pa.uint64())),
    _parquet("pq-dictionary", "event event", ("ann", "bob"), u=pa.array(["ann", "bob"]).dictionary_encode()),
    _parquet("pq-int96", "event", t=pa.array([_WHEN], pa.timestamp("us"))),
    _parquet("pq-nanoseconds", "event", t=pa.array([NOON * 10**9 + 123_456_789], pa.timestamp("ns", "UTC"))),
    _parquet("pq-dates", "event", t=[date(2024, 1, 2)]),
    _parquet("pq-year-100000", "malformed event", t=pa.array([2**62, NOON * 10**6], pa.timestamp("us"))),
    _parquet("pq-text-that-is-not-utf8", "malformed", u=pa.array([b"\xff"], pa.binary()).view(pa.string())),
    _parquet("pq-other-type-of-id", "event", ("7",), u=["7"]),
    _parquet("pq-other-type-of-id-again", "event", ("7",), u=[7]),
    _parquet("pq-copy-and-conflict", "event duplicate id_conflict", u=["a", "a", "b"], id=["same"] * 3),
    _parquet("pq-no-rows", "", **{c: pa.array([], pa.string()) for c in _HEADER.split(",")}),
    Case("parquet", "pq-empty-file", b"", ()),
    Case("parquet", "pq-cut-in-half", _WHOLE.content[: len(_WHOLE.content) // 2], ("truncated_file",)),
    Case("parquet", "pq-cut-by-a-byte", _WHOLE.content[:-1], ("truncated_file",)),
    Case("parquet", "pq-cut-to-three-bytes", _WHOLE.content[:3], ("truncated_file",)),
    _damaged(),
]

CASES = [*_JSON, *_PACKED, *_ISO, *_CSV, *_PARQUET]
