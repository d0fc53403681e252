"""featurize/sequences.py: splits by hand, no glimpse of the future, and MovieLens recounted in SQL.

Letters in histories: an item's index is its position in the alphabet from 2 (a = 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize import cutting, histories, merging, sequences, vocabularies
from featurize.contract import Contract
from featurize.cutting import Cut
from featurize.ingest import ingest, ingest_sides
from featurize.settings import SequenceSettings, VocabularySettings
from featurize.sources import list_files
from infra.commit import DataFile
from infra.config import load
from infra.errors import CommitError, DataRefused
from infra.lake import Lake
from infra.tables import ITEMS, events
from tests.conftest import put
from tests.featurize.warehouse import TYPED

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

US = 86400 * 10**6
DAY = 19_724  # 2024-01-02, the run date d of the hand-made cases, in days since 1970
TODAY = "2024-01-02"


def letters(items: Sequence[int]) -> str:
    return "".join(" ?"[i] if i < 2 else chr(ord("a") + i - 2) for i in items)


def of(
    history: str,
    days: Sequence[float],
    split: str = "temporal",
    length: int = 50,
    cap: int = 1000,
    shares: tuple[float, float] = (0.2, 0.1),
) -> dict[str, Any]:
    """One user's rows, given items as letters (capitals are context events) at days relative to the run date."""
    items = np.array([ord(c.lower()) - ord("a") + 2 for c in history], np.int32)
    times = np.array([round((DAY + day) * US) for day in days], np.int64)
    targets = np.array([c.islower() for c in history], bool)
    parts = []
    for day in sorted({d for d in (times // US).tolist() if d <= DAY}):  # as of the run date
        of_day = np.flatnonzero(times // US == day)
        events_ = merging.Events(
            pa.array(["u"]),
            np.zeros(len(of_day), np.int64),
            items[of_day],
            times[of_day],
            targets[of_day],
            lambda places, of_day=of_day: pa.array([f"{n:03d}" for n in of_day[places]]),  # type: ignore[misc]
        )
        parts.append((str(date(1970, 1, 1) + timedelta(days=day)), merging.grouped(events_, cap)))
    cuts = cutting.pieces(parts, Cut.of(split, TODAY, length, cap, shares))
    chunks = cutting.train_table(cuts, length)
    out: dict[str, Any] = {"train": [letters(r) for r in chunks["items"].to_pylist()]}
    if not targets.all():  # the letters as given: none is twice in these
        shown = [c for c in history if c.lower() in "".join(out["train"])]
        marks = [m for row in chunks["is_target"].to_pylist() for m in row]
        assert sorted(zip("".join(out["train"]), marks, strict=True)) == sorted((c.lower(), c.islower()) for c in shown)
    for name in ("valid", "test"):
        assert cuts.held_out[name].late == 0
        held = cuts.held_out[name]
        known = cutting.known(held.target, cutting.marked(items))
        for row in cutting.held_table(cuts, held, known).to_pylist():
            assert name not in out, "one target per split"
            at = row["target_ts"] - datetime(1970, 1, 1, tzinfo=UTC)
            out[name] = (letters(row["items"]), letters([row["target"]]), at / timedelta(days=1) - DAY)
    return {k: v for k, v in out.items() if v}


def test_the_cut_of_a_day() -> None:
    cut = Cut.of("temporal", TODAY, 50, 1000)
    assert (cut.valid_start, cut.test_start, cut.test_end) == ((DAY - 1) * US, DAY * US, (DAY + 1) * US)


class TestTemporal:
    @pytest.mark.parametrize(
        ("history", "days", "expected"),
        [
            # validation sees what came before d-1, test also the day d-1 itself
            ("abcd", [-3, -2, -0.5, 0.5], {"train": ["ab"], "valid": ("ab", "c", -0.5), "test": ("abc", "d", 0.5)}),
            # the first event of the window is the target, the others are not in its history
            ("abcde", [-3, -2, 0.125, 0.25, 0.375], {"train": ["ab"], "test": ("ab", "c", 0.125)}),
            # windows include their first microsecond and exclude their end
            ("abc", [-2, -1, 0], {"valid": ("a", "b", -1), "test": ("ab", "c", 0)}),
            ("abc", [-3, -2, 1], {"train": ["ab"]}),
            # no history before the window: nothing to recommend from
            ("ab", [-0.5, 0.5], {"test": ("a", "b", 0.5)}),
            ("a", [0.5], {}),
            ("a", [-5], {}),
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
        assert of(history, days) == expected

    def test_histories_keep_their_latest_events(self) -> None:
        assert of("abcde", [-5, -4, -3, -2, 0.5], cap=2) == {"train": ["cd"], "test": ("cd", "e", 0.5)}
        # valid sees the last two before d-1, test the last two before d; a target the cap left out is found
        assert of("abcdefg", [-5, -4, -3, -0.5, -0.4, 0.5, 0.6], cap=2) == {
            "train": ["bc"],
            "valid": ("bc", "d", -0.5),
            "test": ("de", "f", 0.5),
        }
        assert of("abcdef", [-3, -2, 0.125, 0.2, 0.3, 0.4], cap=1) == {"test": ("b", "c", 0.125)}

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
        def trained(after: list[Any]) -> Any:
            rows = sorted(past, key=lambda r: r[1]) + sorted(after, key=lambda r: r[1])
            return of("".join(chr(97 + i) for i, _ in rows), [day for _, day in rows], length=length).get("train")

        assert trained(future) == trained(other) == trained([])


class TestLeaveOneOut:
    @pytest.mark.parametrize(
        ("history", "expected"),
        [
            ("abcde", {"train": ["abc"], "valid": ("abc", "d", 3), "test": ("abcd", "e", 4)}),
            ("abc", {"valid": ("a", "b", 1), "test": ("ab", "c", 2)}),
            ("ab", {"train": ["ab"]}),  # fewer than three targets: all of it trains
            ("a", {}),
            ("aabb", {"train": ["aa"], "valid": ("aa", "b", 2), "test": ("aab", "b", 3)}),
            # context events stand in histories, beyond the last target they are dropped
            ("aBcDeF", {"train": ["ab"], "valid": ("ab", "c", 2), "test": ("abcd", "e", 4)}),
            ("ABCde", {"train": ["abcde"]}),
        ],
    )
    def test_by_hand(self, history: str, expected: dict[str, Any]) -> None:
        assert of(history, range(-len(history), 0), "leave_one_out") == {
            k: v if k == "train" else (*v[:2], v[2] - len(history)) for k, v in expected.items()
        }

    def test_times_decide_nothing_but_the_order(self) -> None:
        tied = of("abcde", [0] * 5, "leave_one_out")
        assert tied == {"train": ["abc"], "valid": ("abc", "d", 0), "test": ("abcd", "e", 0)}


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, {"train": ["bc", "de", "fg"]}),
        (2, {"train": ["bcd", "efg"]}),
        (3, {"train": ["abc", "defg"]}),
        (4, {"train": ["ab", "cdefg"]}),
        (6, {"train": ["abcdefg"]}),
        (50, {"train": ["abcdefg"]}),
    ],
)
def test_chunks_are_cut_from_the_end(length: int, expected: dict[str, Any]) -> None:
    assert of("abcdefg", range(-10, -3), length=length) == expected


class TestPerUserRatio:
    @pytest.mark.parametrize(
        ("history", "shares", "expected"),
        [
            # ten events: the last two test, of the eight before them one validates
            (
                "abcdefghij",
                (0.2, 0.1),
                {"train": ["abcdefg"], "valid": ("abcdefg", "h", -3), "test": ("abcdefgh", "i", -2)},
            ),
            # shares are rounded up: of five one tests, of the four left two validate
            ("abcde", (0.2, 0.3), {"train": ["ab"], "valid": ("ab", "c", -3), "test": ("abcd", "e", -1)}),
            # the first target of the window, context events pass
            ("abcdeFgh", (0.5, 0.25), {"train": ["abc"], "valid": ("abc", "d", -5), "test": ("abcd", "e", -4)}),
            ("abcdEFgh", (0.5, 0.25), {"train": ["abc"], "valid": ("abc", "d", -5), "test": ("abcd", "g", -2)}),
            ("abcDEF", (0.5, 0.3), {"train": ["ab"], "valid": ("ab", "c", -4)}),
            ("ab", (0.2, 0.1), {"test": ("a", "b", -1)}),
            ("a", (0.2, 0.1), {}),
        ],
    )
    def test_by_hand(self, history: str, shares: tuple[float, float], expected: dict[str, Any]) -> None:
        assert of(history, range(-len(history), 0), "per_user_ratio", shares=shares) == expected


@given(st.lists(st.integers(0, 60), max_size=5), st.integers(1, 12))
def test_chunks_do_not_overlap_and_lose_one_event_at_most(counts: list[int], length: int) -> None:
    bounds = np.append(0, np.cumsum(counts)).astype(np.int64)
    names = [f"u{n}" for n in range(len(counts))]
    items = np.arange(bounds[-1], dtype=np.int32)
    table = cutting.train_table(
        cutting.Pieces(pa.array(names, pa.string()), items, bounds[:-1], bounds[1:], {}), length
    )
    for name, start, end in zip(names, bounds.tolist(), bounds[1:].tolist(), strict=False):
        cut = [r["items"] for r in table.to_pylist() if r["user"] == name]
        together = [item for chunk in cut for item in chunk]
        assert together == list(range(start, end))[end - start - len(together) :]
        assert end - start - len(together) == ((end - start) % (length + 1) == 1)
        assert all(len(c) == length + 1 for c in cut[1:])
        assert all(2 <= len(c) <= length + 1 for c in cut)


CONTRACT = Contract.model_validate(TYPED)
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
    settings_ = SequenceSettings.model_validate({"buckets": 2, **over})
    built = histories.build(spark, lake, CONTRACT, settings_, inputs, arrivals, TODAY, None, {})
    versions, counts = sequences.build(spark, lake, settings_, built.as_of, TODAY, {})
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


@pytest.mark.parametrize(
    "split", [{"split": "temporal"}, {"split": "leave_one_out"}, {"split": "per_user_ratio", "k_core": 2}]
)
def test_buckets_without_users(spark: SparkSession, tmp_path: Path, split: dict[str, Any]) -> None:
    """Most logs fill every bucket, a first try with a handful of users does not."""
    one, many = (build(spark, Lake(tmp_path / str(n)), BY_HAND, **split, buckets=n) for n in (1, 64))
    assert brief(one[0]) == brief(many[0])
    assert one[1] == many[1]


@pytest.mark.parametrize(
    ("alone", "together"), [(sequences.ALONE, sequences.TOGETHER), (0, 0)], ids=["driver", "spark"]
)
def test_what_only_another_bucket_knows(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: int, together: int
) -> None:
    """Whether a target was trained on does not depend on who shares its user's bucket, nor on who decides it."""
    monkeypatch.setattr(sequences, "ALONE", alone)
    monkeypatch.setattr(sequences, "TOGETHER", together)
    lakes = [Lake(tmp_path / name) for name in ("one", "many", "again")]
    log = [e for e in BY_HAND if e["user"] != "cyn"]  # then nobody but bob was trained on c
    for number, user in enumerate(("fay", "gil", "hal", "ida")):
        log += [event(user, "defg"[number], -3), event(user, "efgd"[number], 0.5)]
    one, many, again = (build(spark, lake, log, buckets=n)[0] for lake, n in zip(lakes, (1, 64, 64), strict=True))
    assert ("valid", "ann", "a?be", "c", True) in brief(many)
    assert ("test", "bob", "c", "h", False) in brief(many)
    assert {r["target_known"] for r in many if r["user"] in ("fay", "gil", "hal", "ida") and r["target"]} == {True}
    assert brief(one) == brief(many)
    assert many == again  # in the same order too
    numbers = [int(Path(path).name.split("-")[1]) for path in lakes[1].files("sequences", 1, {"split": "test"})]
    assert sum(n >= 64 for n in numbers) == (1 if together else 5)  # files of what waited: theirs and bob's
    for lake in lakes:  # what waited for the others' word is gone
        found = {str(path) for path in Path(lake.path("sequences")).rglob("*.parquet")}
        assert found == set(lake.files("sequences", lake.version("sequences") or 0))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PAR1")], ids=["gone", "damaged"])
def test_what_waited_and_cannot_be_read(
    spark: SparkSession, lake: Lake, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any]
) -> None:
    groups = sequences._groups

    def damaging(files: Sequence[DataFile]) -> list[list[DataFile]]:
        damage(Path(lake.path("sequences"), files[0].path))
        return groups(files)

    monkeypatch.setattr(sequences, "_groups", damaging)
    with pytest.raises(CommitError, match=r"sequences.*part-\S+parquet': it was written just now and cannot be read"):
        build(spark, lake, BY_HAND)
    assert not lake.exists("sequences")


def test_a_log_by_hand_in_spark(spark: SparkSession, lake: Lake) -> None:
    rows, _ = build(spark, lake, BY_HAND)
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


@pytest.mark.slow
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
    day = ingested.last_day
    past = histories.build(spark, lake, contract, settings_, versions, ["undated"], day, None, {"run": "test"})
    made, counts = sequences.build(spark, lake, settings_, past.as_of, day, {"run": "test"})
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
    wanted = db.sql(
        "select user, list(item order by r desc) from ranked where r > 1 and n >= 3 group by user order by user"
    ).fetchall()
    got = db.sql(
        """select user, list(key order by position) from (select user, unnest(items) i, generate_subscripts(items, 1)
             position from rows where split = 'test') join keys on keys.index = i group by user order by user"""
    ).fetchall()
    assert got == wanted
    # All that is neither held out nor the single event left over by chunks of 51 trains.
    (trained,) = db.sql("select sum(len(items)) from rows where split = 'train'").fetchall()
    parts = "select case when n >= 3 then n - 2 else n end part from ranked where r = 1"
    assert db.sql(f"select sum(part) - count(*) filter (part % 51 = 1) from ({parts})").fetchall() == [trained]
