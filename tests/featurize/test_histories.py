"""featurize/histories.py: any order of days gives what a plain list of the events gives, and what a rebuild gives.

Most tests run the tasks of a build in this process; Spark itself is in the few that take the `spark` fixture.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurize import buckets, delta, histories, history_tasks, sequences
from featurize.histories import AsOf
from featurize.settings import SequenceSettings
from infra.commit import commit, write_file
from infra.errors import AuditError, DataRefused
from infra.lake import Lake
from infra.tables import HISTORIES, ITEMS
from tests.conftest import put

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

from tests.featurize.warehouse import (
    CONTRACT,
    LOG,
    SETTINGS,
    Warehouse,
    as_of_rows,
    days,
    plain,
    plain_sequences,
    random_log,
    sequence_rows,
    vocabulary,
)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for Spark: the tasks run here, one after the other."""

    def each(_: Any, count: int, work: Callable[[int], Any], size: int = 0) -> list[bytes]:
        return [payload for number in range(count) for payload in work(number)]

    def shuffled(_: Any, lake: Lake, groups: Sequence[Any], base: str, rules: Any) -> list[Any]:
        blocks: dict[int, list[pa.RecordBatch]] = defaultdict(list)
        for group in groups:
            for block in history_tasks.blocks(group, rules):
                blocks[block.column("bucket")[0].as_py()].append(block)
        folder = lake.path(HISTORIES.name)
        for found in blocks.values():
            random.Random(0).shuffle(found)  # a shuffle keeps no order
        written = [history_tasks.files(found, folder, base, rules) for found in blocks.values()]
        return [history_tasks.reported(payload) for some in written for payload in some]

    monkeypatch.setattr(delta, "each", each)
    monkeypatch.setattr(histories, "shuffled", shuffled)
    return None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("small_tasks", [False, True])
def test_day_by_day_equals_a_rebuild_and_a_plain_list(
    inline: None, lake: Lake, monkeypatch: pytest.MonkeyPatch, seed: int, small_tasks: bool
) -> None:
    if small_tasks:  # every day is shared by several tasks, and buckets are cut while they are read
        monkeypatch.setattr(histories, "EVENTS_PER_TASK", 3)
        monkeypatch.setattr(history_tasks, "HELD_EVENTS", 4)
    rng, arrivals = random.Random(seed), days(9)
    log = random_log(rng, arrivals, 150)
    house = Warehouse(lake, log, vocabulary(rng, log, arrivals), arrivals)
    put(lake, ITEMS, [{"arrival": "2023-01-01", "index": 9, "key": "never"}])
    full, bases = [], set()
    for day in arrivals:
        versions = house.load([day])
        built, made = house.run(versions, day)
        house.check(built, made, day)
        full.append(built.report["full"])
        bases.add(built.as_of.base)
    assert full == [True] + [False] * 8, "one full build, the rest a day each"
    assert len(bases) > 2, "bases were made on the way"
    again, remade = house.run(versions, arrivals[-1], rebuild=True)
    assert again.report["full"]
    house.check(again, remade, arrivals[-1])
    assert remade == made

    # an earlier run date after the later ones, then the next one again
    for day in (arrivals[5], arrivals[6], arrivals[8]):
        built, made = house.run(versions, day)
        house.check(built, made, day)


def test_a_late_event_reopens_its_day_only(inline: None, lake: Lake) -> None:
    rng, arrivals = random.Random(3), days(7)
    log = random_log(rng, arrivals, 120)
    log = [r for r in log if r["arrival"] == r["ds"]]
    late = [{**r, "arrival": arrivals[6], "event_id": "late"} for r in log if r["ds"] == arrivals[4]][:1]
    house = Warehouse(lake, [*log, *late], vocabulary(rng, log, arrivals), arrivals)
    for day in arrivals:
        versions = house.load([day])
        built, _ = house.run(versions, day)
        expected = {True: arrivals[:1], False: [day]}[day == arrivals[0]]
        assert built.report["built"] == ([arrivals[4], day] if day == arrivals[6] else expected)
    house.check(built, house.sequences(built.as_of, arrivals[6]), arrivals[6])


