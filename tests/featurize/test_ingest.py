"""featurize/ingest.py on real Spark: every physical row accounted for, however arrivals are batched.

Expected rows come from naive readers in this file (plain Python over the raw bytes) and from the
simulator's planted truth.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize.contract import Contract
from featurize.ingest import Ingested, ingest, ingest_sides
from featurize.simulate import simulate
from featurize.sources import list_files
from infra.config import load
from infra.errors import DataRefused
from infra.lake import Lake
from tests.featurize.simulated import verdict

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SIMULATOR = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts" / "simulator.yaml"
TABLES = ("events", "quarantine", "ingested_files")


def log_contract(path: str, **over: Any) -> Contract:
    base = {"name": "log", "user": "u", "item": "i", "time": {"column": "t", "unit": "s"}, "event_id": "id"}
    base["personal"] = False
    return Contract.model_validate({**base, "source": {"path": path, "format": "json"}, **over})


def run(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    root: Path,
    arrivals: Sequence[str] | None = None,
    prior: Mapping[str, int] | None = None,
) -> Ingested:
    files = [f for f in list_files(root, contract.source) if arrivals is None or f.arrival in arrivals]
    return ingest(spark, lake, contract, root, files, prior, {"run": "test"})


def rows_of(lake: Lake, table: str, result: Ingested) -> list[tuple[Any, ...]]:
    """All rows of a table, in a form that compares: sorted, without the raw file's modification time."""
    read = lake.read(table, result.versions[table])
    names = sorted(set(read.column_names) - {"etag"})
    return sorted(tuple(map(repr, (row[n] for n in names))) for row in read.to_pylist())


def physical(root: Path) -> Iterator[tuple[str, str, int, bytes]]:
    """(arrival, file, position, line) in the order in which the lower one wins; position as documented."""
    for file in sorted(root.glob("events/*/*")):
        packed = file.suffix == ".gz"
        data = gzip.decompress(file.read_bytes()) if packed else file.read_bytes()
        offset = 0
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            yield file.parent.name, file.relative_to(root).as_posix(), number if packed else offset, line.rstrip(b"\n")
            offset += len(line)


@dataclass
class Account:
    """What a naive reader finds in a simulated log."""

    events: dict[str, tuple[str, str, int, dict[str, Any]]]
    quarantine: set[tuple[str, str, int, str]]
    files: dict[str, Counter[str]]

    @classmethod
    def of(cls, root: Path) -> Account:
        account = cls({}, set(), defaultdict(Counter))
        for arrival, file, position, line in physical(root):
            counts = account.files[file]
            counts["rows"] += 1
            reason, row, age = verdict(line, arrival)
            first = account.events.get(row["event_id"]) if reason is None else None
            if first is not None and first[3] != row:
                reason = "id_conflict"
            if reason is not None:
                account.quarantine.add((arrival, file, position, reason))
                counts["quarantined"] += 1
            elif first is not None:
                counts["duplicates"] += 1
            else:
                account.events[row["event_id"]] = (arrival, file, position, row)
                counts["events"] += 1
                counts["late"] += age > 0
        return account


@dataclass
class Simulated:
    """A simulated log, its planted truth, and the lake that it was ingested into at once."""

    root: Path
    truth: dict[str, Any]
    lake: Lake
    result: Ingested


@pytest.fixture(scope="module", params=[1, 2])
def simulated(
    request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory
) -> Simulated:
    folder = tmp_path_factory.mktemp("simulated")
    truth = simulate(folder / "log", users=35, items=30, days=5, seed=request.param)
    lake = Lake(folder / "lake")
    return Simulated(folder / "log", truth, lake, run(spark, lake, load(SIMULATOR, Contract), folder / "log"))


