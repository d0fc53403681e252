"""featurize/rows.py: records to typed rows or to quarantine, each reason by hand, and nothing that crashes a task."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurize import rows
from featurize.contract import Contract
from featurize.rows import RowPlan, parse_split
from featurize.streams import Split

LOG: dict[str, Any] = {
    "name": "log",
    "source": {"path": "x", "format": "json"},
    "user": "u",
    "item": "i",
    "time": {"column": "t", "unit": "s"},
    "event_id": "id",
    "personal": False,
}
GOOD: dict[str, Any] = {"u": "ann", "i": "x1", "t": 1704067200, "id": "e1"}  # 2024-01-01T00:00:00Z
DAY = 86400


def contract(**over: Any) -> Contract:
    return Contract.model_validate({**LOG, **over})


def parse(made: Contract, path: Path, arrival: str = "undated", columns: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of one file without its report, which is checked here."""
    size = 1 if made.source.format == "parquet" else path.stat().st_size
    plan = RowPlan.of(made)
    batches = list(parse_split(plan, Split(str(path), path.name, arrival, 0, size, columns)))
    assert all(batch.schema == plan.schema for batch in batches)
    *rows, report = (row for batch in batches for row in batch.to_pylist())
    assert report["lines"] == len(rows)
    assert all(row["lines"] is None for row in rows)
    assert {(row["file"], row["arrival"]) for row in (*rows, report)} == {(path.name, arrival)}
    return rows


def parse_lines(
    tmp_path: Path, *lines: bytes | str | dict[str, Any], made: Contract | None = None, **split: Any
) -> Any:
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    data = b"".join((t if isinstance(t, bytes) else t.encode()) + b"\n" for t in texts)
    (tmp_path / "x").write_bytes(data)
    return parse(made or contract(), tmp_path / "x", **split)


def only(tmp_path: Path, record: dict[str, Any] | bytes | str, **over: Any) -> dict[str, Any]:
    split = {k: over.pop(k) for k in ("arrival", "columns") if k in over}
    (row,) = parse_lines(tmp_path, record, made=contract(**over), **split)
    return row


def refused(row: dict[str, Any]) -> str:
    assert row["event_id"] is None
    assert row["ds"] is None
    return row["reason"]


def test_a_good_row(tmp_path: Path) -> None:
    label = {"column": "r", "at_least": 4}
    fields = [
        {"name": "device", "kind": "categorical"},
        {"name": "price", "kind": "numeric", "column": "p"},
        {"name": "tags", "kind": "multi", "separator": "|"},
        {"name": "gone", "kind": "numeric"},
    ]
    record = {**GOOD, "r": "4.0", "device": 7, "p": "2.5", "tags": "a||b"}
    row = only(tmp_path, record, label=label, fields=fields)
    when = row.pop("ts")
    assert when.isoformat() == "2024-01-01T00:00:00+00:00"
    assert row == {
        "arrival": "undated",
        "file": "x",
        "position": 0,
        "lines": None,
        "reason": None,
        "detail": None,
        "raw": None,
        "ds": "2024-01-01",
        "event_id": "e1",
        "user": "ann",
        "item": "x1",
        "type": "event",
        "label": 1,
        "f_device": "7",
        "f_price": 2.5,
        "f_tags": ["a", "b"],
        "f_gone": None,
    }


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"u": None}, "null_user", "u is absent, null or empty"),
        ({"u": ""}, "null_user", "u is absent"),
        ({"u": float("nan")}, "null_user", "u is absent"),
        ({"i": None}, "null_item", "i is absent"),
        ({"id": None}, "null_event_id", "id is absent"),
        ({"u": {"a": 1}}, "bad_id", "u: a dict"),
        ({"i": ["x"]}, "bad_id", "i: a list"),
        ({"u": "\ud800"}, "bad_id", "u: 'utf-8' codec"),
        ({"id": "ok\udfff"}, "bad_id", "id: 'utf-8' codec"),
        ({"t": None}, "bad_time", "t is absent"),
        ({"t": "yesterday"}, "bad_time", "t: 'yesterday' is not a time in s"),
        ({"t": "\ud800"}, "bad_time", "t: '\\ud800' is not a time in s"),
        ({"t": float("inf")}, "bad_time", "t: 'inf'"),
        ({"t": True}, "bad_time", "t: 'True'"),
        ({"t": 0}, "time_out_of_bounds", "t: 0 lies outside rules.min_time/max_time"),
        ({"t": 1704067200000}, "time_out_of_bounds", "t: 1704067200000 lies"),  # milliseconds by mistake
        ({"t": "1" + "0" * 4200}, "time_out_of_bounds", "t: '1000"),
        ({"t": -(10**20)}, "time_out_of_bounds", "t: -1"),
        ({"p": "cheap"}, "bad_field", "p: 'cheap' is not a number"),
        ({"p": "\ud800"}, "bad_field", "p: '\\ud800' is not a number"),
        ({"d": {"a": 1}}, "bad_field", "d: a dict"),
        ({"d": "\ud800"}, "bad_field", "d: 'utf-8' codec"),
        ({"m": ["a", "\ud800"]}, "bad_field", "m: 'utf-8' codec"),
        ({"r": None}, "bad_label", "r: absent"),
        ({"r": "good"}, "bad_label", "r: 'good' is not a number"),
    ],
)
def test_reasons(tmp_path: Path, change: dict[str, Any], reason: str, detail: str) -> None:
    fields = [{"name": n, "kind": k} for n, k in (("p", "numeric"), ("d", "categorical"), ("m", "multi"))]
    record = {**GOOD, "r": 5, **change}
    row = only(tmp_path, record, label={"column": "r", "at_least": 4}, fields=fields)
    assert refused(row) == reason
    assert row["detail"].startswith(detail)
    assert len(row["detail"]) <= 4096
    assert row["raw"] == json.dumps(record)[:4096]