def test_an_old_arrival_that_changed_makes_its_bases_stale(inline: None, lake: Lake) -> None:
    rng, arrivals = random.Random(4), days(8)
    log = random_log(rng, arrivals, 120)
    house = Warehouse(lake, log, vocabulary(rng, log, arrivals), arrivals)
    for day in arrivals:
        versions = house.load([day])
        house.run(versions, day)
    house.log = [r for r in log if r["arrival"] != arrivals[1] or r["user"] != "ann"]
    versions |= house.load([arrivals[1]])
    assert house.state is not None
    newest = max(house.state.bases)
    built, made = house.run(versions, arrivals[-1])
    assert built.report["full"] or arrivals[1] in built.report["built"], "or from an older base"
    assert newest > arrivals[1]
    house.check(built, made, arrivals[-1])
    house.log = [r for r in house.log if r["ds"] != arrivals[-1]]
    versions |= house.load(arrivals[-3:])
    lake_files = set(lake.files(HISTORIES.name, built.as_of.version))
    built, made = house.run(versions, arrivals[-1])  # a day that lost all its events
    house.check(built, made, arrivals[-1])
    assert set(lake.files(HISTORIES.name, built.as_of.version)) != lake_files


def test_what_an_unpublished_run_left_is_made_again(inline: None, lake: Lake) -> None:
    rng, arrivals = random.Random(5), days(6)
    log = random_log(rng, arrivals, 100)
    house = Warehouse(lake, log, vocabulary(rng, log, arrivals), arrivals)
    for day in arrivals[:5]:
        versions = house.load([day])
        built, _ = house.run(versions, day)
    spoiled = built.as_of.tails[0]
    commit(lake, HISTORIES, [], replace={"ds": [spoiled], "kind": ["tail"]}, metadata={})  # and never published
    versions |= house.load([arrivals[5]])
    built, made = house.run(versions, arrivals[5])
    assert spoiled in built.report["built"]
    house.check(built, made, arrivals[5])


def test_another_rule_makes_all_of_it_again(inline: None, lake: Lake) -> None:
    rng, arrivals = random.Random(6), days(9)
    log = random_log(rng, arrivals, 90)
    house = Warehouse(lake, log, vocabulary(rng, log, arrivals), arrivals)
    for day in arrivals:
        versions = house.load([day])
        built, _ = house.run(versions, day)
    assert len(built.state.tails) > 4, "tails older than the base are there"
    only = SETTINGS.model_copy(update={"positives_only": True})
    again = histories.build(
        None,
        lake,
        CONTRACT,
        only,
        versions,
        arrivals,
        arrivals[-1],
        built.state,
        {},  # type: ignore[arg-type]
    )
    assert again.report["full"]
    days_left = lake.partitions(HISTORIES.name, again.as_of.version, "ds")
    assert set(days_left) == {again.as_of.base, *again.as_of.tails} & set(days_left), (
        "nothing of the other rule is left"
    )
    house.log = [r for r in log if r["label"] in (1, None)]
    house.check(again, house.sequences(again.as_of, arrivals[-1]), arrivals[-1])


def test_without_context_types_the_marks_are_null(inline: None, lake: Lake) -> None:
    arrivals = days(3)
    log = [r for r in random_log(random.Random(7), arrivals, 40) if r["type"] == "click"]
    items = vocabulary(random.Random(7), log, arrivals)
    versions = {"events": put(lake, LOG, log), "items": put(lake, ITEMS, items)}
    contract = CONTRACT.model_copy(update={"targets": (), "context": ()})
    built = histories.build(
        None,
        lake,
        contract,
        SETTINGS,
        versions,
        arrivals,
        arrivals[-1],
        None,
        {},  # type: ignore[arg-type]
    )
    table = lake.read(HISTORIES.name, built.as_of.version)
    assert table.num_rows
    assert table["is_target"].null_count == table.num_rows
    tails = [r for r in table.to_pylist() if r["kind"] == "tail"]
    assert tails
    assert all(
        r["first_target_ts"] == min(e["ts"] for e in log if e["user"] == r["user"] and e["ds"] == r["ds"])
        for r in tails
    )


