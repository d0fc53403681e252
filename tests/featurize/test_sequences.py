"""featurize/sequences.py: splits by hand, no glimpse of the future, and MovieLens recounted in SQL.

Letters in histories: an item's index is its position in the alphabet from 2 (a = 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize import sequences, vocabularies
from featurize.contract import Contract
from featurize.ingest import ingest, ingest_sides
from featurize.sequences import Cut, chunks, sequences_of, users_of
from featurize.settings import SequenceSettings, VocabularySettings
from featurize.sources import list_files
from infra.config import load
from infra.errors import DataRefused
from infra.lake import Lake
from infra.tables import ITEMS, events
from tests.conftest import put

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

US = 86400 * 10**6
DAY = 19_724  # 2024-01-02, the run date d of the hand-made cases, in days since 1970
CUT = Cut.of("temporal", "2024-01-02")


def letters(items: Sequence[int]) -> str:
    return "".join(" ?"[i] if i < 2 else chr(ord("a") + i - 2) for i in items)


def of(history: str, days: Sequence[float], cut: Cut, length: int = 50, cap: int = 1000) -> dict[str, Any]:
    """One user's rows, given items as letters (capitals are context events) at days relative to the run date."""
    items = np.array([ord(c.lower()) - ord("a") + 2 for c in history], np.int32)
    times = np.array([round((DAY + day) * US) for day in days], np.int64)
    targets = np.array([c.islower() for c in history], bool)
    out: dict[str, Any] = {"train": [], "single": []}
    for row in sequences_of("u", items, times, targets, cut, length, cap):
        assert row["user"] == "u"
        if row["split"] in out and row["target"] is None:
            out[row["split"]].append(letters(row["items"]))
        else:
            assert row["split"] not in out, "one target per split"
            out[row["split"]] = (letters(row["items"]), letters([row["target"]]), row["target_ts"] / US - DAY)
    return {k: v for k, v in out.items() if v}


def test_the_cut_of_a_day() -> None:
    assert Cut("temporal", (DAY - 1) * US, DAY * US, (DAY + 1) * US) == CUT


class TestTemporal:
    @pytest.mark.parametrize(
        ("history", "days", "expected"),
        [
            # validation sees what came before d-1, test also the day d-1 itself
            ("abcd", [-3, -2, -0.5, 0.5], {"train": ["ab"], "valid": ("ab", "c", -0.5), "test": ("abc", "d", 0.5)}),
            # the first event of the window is the target, the others are not in its history
            ("abcde", [-3, -2, 0.125, 0.25, 0.375], {"train": ["ab"], "test": ("ab", "c", 0.125)}),
            # windows include their first microsecond and exclude their end
            ("abc", [-2, -1, 0], {"single": ["a"], "valid": ("a", "b", -1), "test": ("ab", "c", 0)}),
            ("abc", [-3, -2, 1], {"train": ["ab"]}),
            # no history before the window: nothing to recommend from
            ("ab", [-0.5, 0.5], {"test": ("a", "b", 0.5)}),
            ("a", [0.5], {}),
            ("a", [-5], {"single": ["a"]}),
            # context events stand in histories and are never targets
            ("aBCd", [-3, -2, 0.1, 0.5], {"train": ["ab"], "test": ("ab", "d", 0.5)}),
            ("aBC", [-3, -2, 0.1], {"train": ["ab"]}),
            ("AB", [-3, -2], {"train": ["ab"]}),
            # ties: the order that the events come in decides
            ("abcd", [-2, -2, 0.5, 0.5], {"train": ["ab"], "test": ("ab", "c", 0.5)}),
            ("", [], {}),
        ],
    )
    def test_by_hand(self, history: str, days: list[float], expected: dict[str, Any]) -> None:
        assert of(history, days, CUT) == expected

    def test_histories_keep_their_latest_events(self) -> None:
        assert of("abcde", [-5, -4, -3, -2, 0.5], CUT, cap=2) == {"train": ["abcd"], "test": ("cd", "e", 0.5)}

    @settings(deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 24), st.floats(-6, -1.001)), max_size=20),
        st.lists(st.tuples(st.integers(0, 24), st.floats(-1, 3)), max_size=10),
        st.lists(st.tuples(st.integers(0, 24), st.floats(-1, 3)), max_size=10),
        st.integers(1, 5),
    )
    def test_the_future_changes_no_training_row(
        self, past: list[Any], future: list[Any], other: list[Any], length: int
    ) -> None:
        def trained(after: list[Any]) -> list[Any]:
            rows = sorted(past, key=lambda r: r[1]) + sorted(after, key=lambda r: r[1])
            got = of("".join(chr(97 + i) for i, _ in rows), [day for _, day in rows], CUT, length)
            return [got.get("train"), got.get("single")]

        assert trained(future) == trained(other) == trained([])