class TestSimulatedTruth:
    def test_the_planted_counts_are_found_per_arrival_and_per_reason(self, simulated: Simulated) -> None:
        truth, result = simulated.truth, simulated.result
        assert min(truth["duplicates"], truth["late"], *truth["quarantined"].values()) >= 1
        assert result.accounts == truth["arrivals"]
        reasons = sum((Counter(r) for r in result.reasons.values()), Counter())
        assert reasons == Counter(truth["quarantined"])
        assert result.reasons == truth["quarantined_by_arrival"]
        assert result.last_day == max(truth["event_dates"])
        assert result.seconds > 0

    def test_nulls_and_dates_are_those_that_were_planted(self, simulated: Simulated) -> None:
        events = simulated.lake.read("events", simulated.result.versions["events"])
        nulls = {name: events[f"f_{name}"].null_count for name in simulated.truth["missing"]}
        assert nulls == simulated.truth["missing"]
        assert Counter(events["ds"].to_pylist()) == simulated.truth["event_dates"]

    def test_every_file_s_rows_add_up(self, simulated: Simulated) -> None:
        expected = Account.of(simulated.root).files
        files = simulated.lake.read("ingested_files", simulated.result.versions["ingested_files"]).to_pylist()
        assert {f["path"] for f in files} == set(expected)
        for f in files:
            assert f["rows"] == f["events"] + f["duplicates"] + f["quarantined"]
            assert {k: f[k] for k in ("rows", "events", "duplicates", "quarantined", "late")} == {
                k: expected[f["path"]][k] for k in ("rows", "events", "duplicates", "quarantined", "late")
            }
            assert f["size"] == (simulated.root / f["path"]).stat().st_size
            assert f["arrival"] == f["path"].split("/")[1]

    def test_the_lowest_copy_is_the_event_typed_as_logged(self, simulated: Simulated) -> None:
        expected = Account.of(simulated.root).events
        events = simulated.lake.read("events", simulated.result.versions["events"]).to_pylist()
        assert len(events) == len(expected) == simulated.truth["events"]
        for event in events:
            arrival, file, position, raw = expected[event["event_id"]]
            assert (event["arrival"], event["file"], event["position"]) == (arrival, file, position)
            when = datetime.fromtimestamp(raw["time"] // 1000, UTC) + timedelta(milliseconds=raw["time"] % 1000)
            assert event["ts"] == when
            assert event["ds"] == when.date().isoformat()
            assert (event["user"], event["item"], event["type"]) == (raw["user_id"], raw["item_id"], raw["event"])
            assert event["label"] == (raw["event"] == "click")
            for name in ("device", "country", "channel", "age", "price"):
                assert event[f"f_{name}"] == raw.get(name)

    def test_quarantine_names_each_refused_row(self, simulated: Simulated) -> None:
        got = simulated.lake.read("quarantine", simulated.result.versions["quarantine"]).to_pylist()
        expected = Account.of(simulated.root).quarantine
        assert {(q["arrival"], q["file"], q["position"], q["reason"]) for q in got} == expected
        assert len(got) == len(expected)
        lines = {(file, position): line for _, file, position, line in physical(simulated.root)}
        for q in got:  # of a conflict, found after parsing, quarantine shows the typed columns
            line = lines[q["file"], q["position"]].decode()
            if q["reason"] == "id_conflict":
                assert json.loads(q["raw"])["event_id"] == json.loads(line)["event_id"]
            else:
                assert q["raw"] == line[:4096]

    def test_side_features_are_those_of_the_file(self, simulated: Simulated) -> None:
        contract = load(SIMULATOR, Contract)
        versions, rows = ingest_sides(simulated.lake, contract, simulated.root, max(simulated.truth["arrivals"]), {})
        read = simulated.lake.read("item_features", versions["item_features"]).to_pylist()
        assert rows["item_features"] == len(read)
        lines = [json.loads(line) for line in (simulated.root / "items.jsonl").read_text().splitlines()]
        expected = {line["item_id"]: (line.get("category"), line.get("tags"), line.get("quality")) for line in lines}
        assert {r["key"]: (r["f_category"], r["f_tags"], r["f_quality"]) for r in read} == expected
        assert {r["arrival"] for r in read} == {max(simulated.truth["arrivals"])}

    @pytest.mark.parametrize("simulated", [1], indirect=True)
    def test_day_by_day_is_the_same_as_all_at_once(
        self, simulated: Simulated, spark: SparkSession, tmp_path: Path
    ) -> None:
        """Then the last arrival again, as after a crash before the ledger: the same rows."""
        lake, contract = Lake(tmp_path / "lake"), load(SIMULATOR, Contract)
        days = sorted(simulated.truth["arrivals"])
        priors: list[Mapping[str, int] | None] = [None]
        for batch in (days[:1], days[1:4], days[4:]):
            result = run(spark, lake, contract, simulated.root, batch, priors[-1])
            priors.append(result.versions)
            assert result.accounts == {d: simulated.truth["arrivals"][d] for d in batch}
        again = run(spark, lake, contract, simulated.root, days[4:], priors[-2])
        for written in (result, again):
            for table in TABLES:
                assert rows_of(lake, table, written) == rows_of(simulated.lake, table, simulated.result)


def write_lines(path: Path, *lines: bytes | str | dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(line) if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"".join((t if isinstance(t, bytes) else t.encode()) + b"\n" for t in texts))


NOON = 1704110400  # 2024-01-01T12:00:00Z


def good(n: int, **over: Any) -> dict[str, Any]:
    return {"u": f"u{n}", "i": "x", "t": NOON, "id": f"e{n}", **over}


def test_ids_that_come_again_on_other_days(spark: SparkSession, tmp_path: Path) -> None:
    """W = 1: a copy is sought among events up to 2 days away, and a chain of copies ends with the kept one.

    Few ids, re-stamped at random: all at once and in batches must both keep what reading row by row keeps, and
    tell exact copies of a kept event from rows that contradict one.
    """
    contract = log_contract("events/{date}", rules={"window_days": 1, "max_bad_share": 1})
    rng, first = random.Random(5), date(2024, 1, 1)
    days = [(first + timedelta(days=d)).isoformat() for d in range(9)]
    expected: list[tuple[str, str, int, str]] = []
    kept: defaultdict[str, list[int]] = defaultdict(list)
    conflicts: list[tuple[str, int]] = []
    for number, day in enumerate(days):
        for part in ("a", "b"):
            rows = []
            for _ in range(9):
                ds = number + rng.choice([-1, -1, 0, 0, 1])
                rows.append({**good(0), "id": f"e{rng.randrange(7)}", "t": NOON + 86400 * ds})
            path = tmp_path / "events" / day / part
            write_lines(path, *rows)
            for row, offset in zip(rows, _offsets(path), strict=True):
                ds = (row["t"] - NOON) // 86400
                if all(abs(ds - other) > 2 for other in kept[row["id"]]):
                    kept[row["id"]].append(ds)
                    expected.append((day, f"events/{day}/{part}", offset, row["id"]))
                elif ds not in kept[row["id"]]:
                    conflicts.append((f"events/{day}/{part}", offset))
    assert 12 < len(expected) < 60
    assert 20 < len(conflicts) < 140 - len(expected)
    assert max(map(len, kept.values())) >= 3

    at_once, batched = Lake(tmp_path / "at-once"), Lake(tmp_path / "batched")
    whole = run(spark, at_once, contract, tmp_path)
    prior: Mapping[str, int] | None = None
    for batch in (days[:4], days[4:]):
        result = run(spark, batched, contract, tmp_path, batch, prior)
        prior = result.versions
    for lake, versions in ((at_once, whole.versions), (batched, result.versions)):
        events = lake.read("events", versions["events"]).to_pylist()
        assert sorted((e["arrival"], e["file"], e["position"], e["event_id"]) for e in events) == sorted(expected)
        refused = lake.read("quarantine", versions["quarantine"]).to_pylist()
        assert {q["reason"] for q in refused} == {"id_conflict"}
        assert sorted((q["file"], q["position"]) for q in refused) == sorted(conflicts)
    # A prior whose arrivals all lie out of reach is as good as none.
    far = run(spark, batched, contract, tmp_path, days[8:], prior)
    assert far.accounts[days[8]]["rows"] == 18


def _offsets(path: Path) -> list[int]:
    offsets, position = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        offsets.append(position)
        position += len(line)
    return offsets


def test_in_an_undated_log_copies_are_sought_everywhere(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    far = [good(0), good(0, t=NOON + 86400 * 300), good(0, t=NOON - 86400 * 900)]
    write_lines(tmp_path / "log" / "b", *far)
    write_lines(tmp_path / "log" / "a", good(1), *far)
    result = run(spark, lake, log_contract("log", rules={"max_bad_share": 1}), tmp_path)
    events = lake.read("events", result.versions["events"]).to_pylist()
    second = len(json.dumps(good(1))) + 1
    assert sorted((e["event_id"], e["file"], e["position"]) for e in events) == [
        ("e0", "log/a", second),
        ("e1", "log/a", 0),
    ]
    assert result.accounts == {"undated": {"rows": 7, "events": 2, "duplicates": 1, "quarantined": 4, "late": 0}}
    assert result.reasons == {"undated": {"id_conflict": 4}}


def test_hostile_rows_end_in_quarantine_and_nowhere_else(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    """One row each, through Spark, Parquet and Delta and back."""
    ids = {
        "4 KB": "\u00e9" * 2048,
        "emoji": "\U0001f600" * 1024,
        "nul": "a\x00b",
        "line": "a\nb",
        "null": "null",
        "composed": "\u00e9",
        "decomposed": "e\u0301",
        "huge": 2**70,
        "negative": -(2**63) - 1,
        "blank": " ",
    }
    lines: list[Any] = [good(n, id=value, u=value) for n, value in enumerate(ids.values())]
    lines.append(good(100, f="y" * 5_000_000))
    hostile: list[tuple[Any, str]] = [
        ('{"u": "\\ud800", "i": "x", "t": 1704110400, "id": "s1"}', "bad_id"),
        ('{"u": "u", "i": "\\udfff", "t": 1704110400, "id": "s2"}', "bad_id"),
        (good(0, t="\ud800"), "bad_time"),
        (good(0, f="\ud800"), "bad_field"),
        (good(0, m=["ok", "\ud83d"]), "bad_field"),
        (b'{"u": "\xff"}', "malformed"),
        (b"\x00" * 100, "malformed"),
        (b'{"u": ' + b"[" * 50_000, "malformed"),
        (b"", "empty_line"),
        (b"\xef\xbb\xbf" + json.dumps(good(1)).encode(), "malformed"),
        (good(0, t=10**300), "time_out_of_bounds"),
        (good(0, t=float("nan")), "bad_time"),
    ]
    lines += [line for line, _ in hostile]
    write_lines(tmp_path / "log", *lines)
    fields = [{"name": "f", "kind": "categorical"}, {"name": "m", "kind": "multi"}]
    result = run(spark, lake, log_contract("log", rules={"max_bad_share": 1}, fields=fields), tmp_path)
    events = lake.read("events", result.versions["events"]).to_pylist()
    assert {e["event_id"] for e in events} == {str(v) for v in ids.values()} | {"e100"}
    assert {e["user"] for e in events} == {str(v) for v in ids.values()} | {"u100"}
    assert max(len(e["f_f"] or "") for e in events) == 5_000_000
    quarantine = lake.read("quarantine", result.versions["quarantine"]).to_pylist()
    quarantine.sort(key=lambda q: q["position"])
    assert [q["reason"] for q in quarantine] == [reason for _, reason in hostile]
    raw = (tmp_path / "log").read_bytes()
    for q in quarantine:
        line = raw[q["position"] :].split(b"\n", 1)[0]
        assert q["raw"] == line[:4096].decode("utf-8", "backslashreplace")[:4096]


def committed(lake: Lake) -> dict[str, int | None]:
    names = (*TABLES, "user_features", "item_features")
    return {name: lake.version(name) for name in names if lake.exists(name)}


def test_a_batch_over_the_threshold_is_refused_whole(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    write_lines(tmp_path / "log", *(good(n) for n in range(18)), "{", b"")
    with pytest.raises(DataRefused, match=r"2 of 20 rows are bad \(10\.0%; rules\.max_bad_share is 9%\).*log; nothing"):
        run(spark, lake, log_contract("log", rules={"max_bad_share": 0.09}), tmp_path)
    assert committed(lake) == {}
    result = run(spark, lake, log_contract("log", rules={"max_bad_share": 0.1}), tmp_path)
    before = committed(lake)
    assert before == {name: result.versions[name] for name in TABLES}
    write_lines(tmp_path / "log", *(good(n) for n in range(3)), "{")
    with pytest.raises(DataRefused, match="1 of 4 rows are bad"):
        run(spark, lake, log_contract("log"), tmp_path)
    assert committed(lake) == before


def test_each_arrival_is_judged_by_itself(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    days = ("2024-01-01", "2024-01-02")
    write_lines(tmp_path / days[0] / "log", *(good(n) for n in range(99)))
    write_lines(tmp_path / days[1] / "log", *(good(n, t=NOON + 86400) for n in range(100, 104)), "{")
    dated = log_contract("{date}/log")
    with pytest.raises(DataRefused, match=rf"arrival {days[1]}: 1 of 5 rows are bad \(20\.0%.*most in {days[1]}/log"):
        run(spark, lake, dated, tmp_path)
    assert committed(lake) == {}
    write_lines(tmp_path / days[1] / "log")
    with pytest.raises(DataRefused, match=rf"arrival {days[1]} holds no row in 1 file"):
        run(spark, lake, dated, tmp_path)
    result = run(spark, lake, dated, tmp_path, days[:1])
    assert result.accounts[days[0]]["events"] == 99


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"item": "ii"}, "item \\(column 'ii'\\)"),
        ({"event_id": "idd"}, "event_id \\(column 'idd'\\)"),
        ({"label": {"column": "act", "one_of": ["buy"]}}, "label \\(column 'act'\\)"),
        ({"event_id": None, "key": ["u", "no"]}, "key \\(column 'no'\\)"),
    ],
)
def test_a_column_that_is_nowhere_is_named(
    spark: SparkSession, tmp_path: Path, lake: Lake, changes: dict[str, Any], named: str
) -> None:
    write_lines(tmp_path / "log", *(good(n) for n in range(9)))
    with pytest.raises(DataRefused, match=f"no row of this log has the column of {named}; correct it"):
        run(spark, lake, log_contract("log", **changes), tmp_path)
    assert committed(lake) == {}


def test_nothing_is_committed_when_a_file_cannot_be_used(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    write_lines(tmp_path / "log", good(1))
    (tmp_path / "log.csv").write_text("u,i,t\n1,2,3\n")
    side = {"path": "users", "format": "json", "key": "id"}
    field = {"name": "age", "kind": "numeric", "source": "users"}
    csv = log_contract("log.csv", source={"path": "log.csv", "format": "csv"})
    with pytest.raises(DataRefused, match=r"log\.csv: the column\(s\) 'id'"):
        run(spark, lake, csv, tmp_path)
    with_side = log_contract("log", users=side, fields=[field])
    with pytest.raises(DataRefused, match="users: no file there"):
        ingest_sides(lake, with_side, tmp_path, "undated", {})
    write_lines(tmp_path / "users", {"id": "u1", "age": "old"})
    with pytest.raises(DataRefused, match="users, position 0: 'old' is not a number"):
        ingest_sides(lake, with_side, tmp_path, "undated", {})
    assert committed(lake) == {}


def test_empty_files(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    """One among others has no rows; a log of nothing else is refused."""
    contract = log_contract("log", source={"path": "log", "format": "csv"})
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "a.csv").write_bytes(b"")
    (tmp_path / "log" / "b.csv").write_bytes(b"u,i,t,id\n")
    (tmp_path / "log" / "c.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataRefused, match=r"holds no row in 3 file\(s\): log/a\.csv"):
        run(spark, lake, contract, tmp_path)
    (tmp_path / "nothing.parquet").write_bytes(b"")
    with pytest.raises(DataRefused, match=r"holds no row in 1 file\(s\): nothing\.parquet"):
        run(spark, lake, log_contract("*", source={"path": "*.parquet", "format": "parquet"}), tmp_path)
    assert committed(lake) == {}
    (tmp_path / "log" / "d.csv").write_text(f"id,u,i,t\ne1,u1,x,{NOON}\n")
    result = run(spark, lake, contract, tmp_path)
    files = lake.read("ingested_files", result.versions["ingested_files"]).to_pylist()
    assert sorted((f["path"], f["rows"], f["events"]) for f in files) == [
        *((f"log/{name}", 0, 0) for name in ("a.csv", "b.csv", "c.csv.gz")),
        ("log/d.csv", 1, 1),
    ]


def test_parquet_in_row_groups_with_its_own_times(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    times = pa.array([NOON * 10**6 + n for n in range(7)], pa.timestamp("us"))
    times = times.take(pa.array([0, 1, 2, 0, 4, 5, 6]))
    columns = {
        "u": ["a", None, "c", "a", "e", "f", "g"],
        "i": [0, 1, 2, 0, 4, 5, 6],
        "t": times,
        "id": [1, 2, 3, 1, 5, 6, 7],
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=3)
    pq.write_table(pa.table(columns).slice(0, 0), tmp_path / "none.parquet")
    over = {"source": {"path": "*.parquet", "format": "parquet"}, "rules": {"max_bad_share": 0.2}}
    result = run(spark, lake, log_contract("log", **over), tmp_path)
    events = lake.read("events", result.versions["events"]).to_pylist()
    got = sorted((e["position"], e["event_id"], e["user"], e["item"], e["ts"].microsecond) for e in events)
    assert got == [(n, str(columns["id"][n]), columns["u"][n], str(n), n) for n in (0, 2, 4, 5, 6)]
    (refused,) = lake.read("quarantine", result.versions["quarantine"]).to_pylist()
    assert (refused["position"], refused["reason"]) == (1, "null_user")
    assert result.accounts["undated"]["duplicates"] == 1


def test_a_large_file_is_shared_and_nothing_lost_at_the_seams(
    spark: SparkSession, tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurize import sources

    monkeypatch.setattr(sources, "SPLIT_BYTES", 777)
    write_lines(tmp_path / "log", *(good(n, note="x" * (n % 90)) for n in range(400)))
    result = run(spark, lake, log_contract("log"), tmp_path)
    events = lake.read("events", result.versions["events"]).to_pylist()
    assert sorted(e["event_id"] for e in events) == sorted(f"e{n}" for n in range(400))
    assert [e["position"] for e in sorted(events, key=lambda e: int(e["event_id"][1:]))] == _offsets(tmp_path / "log")