class TestLeaks:
    def house(self, lake: Lake) -> tuple[Warehouse, AsOf]:
        arrivals = days(6)
        log = random_log(random.Random(8), arrivals, 120)
        house = Warehouse(lake, log, vocabulary(random.Random(8), log, arrivals), arrivals)
        built, _ = house.run(house.load(arrivals), arrivals[-1])
        return house, built.as_of

    def plant(self, lake: Lake, as_of: AsOf, ds: str, shift: timedelta) -> AsOf:
        """The tail of a day once more, with times of another day in it."""
        where = {"ds": ds, "kind": "tail"}
        (path, *_) = lake.files(HISTORIES.name, as_of.version, where)
        bucket = path.split("bucket=")[1].split("/")[0]
        rows = pq.ParquetFile(path).read()
        ts = [[t + shift for t in some] for some in rows["ts"].to_pylist()]
        first = [t + shift if t is not None else None for t in rows["first_target_ts"].to_pylist()]
        for name, values in (("ts", ts), ("first_target_ts", first)):
            rows = rows.set_column(
                rows.schema.names.index(name), name, pa.array(values, HISTORIES.schema.field(name).type)
            )
        file = write_file(lake.path(HISTORIES.name), HISTORIES, {**where, "bucket": bucket}, [rows])
        replace = {"ds": [ds], "kind": ["tail"]}
        return AsOf(commit(lake, HISTORIES, [file], replace=replace, metadata={}), as_of.base, as_of.tails)

    @pytest.mark.parametrize(
        ("day", "shift", "message"),
        [
            (3, 1, "window begins"),
            (3, 2, "window begins"),
            (4, 1, "targets at|window begins"),
            (5, 1, "targets at"),
            (5, -1, "targets at"),
        ],
    )
    def test_times_of_another_day_are_caught(
        self, inline: None, lake: Lake, day: int, shift: int, message: str
    ) -> None:
        house, as_of = self.house(lake)
        before = lake.version("sequences")
        leaking = self.plant(lake, as_of, days(6)[day], timedelta(days=shift))
        with pytest.raises(AuditError, match=message):
            sequences.build(None, lake, SETTINGS, leaking, days(6)[-1], {})  # type: ignore[arg-type]
        assert lake.version("sequences") == before
        assert house.sequences(self.plant(lake, as_of, days(6)[day], timedelta(0)), days(6)[-1])

    def test_a_history_beyond_its_target_is_caught(self, inline: None, lake: Lake) -> None:
        _, as_of = self.house(lake)
        leaking = self.plant(lake, as_of, days(6)[3], timedelta(days=9))
        for split in ("leave_one_out", "per_user_ratio"):
            settings = SETTINGS.model_copy(update={"split": split})
            sequences.build(None, lake, settings, as_of, days(6)[-1], {})  # type: ignore[arg-type]
            with pytest.raises(AuditError, match="beyond their target"):
                sequences.build(None, lake, settings, leaking, days(6)[-1], {})  # type: ignore[arg-type]

    def test_events_in_the_partition_of_another_day_are_caught(self, inline: None, lake: Lake) -> None:
        arrivals = days(6)
        log = random_log(random.Random(8), arrivals, 120)
        log[0]["ds"] = arrivals[(arrivals.index(log[0]["ds"]) + 1) % 6]
        log[0]["type"] = "click"
        house = Warehouse(lake, log, vocabulary(random.Random(8), log, arrivals), arrivals)
        with pytest.raises(AuditError, match="its day begins at"):
            house.run(house.load(arrivals), arrivals[-1])


def test_superseded_bases_go_and_older_run_dates_are_built_again(inline: None, lake: Lake) -> None:
    rng, arrivals = random.Random(10), days(14)
    log = random_log(rng, arrivals, 400)
    house = Warehouse(lake, log, vocabulary(rng, log, arrivals), arrivals)
    bases: list[list[str]] = []
    for day in arrivals:
        versions = house.load([day])
        built, _ = house.run(versions, day)
        bases.append(sorted(built.state.bases))
        stored = {(p["ds"], p["kind"]) for _, p in lake.data_files(lake.open("histories"), "histories", None)}
        assert {ds for ds, kind in stored if kind == "base"} == {b for b in built.state.bases if b >= arrivals[0]}
        assert min(ds for ds, _ in stored) >= min(built.state.bases)
    assert max(map(len, bases)) == histories.KEPT_BASES
    assert bases[0] != bases[-1], "bases followed each other"
    again, made = house.run(versions, arrivals[4])
    assert again.report["full"]
    assert set(bases[-1]) < set(again.state.bases)
    house.check(again, made, arrivals[4])


