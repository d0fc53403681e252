"""featurize/streams.py: every line exactly once, at a position where it can be found again."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurize.reasons import Reason, Refused
from featurize.streams import Split, open_stream, read_split

Row = tuple[int, bytes, dict[str, Any] | Refused]


def read(
    path: Path,
    fmt: str = "json",
    *,
    start: int = 0,
    end: int | None = None,
    columns: tuple[str, ...] = (),
    delimiter: str = ",",
) -> list[Row]:
    stop = path.stat().st_size if end is None else end
    return list(read_split(Split(str(path), path.name, "undated", start, stop, columns), fmt, delimiter))


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def outcome(record: dict[str, Any] | Refused) -> Any:
    return record.reason if isinstance(record, Refused) else record


def outcomes(rows: list[Row]) -> list[Any]:
    return [outcome(record) for _, _, record in rows]


# Lines of several kinds and their ends: content that a reader might trip over.
LINES = st.lists(
    st.sampled_from([b'{"a":1}', b"", b"{", b'{"a":"\xc3\xa9"}', b"\xff\xfe", b"\x00", b" ", b"[1]", b'{"a":2}\r']),
    max_size=6,
)


def content_of(lines: list[bytes], closed: bool) -> bytes:
    return b"\n".join(lines) + (b"\n" if closed and lines else b"")


def physical(content: bytes) -> list[tuple[int, bytes]]:
    """(offset, line without its end), by plain splitting."""
    out, offset = [], 0
    for line in content.split(b"\n"):
        out.append((offset, line.rstrip(b"\r")))
        offset += len(line) + 1
    return out[:-1] if content.endswith(b"\n") or not content else out


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, closed=st.booleans())
def test_splits_at_every_byte_give_every_line_once(tmp_path: Path, lines: list[bytes], closed: bool) -> None:
    content = content_of(lines, closed)
    path = made(tmp_path / "x.json", content)
    expected = physical(content)
    size = len(content)
    whole = read(path)
    assert [(position, raw) for position, raw, _ in whole] == expected
    for position, raw, _ in whole:
        assert content[position:].startswith(raw)
    for cut in range(size + 1):
        parts = [read(path, end=cut), read(path, start=cut)]
        assert [(p, raw) for part in parts for p, raw, _ in part] == expected
        assert all(p < cut for p, _, _ in parts[0])
        assert all(p >= cut for p, _, _ in parts[1])
    for width in (1, 3):  # splits shorter than a line
        cuts = range(0, size, width)
        parts = [read(path, start=s, end=min(s + width, size)) for s in cuts]
        assert [(p, raw) for part in parts for p, raw, _ in part] == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b' {"a": 1} ', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 2}),  # of a repeated key that nobody reads the last value counts
        (b'{"a": 18446744073709551617}', {"a": 2**64 + 1}),
        (b'{"a": "\\u0000"}', {"a": "\x00"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),  # refused where it is used as text
        (b'{"a": 1e400}', {"a": float("inf")}),
        (b"{}", {}),
        (b"", Reason.EMPTY_LINE),
        (b"  \t", Reason.EMPTY_LINE),
        (b"{", Reason.MALFORMED),
        (b'{"a": 1} x', Reason.MALFORMED),
        (b'{"a": 1}{"a": 2}', Reason.MALFORMED),
        (b"[1]", Reason.MALFORMED),
        (b"null", Reason.MALFORMED),
        (b'"a"', Reason.MALFORMED),
        (b"\x00\x00\x00\x00", Reason.MALFORMED),
        (b'{\x00"a": 1}', Reason.MALFORMED),
        ('{"a": 1}'.encode("utf-16-le"), Reason.MALFORMED),
        (b'{"a": "\x00"}', Reason.MALFORMED),
        (b'{"a": "\xff"}', Reason.MALFORMED),
        (b'{"a": "\xed\xa0\x80"}', Reason.MALFORMED),  # a surrogate encoded as if it were a character
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", Reason.MALFORMED),
        (b'{"a": ' + b"9" * 5000 + b"}", Reason.MALFORMED),
    ],
)
def test_json_lines(tmp_path: Path, line: bytes, expected: Any) -> None:
    path = made(tmp_path / "x.json", line + b'\n{"next": 1}\n')
    assert outcomes(read(path)) == [expected, {"next": 1}]
    assert read(path)[1][0] == len(line) + 1


def test_a_byte_order_mark_is_no_content_at_the_start_only(tmp_path: Path) -> None:
    bom = b"\xef\xbb\xbf"
    content = bom + b'{"a":1}\n' + bom + b'{"a":2}\n'
    rows = read(made(tmp_path / "x.json", content))
    assert [(p, outcome(r)) for p, _, r in rows] == [(0, {"a": 1}), (11, Reason.MALFORMED)]
    packed = read(made(tmp_path / "x.json.gz", gzip.compress(content)))
    assert [(p, outcome(r)) for p, _, r in packed] == [(1, {"a": 1}), (2, Reason.MALFORMED)]


def test_line_ends(tmp_path: Path) -> None:
    path = made(tmp_path / "x.json", b'{"a":1}\r\n\r\n{"a":2}\n\n{"a":3}')
    assert [(p, outcome(r)) for p, _, r in read(path)] == [
        (0, {"a": 1}),
        (9, Reason.EMPTY_LINE),
        (11, {"a": 2}),
        (19, Reason.EMPTY_LINE),
        (20, {"a": 3}),
    ]


def test_a_line_of_five_megabytes(tmp_path: Path) -> None:
    big = json.dumps({"a": "x" * 5_000_000}).encode()
    content = b'{"a":1}\n' + big + b'\n{"a":2}\n'
    path = made(tmp_path / "x.json", content)
    middle = [read(path, start=s, end=s + 1_000_000) for s in range(0, len(content), 1_000_000)]
    assert [len(part) for part in middle] == [2, 0, 0, 0, 0, 1]
    assert [p for part in middle for p, _, _ in part] == [0, 8, 8 + len(big) + 1]
    quoted = made(tmp_path / "x.csv", b'1,"' + b"y" * 5_000_000 + b'"\n')
    ((_, _, record),) = read(quoted, "csv", columns=("a", "b"))
    assert isinstance(record, dict)
    assert len(record["b"]) == 5_000_000


def zst(*frames: bytes) -> bytes:
    return b"".join(zstandard.ZstdCompressor().compress(frame) for frame in frames)


def gz(*members: bytes) -> bytes:
    return b"".join(gzip.compress(member) for member in members)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gz), (".zst", zst)])
class TestCompressed:
    def test_positions_are_line_numbers_over_members(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        """A line may run over the end of a member."""
        path = made(tmp_path / f"x.json{suffix}", pack(b'{"a":1}\n\n{"a"', b":2}\n", b"", b'{"a":3}'))
        assert [(p, raw, outcome(r)) for p, raw, r in read(path)] == [
            (1, b'{"a":1}', {"a": 1}),
            (2, b"", Reason.EMPTY_LINE),
            (3, b'{"a":2}', {"a": 2}),
            (4, b'{"a":3}', {"a": 3}),
        ]

    def test_a_header_is_skipped_but_counted(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        path = made(tmp_path / f"x.csv{suffix}", pack(b"a,b\n1,2\n3,4\n"))
        rows = read(path, "csv", start=1, columns=("a", "b"))
        assert [(p, r) for p, _, r in rows] == [(2, {"a": "1", "b": "2"}), (3, {"a": "3", "b": "4"})]

    @pytest.mark.parametrize("content", [b"", None])
    def test_nothing_in_it(self, tmp_path: Path, suffix: str, pack: Any, content: bytes | None) -> None:
        path = made(tmp_path / f"x.json{suffix}", b"" if content is None else pack(content))
        assert read(path) == []

    def test_a_cut_stream_keeps_the_rows_before_the_cut(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        """Wherever it is cut: a prefix of the rows, then one refusal, whose position is the next line's."""
        lines = [json.dumps({"n": n, "noise": n * 7919**3 % 10**9}) for n in range(24_000)]
        members = ["\n".join(lines[:12_000]) + "\n", "\n".join(lines[12_000:]) + "\n"]
        data = pack(*(m.encode() for m in members))
        first = len(pack(members[0].encode()))
        kept = []
        for cut in sorted({1, 5, 20, first // 2, first - 1, first + 1, (first + len(data)) // 2, len(data) - 1}):
            rows = read(made(tmp_path / f"x.json{suffix}", data[:cut]))
            *good, (position, raw, last) = rows
            assert [r for _, _, r in good] == [json.loads(line) for line in lines[: len(good)]]
            assert (position, raw, outcome(last)) == (len(good) + 1, b"", Reason.TRUNCATED)
            kept.append(len(good))
        assert kept == sorted(kept)
        block = 128 * 1024 // len(lines[0])  # zstd unpacks whole blocks
        assert 12_000 - block <= kept[4] <= 12_000, "what was unpacked before the cut is not thrown away"
        assert kept[5] == 12_000
        assert len(read(made(tmp_path / f"x.json{suffix}", data[:first]))) == 12_000, "cut between members: unseen"

    def test_damage_is_a_refusal_too(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        data = pack(b'{"a":1}\n' * 100)
        trailing = read(made(tmp_path / f"x.json{suffix}", data + b"garbage"))
        assert outcomes(trailing) == [{"a": 1}] * 100 + [Reason.TRUNCATED]
        stranger = read(made(tmp_path / f"y.json{suffix}", b"this is not compressed at all"))
        assert outcomes(stranger) == [Reason.TRUNCATED]

    def test_a_missing_file_is_an_error_and_no_row(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        with pytest.raises(FileNotFoundError):
            list(read_split(Split(str(tmp_path / f"x{suffix}"), "x", "undated", 0, 1, ()), "json", ","))

    def test_a_large_stream_in_full(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        content = b"".join(b'{"n":%d}\n' % n for n in range(200_000))
        path = made(tmp_path / f"x{suffix}", pack(content[:1_000_001], content[1_000_001:]))
        with open_stream(str(path)) as stream:
            assert stream.read() == content


def write_long_lines(path: Path, size: int) -> None:
    """A good line, one of `size` bytes, a good one, another long one without an end; packed piece by piece."""
    pieces = [b'{"a":1}\n', *[b"x" * (1 << 20)] * (size >> 20), b'\n{"a":2}\n', *[b"y" * (1 << 20)] * (size >> 20)]
    with path.open("wb") as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as out:
                out.writelines(pieces)
        elif path.suffix == ".zst":
            with zstandard.ZstdCompressor(level=1).stream_writer(file) as out:
                for piece in pieces:
                    out.write(piece)
        else:
            file.writelines(pieces)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_line_of_fifty_megabytes_is_never_held(tmp_path: Path, suffix: str) -> None:
    limit, size = 1 << 20, 50 << 20
    path = tmp_path / f"x.json{suffix}"
    write_long_lines(path, size)
    tracemalloc.start()
    try:
        split = Split(str(path), path.name, "undated", 0, path.stat().st_size, ())
        rows = [(p, len(raw), outcome(r)) for p, raw, r in read_split(split, "json", ",", limit)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    places = (1, 2, 3, 4) if suffix else (0, 8, 8 + size + 1, 8 + size + 9)
    long = (limit + 1, Reason.TOO_LONG)
    assert rows == [(places[0], 7, {"a": 1}), (places[1], *long), (places[2], 7, {"a": 2}), (places[3], *long)]
    assert peak < 6 * limit


def test_long_lines_in_splits(tmp_path: Path) -> None:
    """A split that lies inside a long line, or starts or ends in one, owns what starts in it."""
    path = made(tmp_path / "x.json", b'{"a":1}\n' + b"x" * 1000 + b'\n{"a":2}\n' + b"y" * 1000)
    size = path.stat().st_size
    for width in (1, 7, 8, 9, 100, 333, 1008, 5000):
        rows = []
        for start in range(0, size, width):
            split = Split(str(path), "x", "undated", start, min(start + width, size), ())
            rows += [(p, len(raw), outcome(r)) for p, raw, r in read_split(split, "json", ",", 50)]
        assert rows == [
            (0, 7, {"a": 1}),
            (8, 51, Reason.TOO_LONG),
            (1009, 7, {"a": 2}),
            (1017, 51, Reason.TOO_LONG),
        ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_the_limit_to_the_byte(tmp_path: Path, suffix: str, bom: bytes) -> None:
    """It counts a line's bytes without the line feed."""
    pack = {"": bytes, ".gz": gz, ".zst": zst}[suffix]
    for extra, expected in ((0, {"a": 1}), (1, Reason.TOO_LONG)):
        line = bom + b'{"a":1}'.ljust(20 - len(bom) + extra)
        for end in (b"", b"\n"):
            path = made(tmp_path / f"x{suffix}", pack(line + end))
            split = Split(str(path), "x", "undated", 0, path.stat().st_size, ())
            assert [outcome(r) for _, _, r in read_split(split, "json", ",", 20)] == [expected]


@pytest.mark.parametrize(
    ("line", "twice"),
    [
        ('{"u": 1, "u": 1}', "u"),
        ('{"u": 1, "i": 2, "i": 3, "u": 4, "u": 5}', "i, u"),
        ('{"u": 1, "\\u0075": 2}', "u"),
        ('{"x": 1, "x": 2, "u": 3}', None),
        ('{"x": {"u": 1, "u": 2}, "u": 3}', None),
        ('{"x": [{"u": 1, "u": 2}]}', None),
        ('{"U": 1, "u": 2}', None),
    ],
)
def test_keys_that_are_read_may_not_be_repeated(tmp_path: Path, line: str, twice: str | None) -> None:
    path = made(tmp_path / "x.json", line.encode())
    split = Split(str(path), "x", "undated", 0, path.stat().st_size, ())
    ((_, raw, record),) = read_split(split, "json", ",", read=("u", "i"))
    if twice is None:
        assert record == json.loads(line)
    else:
        assert isinstance(record, Refused)
        assert (record.reason, record.detail) == (Reason.DUPLICATE_KEY, f"the keys {twice} are there more than once")
        assert raw == line.encode()


def test_a_failing_disk_is_no_truncated_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows would be lost for good where a retried task could have read them."""

    def fail(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    path = made(tmp_path / "x.json.gz", gz(b'{"a":1}\n'))
    monkeypatch.setattr(gzip._GzipReader, "read", fail)  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="Input/output error"):
        read(path)


@pytest.mark.parametrize(
    ("line", "delimiter", "expected"),
    [
        ("1,2", ",", {"a": "1", "b": "2"}),
        ("1,", ",", {"a": "1", "b": ""}),
        (",", ",", {"a": "", "b": ""}),
        ('"1,5",2', ",", {"a": "1,5", "b": "2"}),
        ('"say ""hi""",2', ",", {"a": 'say "hi"', "b": "2"}),
        ('"",2', ",", {"a": "", "b": "2"}),
        ("1\t2", "\t", {"a": "1", "b": "2"}),
        ("1|2,3", "|", {"a": "1", "b": "2,3"}),
        ("a\x00b,2", ",", {"a": "a\x00b", "b": "2"}),
        (" 1 , 2 ", ",", {"a": " 1 ", "b": " 2 "}),
        ("1", ",", Reason.MALFORMED),
        ("1,2,3", ",", Reason.MALFORMED),
        ('1,"open', ",", Reason.MALFORMED),  # the first line of a cell with a line break
        ('"1"x,2', ",", Reason.MALFORMED),
        ("", ",", Reason.EMPTY_LINE),
    ],
)
def test_csv_lines(tmp_path: Path, line: str, delimiter: str, expected: Any) -> None:
    path = made(tmp_path / "x.csv", line.encode() + b"\n")
    assert outcomes(read(path, "csv", columns=("a", "b"), delimiter=delimiter)) == [expected]


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    path = made(tmp_path / "x.csv", "caf\u00e9,1\n".encode("latin-1") + b"tea,2\n")
    assert outcomes(read(path, "csv", columns=("a", "b"))) == [Reason.MALFORMED, {"a": "tea", "b": "2"}]


CELLS = st.text(alphabet=st.sampled_from('ab",; \u00e9'), max_size=4)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS, st.just("end")), min_size=1, max_size=5))
def test_csv_written_by_another_library_comes_back(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path / "x.csv"
    pl.DataFrame(rows, schema=["a", "b", "c"], orient="row").write_csv(path, include_header=False)
    got = [r for _, _, r in read(path, "csv", columns=("a", "b", "c"))]
    assert got == [dict(zip("abc", row, strict=True)) for row in rows]


class TestParquet:
    def test_positions_are_rows_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"n": list(range(25))}), path, row_group_size=10)
        assert pq.read_metadata(path).num_row_groups == 3
        groups = [read(path, "parquet", start=g, end=g + 1) for g in range(3)]
        assert [(p, r) for group in groups for p, _, r in group] == [(n, {"n": n}) for n in range(25)]
        assert [group[0][0] for group in groups] == [0, 10, 20]

    def test_a_value_that_python_cannot_hold_refuses_its_row_only(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        times = pa.array([0, 2**62, 1_000_000], pa.timestamp("us", tz="UTC"))
        names = pa.array([b"a", b"b", b"\xff\xfe"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"t": times, "n": names}), path)
        got = outcomes(read(path, "parquet", end=1))
        assert got[0]["n"] == "a"
        assert got[0]["t"].isoformat() == "1970-01-01T00:00:00+00:00"
        assert got[1:] == [Reason.MALFORMED, Reason.MALFORMED]

    def test_nanoseconds_need_no_pandas(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"t": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC"))}), path)
        for name in [n for n in sys.modules if n.partition(".")[0] == "pandas"]:
            monkeypatch.setitem(sys.modules, name, None)
        first, second = outcomes(read(path, "parquet", end=1))
        assert type(first["t"]) is datetime
        assert first["t"].isoformat() == "2023-11-14T22:13:20.123456+00:00"
        assert second == {"t": None}

    def test_a_disk_that_fails_is_no_damage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"n": [1]}), path)

        def fail(*_: Any, **__: Any) -> Any:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
        with pytest.raises(OSError, match="Input/output error"):
            read(path, "parquet", end=1)
        with pytest.raises(FileNotFoundError):
            list(read_split(Split(str(tmp_path / "gone"), "x", "undated", 0, 1, ()), "parquet", ","))

    def test_times_of_old_writers(self, tmp_path: Path) -> None:
        """INT96, in nanoseconds, does not reach beyond the year 2262."""
        path = tmp_path / "x.parquet"
        times = pa.array([4_102_444_800_000_000 * 10], pa.timestamp("us"))
        pq.write_table(pa.table({"t": times}), path, use_deprecated_int96_timestamps=True)
        assert outcomes(read(path, "parquet", end=1))[0]["t"].year == 3270