def test_an_absent_column_is_as_good_as_null(tmp_path: Path) -> None:
    for column, reason in (("u", "null_user"), ("i", "null_item"), ("t", "bad_time"), ("id", "null_event_id")):
        record = {k: v for k, v in GOOD.items() if k != column}
        assert refused(only(tmp_path, record)) == reason


def test_types(tmp_path: Path) -> None:
    assert only(tmp_path, {**GOOD, "e": "click"}, type={"column": "e"})["type"] == "click"
    assert refused(only(tmp_path, GOOD, type={"column": "e"})) == "null_type"
    assert refused(only(tmp_path, {**GOOD, "e": []}, type={"column": "e"})) == "bad_id"


def test_labels(tmp_path: Path) -> None:
    at_least, one_of = {"column": "r", "at_least": 4}, {"column": "r", "one_of": ["click", "5"]}
    for value, expected in ((4, 1), (3.99, 0), ("4", 1), (True, 0)):
        assert only(tmp_path, {**GOOD, "r": value}, label=at_least)["label"] == expected
    for value, expected in (("click", 1), ("Click", 0), (5, 1), (5.0, 1), (None, 0)):
        assert only(tmp_path, {**GOOD, "r": value}, label=one_of)["label"] == expected
    assert refused(only(tmp_path, {**GOOD, "r": {}}, label=one_of)) == "bad_label"
    assert only(tmp_path, GOOD)["label"] is None


@pytest.mark.parametrize(
    ("days", "reason"), [(2, "from_the_future"), (1, None), (0, None), (-3, None), (-4, "too_late"), (-400, "too_late")]
)
def test_the_window_counts_days_not_hours(tmp_path: Path, days: int, reason: str | None) -> None:
    for second in (0, DAY - 1):
        record = {**GOOD, "t": GOOD["t"] + days * DAY + second}
        assert only(tmp_path, record, arrival="2024-01-01")["reason"] == reason
        assert only(tmp_path, record)["reason"] is None, "an undated log knows no lateness"


def test_bounds_hold_from_the_first_day_and_exclude_the_last(tmp_path: Path) -> None:
    rules = {"min_time": "2024-01-01", "max_time": "2024-01-02"}
    for seconds, reason in ((-1, "time_out_of_bounds"), (0, None), (DAY - 1, None), (DAY, "time_out_of_bounds")):
        assert only(tmp_path, {**GOOD, "t": GOOD["t"] + seconds}, rules=rules)["reason"] == reason


def test_years_before_1000_have_four_digits(tmp_path: Path) -> None:
    row = only(
        tmp_path, {**GOOD, "t": "0900-01-01"}, time={"column": "t", "unit": "iso"}, rules={"min_time": "0001-01-01"}
    )
    assert row["ds"] == "0900-01-01"