class TestLeaveOneOut:
    @pytest.mark.parametrize(
        ("history", "expected"),
        [
            ("abcde", {"train": ["abc"], "valid": ("abc", "d", 3), "test": ("abcd", "e", 4)}),
            ("abc", {"single": ["a"], "valid": ("a", "b", 1), "test": ("ab", "c", 2)}),
            ("ab", {"train": ["ab"]}),  # fewer than three targets: all of it trains
            ("a", {"single": ["a"]}),
            ("aabb", {"train": ["aa"], "valid": ("aa", "b", 2), "test": ("aab", "b", 3)}),
            # context events stand in histories, beyond the last target they are dropped
            ("aBcDeF", {"train": ["ab"], "valid": ("ab", "c", 2), "test": ("abcd", "e", 4)}),
            ("ABCde", {"train": ["abcde"]}),
        ],
    )
    def test_by_hand(self, history: str, expected: dict[str, Any]) -> None:
        assert of(history, range(len(history)), Cut("leave_one_out")) == expected

    def test_times_decide_nothing_but_the_order(self) -> None:
        tied = of("abcde", [0] * 5, Cut("leave_one_out"))
        assert tied == {"train": ["abc"], "valid": ("abc", "d", 0), "test": ("abcd", "e", 0)}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, {"train": ["bc", "de", "fg"], "single": ["a"]}),
        (2, {"train": ["bcd", "efg"], "single": ["a"]}),
        (3, {"train": ["abc", "defg"]}),
        (4, {"train": ["ab", "cdefg"]}),
        (6, {"train": ["abcdefg"]}),
        (50, {"train": ["abcdefg"]}),
    ],
)
def test_chunks_are_cut_from_the_end(length: int, expected: dict[str, Any]) -> None:
    assert of("abcdefg", range(-10, -3), CUT, length) == expected