class TestBuckets:
    def test_other_buckets_are_refused(self, inline: None, lake: Lake) -> None:
        _, as_of = TestLeaks().house(lake)
        more = SETTINGS.model_copy(update={"buckets": 3})
        with pytest.raises(DataRefused, match=r"has 2 buckets, sequences\.buckets asks for 3"):
            histories.build(
                None,
                lake,
                CONTRACT,
                more,
                {"events": 1, "items": 1},
                days(6),
                days(6)[-1],
                None,
                {},  # type: ignore[arg-type]
            )
        with pytest.raises(DataRefused, match="has 2 buckets"):
            sequences.build(None, lake, more, as_of, days(6)[-1], {})  # type: ignore[arg-type]


def test_one_shuffle_whatever_adaptive_execution_thinks(spark: SparkSession, lake: Lake, capsys: Any) -> None:
    """Sixteen users in eight buckets, hardly any bytes: still a task for every bucket."""
    arrivals = days(6)
    log = [{**r, "user": f"u{n % 40}"} for n, r in enumerate(random_log(random.Random(9), arrivals, 400))]
    items = vocabulary(random.Random(9), log, arrivals)
    versions = {"events": put(lake, LOG, log), "items": put(lake, ITEMS, items)}
    settings = SequenceSettings(buckets=8, history_cap=4, max_length=2)
    found = histories._log(lake, versions, arrivals, arrivals[-1])
    groups = histories._groups(found, arrivals[:2], arrivals[2:])
    rules = histories._rules(CONTRACT, settings, found)
    frame = histories.frame_of(spark, lake, groups, arrivals[1], rules)
    assert frame.rdd.getNumPartitions() == 8
    frame.explain("formatted")
    plan = capsys.readouterr().out.split("\n\n")[0].split("Initial Plan")[0]
    assert plan.count("Exchange") == 1, plan

    built = histories.build(spark, lake, CONTRACT, settings, versions, arrivals, arrivals[-1], None, {})
    made, _ = sequences.build(spark, lake, settings, built.as_of, arrivals[-1], {})
    files = histories.files_of(lake, built.as_of, 8).buckets
    for bucket, some in enumerate(files):
        for _, path in some:
            assert path.rpartition("/")[2].startswith(f"part-{bucket:05d}-")
            users = pq.ParquetFile(path).read(["user"])["user"].combine_chunks()
            assert users.to_pylist() == sorted(users.to_pylist())
            assert set(buckets.bucket_of(users, 8).tolist()) == {bucket}
    expected = {
        u: [(e["index"], e["ts"], e["type"] == "click") for e in of][-4:]
        for u, of in plain(log, items, arrivals[-1], 4).items()
    }
    assert as_of_rows(lake, built.as_of, 4) == expected
    got = sequence_rows(lake, made["sequences"], arrivals[-1])
    assert sorted(got, key=repr) == sorted(plain_sequences(log, items, arrivals[-1], 4, 2), key=repr)

    # the next day: one tail, made without a shuffle and with one
    late = [
        {
            **r,
            "arrival": "2024-01-07",
            "ds": "2024-01-07",
            "ts": r["ts"] + timedelta(days=6 - arrivals.index(r["ds"])),
            "event_id": f"7{r['event_id']}",
        }
        for r in log[:90]
    ]
    versions = {**versions, "events": put(lake, LOG, late)}
    for limit in (1 << 20, 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(histories, "EVENTS_PER_TASK", limit)
            day = histories.build(
                spark, lake, CONTRACT, settings, versions, [*arrivals, "2024-01-07"], "2024-01-07", built.state, {}
            )
        assert day.report["built"] == ["2024-01-07"]
        expected = {
            u: [(e["index"], e["ts"], e["type"] == "click") for e in of][-4:]
            for u, of in plain([*log, *late], items, "2024-01-07", 4).items()
        }
        assert as_of_rows(lake, day.as_of, 4) == expected