class TestIds:
    @pytest.mark.parametrize(
        "name",
        [
            "\u00e9" * 2048,
            "\U0001f600" * 1024,
            "a\x00b",
            " ",
            "0",
            "NaN",
            "\u00e9",
            "e\u0301",
            "\u202eabc",
            "\ufeffx",
        ],
    )
    def test_text_ids_are_kept_to_the_character(self, tmp_path: Path, name: str) -> None:
        row = only(tmp_path, {**GOOD, "u": name, "i": name, "id": name})
        assert (row["user"], row["item"], row["event_id"]) == (name, name, name)

    @pytest.mark.parametrize(
        ("literal", "name"),
        [
            ("18446744073709551617", str(2**64 + 1)),
            ("-9223372036854775809", str(-(2**63) - 1)),
            ("7.0", "7"),
            ("0.5", "0.5"),
            ("true", "true"),
            ('"7"', "7"),
        ],
    )
    def test_numbers_as_ids(self, tmp_path: Path, literal: str, name: str) -> None:
        row = only(tmp_path, json.dumps(GOOD).replace('"ann"', literal))
        assert row["user"] == name

    def test_the_two_halves_of_an_escaped_pair_are_one_character(self, tmp_path: Path) -> None:
        assert only(tmp_path, json.dumps({**GOOD, "u": "\U0001f600"}))["user"] == "\U0001f600"

    def test_without_an_id_the_row_s_user_item_time_and_type_make_one(self, tmp_path: Path) -> None:
        rows = parse_lines(
            tmp_path,
            GOOD,
            {**GOOD, "id": "other", "p": 1},
            {**GOOD, "t": "1704067200.0"},
            *({**GOOD, k: v} for k, v in (("u", "bob"), ("i", "x2"), ("t", 1704067201))),
            made=contract(event_id=None),
        )
        ids = [row["event_id"] for row in rows]
        expected = hashlib.sha256(b'["ann", "x1", 1704067200000000, "event"]').hexdigest()[:32]
        assert ids[:3] == [expected] * 3
        assert len(set(ids)) == 4

    def test_a_key_s_columns_decide(self, tmp_path: Path) -> None:
        rows = parse_lines(
            tmp_path,
            {**GOOD, "s": "a", "n": 1},
            {**GOOD, "s": "a", "n": 1.0, "u": "bob"},
            {**GOOD, "s": "a", "n": "1"},
            {**GOOD, "s": "a"},
            {**GOOD, "n": 1},
            {**GOOD, "s": "a1", "n": ""},
            made=contract(event_id=None, key=["s", "n"]),
        )
        ids = [row["event_id"] for row in rows]
        assert ids[0] == ids[1] == ids[2]
        assert len(set(ids)) == 4

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({}, "null_event_id"),  # all such rows would pass for copies of one event
            ({"s": None, "n": ""}, "null_event_id"),
            ({"s": "\ud800"}, "bad_id"),
            ({"s": {"deep": []}}, "bad_id"),
        ],
    )
    def test_keys_that_identify_nothing(self, tmp_path: Path, change: dict[str, Any], reason: str) -> None:
        assert refused(only(tmp_path, {**GOOD, **change}, event_id=None, key=["s", "n"])) == reason


@pytest.mark.parametrize(
    ("line", "reason", "raw"),
    [
        (b"", "empty_line", ""),
        (b"  ", "empty_line", "  "),
        (b"\xff\xfe", "malformed", "\\xff\\xfe"),
        (b"\x00\x00", "malformed", "\x00\x00"),
        (b"{", "malformed", "{"),
        (b"[" * 100_000, "malformed", "[" * 4096),
        (b"\xff" * 5000, "malformed", ("\\xff" * 4096)[:4096]),
        (("{" + "\u00e9" * 5000).encode(), "malformed", "{" + "\u00e9" * 2047 + "\\xc3"),
    ],
)
def test_the_raw_line_is_shown_in_bounds(tmp_path: Path, line: bytes, reason: str, raw: str) -> None:
    row = only(tmp_path, line)
    assert (refused(row), row["raw"]) == (reason, raw)


