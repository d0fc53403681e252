"""featurize/sources.py: which files there are, what they must hold, and how tasks share them."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize import sources
from featurize.contract import Contract, Source
from featurize.sources import columns_needed, list_files, splits
from featurize.streams import read_split
from infra.errors import ConfigError, DataRefused


def tree(root: Path, *paths: str, content: bytes = b"x\n") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def source(path: str, fmt: str = "json", **over: Any) -> Source:
    return Source.model_validate({"path": path, "format": fmt, **over})


def found(root: Path, path: str) -> list[tuple[str, str]]:
    return [(f.path, f.arrival) for f in list_files(root, source(path))]


class TestListing:
    def test_a_file_a_folder_a_glob_and_everything(self, tmp_path: Path) -> None:
        tree(tmp_path, "a.json", "logs/b.json", "logs/deep/c.json", "logs/d.json.gz")
        assert found(tmp_path, "a.json") == [("a.json", "undated")]
        logs = [(f"logs/{name}", "undated") for name in ("b.json", "d.json.gz", "deep/c.json")]
        assert found(tmp_path, "logs") == found(tmp_path, "./logs/") == found(tmp_path, "logs/**/*") == logs
        assert found(tmp_path, "logs/*.json") == [("logs/b.json", "undated")]
        assert found(tmp_path, "logs/[!b]*") == logs[1:]
        assert found(tmp_path, "**/?.json") == [(p, "undated") for p in ("a.json", "logs/b.json", "logs/deep/c.json")]
        assert found(tmp_path, ".") == [("a.json", "undated"), *logs]

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("events/{date}", ["events/2026-01-01/part.json", "events/2026-01-02/deep/part.json"]),
            ("events/{date}/*.json", ["events/2026-01-01/part.json"]),
            ("events/{date}/**/*.json", ["events/2026-01-01/part.json", "events/2026-01-02/deep/part.json"]),
            ("flat/log-{date}.json", ["flat/log-2026-01-01.json"]),
            ("twice/{date}/{date}.json", ["twice/2026-01-01/2026-01-01.json"]),
            ("[ef]*/log-{date}.*", ["flat/log-2026-01-01.csv", "flat/log-2026-01-01.json"]),
        ],
    )
    def test_date_templates(self, tmp_path: Path, template: str, expected: list[str]) -> None:
        tree(
            tmp_path,
            *("events/2026-01-01/part.json", "events/2026-01-02/deep/part.json", "events/readme/part.json"),
            *("flat/log-2026-01-01.json", "flat/log-2026-01-01.csv", "flat/log-latest.json", "flat/log-26-01-01.json"),
            *("twice/2026-01-01/2026-01-01.json", "twice/2026-01-01/2026-01-02.json"),
        )
        got = found(tmp_path, template)
        assert [path for path, _ in got] == expected
        assert all(arrival in path for path, arrival in got)
        assert {arrival for _, arrival in got} <= {"2026-01-01", "2026-01-02"}

    @pytest.mark.parametrize("day", ["2026-02-30", "2026-13-01", "0000-01-01"])
    def test_a_day_that_the_calendar_lacks_is_refused(self, tmp_path: Path, day: str) -> None:
        tree(tmp_path, "events/2026-01-01/a", f"events/{day}/a")
        with pytest.raises(DataRefused, match=f"events/{day}/a: {day} is no day"):
            found(tmp_path, "events/{date}")

    def test_what_names_hide_is_left_out(self, tmp_path: Path) -> None:
        hidden = ("_SUCCESS", ".part.crc", "_temporary/0/part", ".git/x", "deep/_tmp/part")
        tree(tmp_path, "logs/part", *(f"logs/{name}" for name in hidden))
        assert found(tmp_path, "logs") == found(tmp_path, "logs/**/*") == [("logs/part", "undated")]
        assert found(tmp_path, "logs/_temporary") == [("logs/_temporary/0/part", "undated")]

    def test_nothing_found_is_never_a_success(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        tree(tmp_path, "only/_SUCCESS")
        for path in ("none.json", "empty", "only", "*.csv", "events/{date}"):
            with pytest.raises(DataRefused, match=r"no file there.*check the recipe's `data`"):
                found(tmp_path, path)
        with pytest.raises(ConfigError, match=r"folder .*nowhere does not exist"):
            found(tmp_path / "nowhere", "x")

    @pytest.mark.parametrize("path", ["../secret.json", "logs/../../secret.json", "/etc/passwd", "a/.."])
    def test_paths_that_leave_the_data_folder(self, tmp_path: Path, path: str) -> None:
        tree(tmp_path, "secret.json", "data/logs/a.json")
        with pytest.raises(ConfigError, match=r"source\.path: .* must lie below"):
            found(tmp_path / "data", path)

    def test_a_pattern_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"source\.path: 'a\*\*b' is not a usable pattern"):
            found(tmp_path, "a**b")

    def test_size_and_version_of_a_file(self, tmp_path: Path) -> None:
        tree(tmp_path, "a.json", content=b"12345")
        (before,) = list_files(tmp_path, source("a.json"))
        assert before.size == 5
        assert list_files(tmp_path, source("a.json")) == [before]
        tree(tmp_path, "a.json", content=b"54321")
        os.utime(tmp_path / "a.json", ns=(1, 1))
        (after,) = list_files(tmp_path, source("a.json"))
        assert after.etag != before.etag

    def test_linked_folders_are_read_once_and_links_upwards_end(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere" / "hour"
        elsewhere.mkdir(parents=True)
        (elsewhere / "part.json").write_text("{}")
        day = tmp_path / "data" / "clicks" / "2026-01-01"
        day.mkdir(parents=True)
        (day / "a").symlink_to(elsewhere.parent)
        (day / "b").symlink_to(elsewhere.parent)
        (elsewhere / "up").symlink_to(tmp_path / "data" / "clicks")
        found = list_files(tmp_path / "data", source("clicks/{date}"))
        assert [f.path for f in found] == ["clicks/2026-01-01/a/hour/part.json"]


class TestSplits:
    def shares(self, root: Path, needed: list[str], fmt: str = "csv", **over: Any) -> list[Any]:
        made = source("in", fmt, **over)
        return splits(root, list_files(root, made), made, needed)

    def rows(self, root: Path, needed: list[str], fmt: str = "csv", **over: Any) -> list[tuple[int, Any]]:
        delimiter = over.get("delimiter", ",")
        shares = self.shares(root, needed, fmt, **over)
        return [(p, r) for share in shares for p, _, r in read_split(share, fmt, delimiter)]

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 1000])
    def test_a_header_is_no_row_however_the_file_is_cut(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
    ) -> None:
        monkeypatch.setattr(sources, "SPLIT_BYTES", width)
        tree(tmp_path, "in/a.csv", content=b"\xef\xbb\xbfu,i\r\n1,2\r\n3,4")
        expected = [(8, {"u": "1", "i": "2"}), (13, {"u": "3", "i": "4"})]
        assert self.rows(tmp_path, ["i", "u"]) == expected

    def test_every_file_has_its_own_header(self, tmp_path: Path) -> None:
        tree(tmp_path, "in/a.csv", content=b"u,i\n1,2\n")
        tree(tmp_path, "in/b.csv.gz", content=gzip.compress(b'"i",x,u\n4,0,3\n'))
        expected = [(4, {"u": "1", "i": "2"}), (2, {"i": "4", "x": "0", "u": "3"})]
        assert self.rows(tmp_path, ["u", "i"]) == expected

    def test_columns_of_the_contract_make_the_first_line_a_row(self, tmp_path: Path) -> None:
        tree(tmp_path, "in/a.tsv", content=b"1\t2\n")
        tree(tmp_path, "in/b.tsv.gz", content=gzip.compress(b"3\t4\n"))
        over = {"delimiter": "\t", "columns": ["u", "i"]}
        assert self.rows(tmp_path, ["u"], **over) == [(0, {"u": "1", "i": "2"}), (1, {"u": "3", "i": "4"})]

    @pytest.mark.parametrize("content", [b"", b"u,i\n", b"u,i"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_files_without_rows(self, tmp_path: Path, content: bytes, packed: bool) -> None:
        tree(tmp_path, "in/a.csv" + ".gz" * packed, content=gzip.compress(content) if packed else content)
        assert self.rows(tmp_path, ["u", "i"]) == []
        assert len(self.shares(tmp_path, ["u", "i"])) == 1, "its task reports that it has none"

    def test_a_file_cut_within_its_header_is_left_to_the_task(self, tmp_path: Path) -> None:
        tree(tmp_path, "in/a.csv.gz", content=gzip.compress(b"u,i\n1,2\n")[:12])
        ((position, refusal),) = self.rows(tmp_path, ["u", "i"])
        assert (position, refusal.reason) == (1, "truncated_file")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"u,x\n1,2\n", r"in/a\.csv: the column\(s\) 'i' named by the contract are not there; it has 'u', 'x'"),
            (b"\n1,2\n", r"in/a\.csv: the column\(s\) 'u', 'i'"),
            (b"u;i\n1;2\n", r"'u', 'i' named by the contract are not there; it has 'u;i'"),
            (b"u,i,u\n1,2,3\n", r"in/a\.csv: the column\(s\) 'u' are there more than once"),
            (b'u,"i\n1,2\n', r"in/a\.csv: its first line is no csv header"),
            (b"u\xff,i\n1,2\n", r"in/a\.csv: its first line is no csv header"),
        ],
    )
    def test_headers_that_lack_something(self, tmp_path: Path, content: bytes, words: str) -> None:
        tree(tmp_path, "in/a.csv", content=content)
        with pytest.raises(DataRefused, match=words):
            self.shares(tmp_path, ["u", "i"])

    def test_json_is_not_asked_for_columns(self, tmp_path: Path) -> None:
        tree(tmp_path, "in/a.json", content=b'{"x":1}\n')
        assert self.rows(tmp_path, ["u"], "json") == [(0, {"x": 1})]

    def test_parquet_is_shared_by_row_groups(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        table = pa.table({"u": list(range(5)), "i": list("abcde")})
        pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=2)
        tree(tmp_path, "in/empty.parquet", content=b"")
        shares = self.shares(tmp_path, ["u", "i"], "parquet")
        assert [(s.start, s.end) for s in shares] == [(0, 1), (1, 2), (2, 3)]
        assert self.rows(tmp_path, ["u"], "parquet") == [(n, {"u": n, "i": "abcde"[n]}) for n in range(5)]
        with pytest.raises(DataRefused, match=r"in/a\.parquet: the column\(s\) 'ts'.* it has 'u', 'i'"):
            self.shares(tmp_path, ["u", "ts"], "parquet")

    @pytest.mark.parametrize("cut", [1, 3, 4, 5, 100, -8, -1])
    def test_parquet_that_is_cut_is_one_row_for_its_task_to_report(self, tmp_path: Path, cut: int) -> None:
        (tmp_path / "in").mkdir()
        pq.write_table(pa.table({"u": list(range(1000))}), tmp_path / "in" / "a.parquet")
        whole = (tmp_path / "in" / "a.parquet").read_bytes()
        (tmp_path / "in" / "a.parquet").write_bytes(whole[:cut])
        ((position, refusal),) = self.rows(tmp_path, ["u"], "parquet")
        assert (position, refusal.reason) == (0, "truncated_file")

    def test_what_never_was_parquet_is_refused_by_name(self, tmp_path: Path) -> None:
        tree(tmp_path, "in/a.parquet", content=b"u,i\n1,2\n" * 10)
        with pytest.raises(DataRefused, match=r"in/a\.parquet: not a readable Parquet file"):
            self.shares(tmp_path, ["u"], "parquet")


def test_the_columns_that_a_log_must_have() -> None:
    made = Contract.model_validate(
        {
            "name": "log",
            "source": {"path": "x", "format": "csv"},
            "user": "u",
            "item": "i",
            "time": {"column": "t", "unit": "s"},
            "type": {"column": "e"},
            "key": ["s", "u"],
            "label": {"column": "r", "at_least": 1},
            "users": {"path": "users", "format": "csv", "key": "id"},
            "fields": [
                {"name": "device", "kind": "categorical", "column": "Device"},
                {"name": "price", "kind": "numeric"},
                {"name": "age", "kind": "numeric", "source": "users"},
            ],
        }
    )
    assert columns_needed(made) == ["u", "i", "t", "e", "r", "s", "Device", "price"]