@given(st.integers(0, 60), st.integers(2, 12))
def test_chunks_do_not_overlap_and_lose_one_event_at_most(count: int, size: int) -> None:
    cut = chunks(np.arange(count), size)
    together = np.concatenate(cut).tolist() if cut else []
    assert together == list(range(count))[count - len(together) :]
    assert count - len(together) == (count % size == 1)
    assert all(len(c) == size for c in cut[1:])
    assert all(2 <= len(c) <= size for c in cut)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=2), st.integers(1, 7)), max_size=8, unique_by=lambda u: u[0]),
    st.lists(st.integers(0, 60), max_size=12),
)
def test_users_over_any_batches(users: list[tuple[str, int]], cuts: list[int]) -> None:
    names = [name for name, count in users for _ in range(count)]
    table = pa.table(
        {
            "user": names,
            "item": pa.array(range(len(names)), pa.int32()),
            "ts": pa.array([n * 10 for n in range(len(names))], pa.int64()),
            "target": pa.array([n % 3 == 0 for n in range(len(names))], pa.bool_()),
        },
        schema=pa.schema([("user", pa.string()), ("item", pa.int32()), ("ts", pa.int64()), ("target", pa.bool_())]),
    ).combine_chunks()
    bounds = [0, *sorted(min(c, len(names)) for c in cuts), len(names)]
    (whole,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    batches = [whole.slice(s, e - s) for s, e in pairwise(bounds)]
    got = [(u, i.tolist(), t.tolist(), x.tolist()) for u, i, t, x in users_of(iter(batches))]
    expected, start = [], 0
    for name, count in users:
        rows = range(start, start + count)
        expected.append((name, list(rows), [n * 10 for n in rows], [n % 3 == 0 for n in rows]))
        start += count
    assert got == expected


CONTRACT = Contract.model_validate(
    {
        "name": "log",
        "source": {"path": "{date}", "format": "json"},
        "user": "u",
        "item": "i",
        "time": {"column": "t", "unit": "s"},
        "type": {"column": "e"},
        "targets": ["click"],
        "context": ["view"],
        "label": {"column": "r", "at_least": 1},
    }
)
LOG = events([])
START = datetime(2024, 1, 2, tzinfo=UTC)


def event(
    user: str, item: str, day: float, number: int = 0, kind: str = "click", label: int | None = 1
) -> dict[str, Any]:
    """An event at `day` days from the run date; of equal times the lower number comes first."""
    when = START + timedelta(days=day)
    return {
        "arrival": max(when.date().isoformat(), "2023-12-25"),
        "ds": when.date().isoformat(),
        "ts": when,
        "event_id": f"{user}{number:03d}{item}{day}",
        "user": user,
        "item": item,
        "type": kind,
        "label": label,
        "file": "f",
        "position": 0,
    }


LETTERS = [{"arrival": "2023-12-20", "index": n + 2, "key": chr(97 + n)} for n in range(8)]


def build(
    spark: SparkSession, lake: Lake, log: list[dict[str, Any]], **over: Any
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of the table `sequences` as of 2024-01-02, and the counts that the stage reports."""
    inputs = {"events": put(lake, LOG, log), "items": put(lake, ITEMS, LETTERS)}
    arrivals = sorted({e["arrival"] for e in log if e["arrival"] <= "2024-01-02"} | {"2023-12-20"})
    settings_ = SequenceSettings.model_validate(over)
    versions, counts = sequences.build(spark, lake, CONTRACT, settings_, inputs, arrivals, "2024-01-02", {})
    rows = lake.read("sequences", versions["sequences"]).to_pylist()
    assert {r["as_of"] for r in rows} <= {"2024-01-02"}
    assert counts == {s: sum(r["split"] == s for r in rows) for s in ("train", "valid", "test")}
    return rows, counts


def brief(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    return {
        (r["split"], r["user"], letters(r["items"]), letters([r["target"]]) if r["target"] else None, r["target_known"])
        for r in rows
    }


BY_HAND = [
    *(event("ann", item, day) for item, day in (("a", -4), ("b", -3), ("c", -0.9), ("d", -0.1), ("a", 0.2))),
    event("ann", "z", -3.5),  # not in the vocabulary
    event("ann", "e", -2, kind="view"),
    event("ann", "f", 0.1, kind="view"),
    event("ann", "g", -2.5, kind="scroll"),  # neither target nor context
    event("bob", "c", -5),  # one event: nothing to train on, and yet c was seen before the cut
    event("bob", "h", 0.5),
    event("cyn", "a", -3, 2),
    event("cyn", "b", -3, 1),
    event("cyn", "z", 0.5, 1),
    event("cyn", "a", 0.5, 2),
    event("dan", "a", 0.5),
    event("eve", "a", -3, label=0),
    event("eve", "b", -3.1),
    event("eve", "f", -3.2, label=None),
    event("eve", "d", 3),  # after the run date
]


def test_a_log_by_hand_in_spark(spark: SparkSession, lake: Lake) -> None:
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "2")
    try:
        rows, _ = build(spark, lake, BY_HAND)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert brief(rows) == {
        ("train", "ann", "a?be", None, None),
        ("valid", "ann", "a?be", "c", True),  # seen by bob, who trains nothing
        ("test", "ann", "a?becd", "a", True),
        ("test", "bob", "c", "h", False),  # nobody's before the cut
        ("train", "cyn", "ba", None, None),
        ("test", "cyn", "ba", "?", False),  # unknown to the vocabulary is never known
        ("train", "eve", "fba", None, None),
    }
    assert {r["target_ts"] for r in rows if r["user"] == "ann"} == {
        None,
        START - timedelta(days=0.9),
        START + timedelta(days=0.2),
    }
    only_positive, _ = build(spark, lake, BY_HAND, positives_only=True)
    assert ("train", "eve", "fb", None, None) in brief(only_positive)


def test_leave_one_out_in_spark(spark: SparkSession, lake: Lake) -> None:
    log = [
        *(event("ann", item, 0, n) for n, item in enumerate("abcde")),  # one instant: the id decides
        *(event("bob", item, n - 1) for n, item in enumerate("fa")),
        *(event("cyn", item, -9 + n) for n, item in enumerate("haz")),
    ]
    rows, counts = build(spark, lake, log, split="leave_one_out", max_length=2)
    assert brief(rows) == {
        ("train", "ann", "abc", None, None),
        ("valid", "ann", "abc", "d", False),
        ("test", "ann", "abcd", "e", False),
        ("train", "bob", "fa", None, None),
        ("valid", "cyn", "h", "a", True),
        ("test", "cyn", "ha", "?", False),
    }
    assert counts == {"train": 2, "valid": 2, "test": 2}


def test_a_planted_future_leaks_into_no_training_row(spark: SparkSession, lake: Lake) -> None:
    """Everything from d-1 on is moved, swapped and multiplied; the training rows stay to the byte."""
    rng = np.random.default_rng(3)
    past = [
        event(f"u{n % 7}", "abcdefgh"[rng.integers(8)], -1.001 - 5 * rng.random(), n, ["click", "view"][n % 4 == 0])
        for n in range(80)
    ]
    future = [event(f"u{n % 9}", "abcdefgh"[rng.integers(8)], -1 + 2 * rng.random(), n) for n in range(40)]
    altered = [
        {**event(f"u{(n * 5) % 9}", "hgfedcba"[n % 8], -1 + 1.99 * rng.random(), n), "label": 0} for n in range(90)
    ]

    def training(log: list[dict[str, Any]], where: str) -> list[tuple[str, list[int]]]:
        rows, counts = build(spark, Lake(lake.root / where), log, max_length=5)
        assert (counts["test"] > 0) == (len(log) > 80)
        return sorted((r["user"], r["items"]) for r in rows if r["split"] == "train")

    base = training([*past, *future], "base")
    assert len(base) >= 7
    assert training([*past, *altered], "altered") == base
    assert training(past, "none") == base


def test_nothing_to_train_on_is_refused(spark: SparkSession, lake: Lake) -> None:
    with pytest.raises(DataRefused, match="no user has two events to train on before 2024-01-02"):
        build(spark, lake, [event("ann", "a", -3), event("ann", "b", 0.5), event("bob", "a", -3)])
    assert not lake.exists("sequences")


def test_movielens_leave_one_out_against_sql(spark: SparkSession, lake: Lake, ml_100k: Path) -> None:
    """The raw log through ingest and vocabulary; the expected targets and histories from DuckDB over the file."""
    recipes = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts"
    contract = load(recipes / "ml-100k.yaml", Contract)
    ingested = ingest(spark, lake, contract, ml_100k, list_files(ml_100k, contract.source), None, {})
    sides, _ = ingest_sides(lake, contract, ml_100k, "undated", {})
    assert ingested.accounts["undated"]["events"] == ingested.accounts["undated"]["rows"] == 100_000
    built = vocabularies.build(
        spark, lake, contract, VocabularySettings(), {**sides, **ingested.versions}, ["undated"], None, {"run": "test"}
    )
    versions = {**sides, **ingested.versions, **built.versions}
    settings_ = SequenceSettings(split="leave_one_out", positives_only=True)
    made, counts = sequences.build(
        spark, lake, contract, settings_, versions, ["undated"], ingested.last_day, {"run": "test"}
    )
    rows = lake.read("sequences", made["sequences"])
    keys = lake.read("items", built.versions["items"])
    ids = lake.read("events", ingested.versions["events"], columns=["event_id"])

    file = str(ml_100k / "ml-100k.inter")
    db = duckdb.connect()
    db.register("ids", ids)
    db.register("rows", rows)
    db.register("keys", keys)
    db.execute(
        """create table log as select * from (select "user_id:token" as user, "item_id:token" as item,
             "rating:float" as rating, "timestamp:float" as ts
           from read_csv(?, delim='\t', header=true, all_varchar=true)) where rating::double >= 4""",
        [file],
    )
    # Equal times are ordered by the event id, a hash of user, item, time and type.
    db.execute(
        """create table ranked as select *, row_number() over (partition by user order by ts::bigint desc, id desc) r,
             count(*) over (partition by user) n
           from (select *, sha256('["' || user || '", "' || item || '", ' || ts::bigint || '000000, "rating"]')[:32] id
                 from log)"""
    )
    assert db.sql("select count(*) from ranked where id not in (select event_id from ids)").fetchall() == [(0,)]
    for split, rank in (("test", 1), ("valid", 2)):
        expected = db.sql(f"select user, item from ranked where r = {rank} and n >= 3 order by user").fetchall()
        got = db.sql(
            f"select user, key from rows join keys on keys.index = target where split = '{split}' order by user"
        ).fetchall()
        assert got == expected
        assert counts[split] == len(expected) > 900
    histories = db.sql(
        "select user, list(item order by r desc) from ranked where r > 1 and n >= 3 group by user order by user"
    ).fetchall()
    got = db.sql(
        """select user, list(key order by position) from (select user, unnest(items) i, generate_subscripts(items, 1)
             position from rows where split = 'test') join keys on keys.index = i group by user order by user"""
    ).fetchall()
    assert got == histories
    # All that is neither held out nor the single event left over by chunks of 51 trains.
    (trained,) = db.sql("select sum(len(items)) from rows where split = 'train'").fetchall()
    parts = "select case when n >= 3 then n - 2 else n end part from ranked where r = 1"
    assert db.sql(f"select sum(part) - count(*) filter (part % 51 = 1) from ({parts})").fetchall() == [trained]