def test_nesting_at_the_edge_of_recursion(tmp_path: Path) -> None:
    """Deep enough that reading succeeds and writing it again might not."""
    for depth in range(100, 1100, 50):
        nested = "[" * depth + "]" * depth
        line = json.dumps({**GOOD, "u": "NEST"}).replace('"NEST"', nested)
        assert refused(only(tmp_path, line)) in {"bad_id", "malformed"}
        assert only(tmp_path, line.replace('"u"', '"x"'))["reason"] in {"null_user", "malformed"}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_file_adds_one_row(tmp_path: Path, suffix: str) -> None:
    import gzip

    import zstandard

    lines = b"".join(json.dumps({**GOOD, "id": f"e{n}"}).encode() + b"\n" for n in range(20_000))
    packed = gzip.compress(lines) if suffix == ".gz" else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(packed[: -len(packed) // 10])
    *good, last = parse(contract(), path)
    assert [row["event_id"] for row in good] == [f"e{n}" for n in range(len(good))]
    assert len(good) > 1000
    assert (last["reason"], last["position"], last["raw"]) == ("truncated_file", len(good) + 1, "")


def test_parquet_rows_are_shown_as_json(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    columns = {"u": ["ann", None], "i": [b"x1", b"x2"], "t": [1704067200] * 2, "id": ["a", "b"]}
    pq.write_table(pa.table(columns), path)
    first, second = parse(contract(source={"path": "x", "format": "parquet"}), path)
    assert (refused(first), refused(second)) == ("bad_id", "null_user")
    assert json.loads(second["raw"]) == {"u": None, "i": "b'x2'", "t": 1704067200, "id": "b"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["u", "i", "t", "id", "p", "d", "m", "r", "e"]), JSON), st.binary(max_size=40))
def test_no_record_and_no_bytes_crash_a_task(tmp_path: Path, change: dict[str, Any], noise: bytes) -> None:
    fields = [{"name": n, "kind": k} for n, k in (("p", "numeric"), ("d", "categorical"), ("m", "multi"))]
    one_of = {"column": "r", "one_of": ["a"]}
    lines: list[Any] = [{**GOOD, **change}, noise.replace(b"\n", b""), json.dumps(change, ensure_ascii=True)]
    for over in ({}, {"event_id": None}, {"event_id": None, "key": ["e", "d"]}):
        made = contract(label=one_of, fields=fields, **over)
        for arrival in ("undated", "2024-01-01"):
            rows = parse_lines(tmp_path, *lines, made=made, arrival=arrival)
            assert len(rows) == 3
            for row in rows:
                assert (row["reason"] is None) == (row["event_id"] is not None)


def test_many_rows_come_in_bounded_batches(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("".join(json.dumps({**GOOD, "id": f"e{n}"}) + "\n" for n in range(20_000)))
    plan = RowPlan.of(contract())
    batches = list(parse_split(plan, Split(str(path), "x", "undated", 0, path.stat().st_size, ())))
    assert max(batch.num_rows for batch in batches) <= 8192
    assert sum(batch.num_rows for batch in batches) == 20_001


def test_long_rows_come_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK_BYTES", 10_000)
    path = tmp_path / "x"
    path.write_bytes(b"".join(json.dumps({**GOOD, "i": "x" * 3000, "id": f"e{n}"}).encode() + b"\n" for n in range(9)))
    split = Split(str(path), "x", "undated", 0, path.stat().st_size, ())
    assert [b.num_rows for b in parse_split(RowPlan.of(contract()), split)] == [4, 4, 2]  # the last one is the report


def test_executors_need_no_configuration_library(tmp_path: Path) -> None:
    """Nor anything else of the driver's: what a task imports is the standard library and pyarrow."""
    (tmp_path / "x.json").write_text(json.dumps(GOOD) + "\n{\n")
    script = f"""
        import sys
        for name in ("pydantic", "yaml", "deltalake", "pyspark", "torch", "ray", "mlflow", "zstandard"):
            sys.modules[name] = None  # importing it raises ImportError
        import featurize.reasons, featurize.values
        from featurize.rows import RowPlan, parse_split
        from featurize.streams import Split
        plan = RowPlan("json", ",", "u", "i", "t", "s", None, None, "event", "id", (), None,
                       (("p", "numeric", "p", None),), 0, 4 * 10**15, 3)
        split = Split({str(tmp_path / "x.json")!r}, "x.json", "undated", 0, 99, ())
        print([(r["event_id"], r["reason"], r["lines"]) for b in parse_split(plan, split) for r in b.to_pylist()])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[('e1', None, None), (None, 'malformed', None), (None, None, 2)]", done.stderr
