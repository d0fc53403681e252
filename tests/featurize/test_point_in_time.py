"""featurize/point_in_time.py against DuckDB's own as-of join; what is planted in the future is seen or caught."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest

from featurize import point_in_time
from featurize.field_statistics import describe
from featurize.point_in_time import LEAKS, joined, snapshot_of
from infra.errors import AuditError
from infra.tables import Kind

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = [(START + timedelta(n)).date().isoformat() for n in range(8)]
EVENTS = pa.schema(
    [("n", pa.int32()), ("ds", pa.string()), ("ts", pa.timestamp("us", tz="UTC")), ("item", pa.string())]
)
SIDE = pa.schema(
    [("arrival", pa.string()), ("key", pa.string()), ("valid_from", EVENTS.field("ts").type), ("f_x", pa.string())]
)


def random_events(seed: int) -> pa.Table:
    rng = random.Random(seed)
    rows = []
    for n in range(300):
        when = START + timedelta(hours=rng.randrange(8 * 24))
        rows.append({"n": n, "ds": when.date().isoformat(), "ts": when, "item": rng.choice("abcd")})
    return pa.Table.from_pylist(rows, schema=EVENTS)


def random_sides(seed: int, snapshots: list[str]) -> pa.Table:
    """Two to six rows per key and snapshot, on whole hours, so that events meet rows at the very same time."""
    rng = random.Random(seed)
    rows = []
    for snapshot in snapshots:
        for key in "abc":
            for hour in rng.sample(range(9 * 24), rng.randrange(2, 7)):
                label = f"{snapshot} {key} {hour}"
                rows.append(
                    {"arrival": snapshot, "key": key, "valid_from": START + timedelta(hours=hour), "f_x": label}
                )
    return pa.Table.from_pylist(rows, schema=SIDE)


@pytest.mark.parametrize("snapshots", [[DAYS[2], DAYS[5]], [DAYS[7]], ["undated"]])
def test_the_row_that_held_in_the_snapshot_that_had_arrived(spark: SparkSession, snapshots: list[str]) -> None:
    events, sides = random_events(1), random_sides(2, snapshots)
    frame = spark.createDataFrame(events).selectExpr("*", "0 as leaks")
    found = joined(frame, spark.createDataFrame(sides), "item", snapshots, timed=True)
    assert found.where("leaks <> 0").count() == 0
    ours = {r.n: r.f_x for r in found.collect()}
    with duckdb.connect() as db:
        db.register("events", events)
        db.register("sides", sides)
        db.register("snapshots", pa.table({"arrival": snapshots}))
        theirs = db.sql(
            """with due as (select e.*, coalesce((select max(arrival) from snapshots s where s.arrival <= e.ds),
                              (select min(arrival) from snapshots)) as arrival from events e)
               select d.n, s.f_x from due d asof left join sides s
               on d.arrival = s.arrival and d.item = s.key and d.ts >= s.valid_from"""
        ).fetchall()
    assert len(ours) == 300
    assert ours == dict(theirs)
    assert 20 < sum(x is None for x in ours.values()) < 280


def test_snapshots_by_hand(spark: SparkSession) -> None:
    """The newest up to the event's day; before the first one, the first; an undated log has one only."""
    frame = spark.createDataFrame([(d,) for d in DAYS], "ds string")
    found = frame.select(snapshot_of(frame.ds, [DAYS[2], DAYS[4]])).collect()
    assert [DAYS.index(r[0]) for r in found] == [2, 2, 2, 2, 4, 4, 4, 4]
    assert {r[0] for r in frame.select(snapshot_of(frame.ds, ["undated"])).collect()} == {"undated"}


def leaky(spark: SparkSession, **columns: Any) -> Any:
    """One event of noon on the third day whose row claims to come from `columns`."""
    row = {"n": 1, "ds": DAYS[2], "ts": START + timedelta(days=2, hours=12), "item": "a", **columns}
    return spark.createDataFrame(pa.Table.from_pylist([row]))


@pytest.mark.parametrize(
    ("bit", "columns"),
    [
        (0, {"past_until": START + timedelta(days=2, hours=11), "popular_until": DAYS[1]}),
        (4, {"past_until": START + timedelta(days=2, hours=12)}),
        (8, {"popular_until": DAYS[2]}),
    ],
)
def test_the_audit_recognises_a_past_that_reaches_the_event(
    spark: SparkSession, bit: int, columns: dict[str, Any]
) -> None:
    frame = leaky(spark, **columns)
    assert frame.select(point_in_time._leaks_of(frame.columns)).first()[0] == bit


def test_the_audit_recognises_side_rows_of_the_future(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of the snapshot is broken on purpose: it takes the newest there is."""
    from pyspark.sql import functions as F

    rows = [{"arrival": d, "key": "a", "valid_from": START, "f_x": d} for d in (DAYS[1], DAYS[5])]
    frame = leaky(spark).selectExpr("*", "0 as leaks")
    side = spark.createDataFrame(pa.Table.from_pylist(rows, schema=SIDE))
    assert joined(frame, side, "item", [DAYS[1], DAYS[5]], timed=True).first()["leaks"] == 0
    monkeypatch.setattr(point_in_time, "snapshot_of", lambda ds, snapshots: F.lit(snapshots[-1]))
    assert joined(frame, side, "item", [DAYS[1], DAYS[5]], timed=True).first()["leaks"] == 1


@pytest.mark.parametrize("bit", LEAKS)
def test_a_leak_stops_the_build(spark: SparkSession, bit: int) -> None:
    rows = [("train", "observed", START, 0, 0), ("train", "observed", START, 0, bit)]
    frame = spark.createDataFrame(rows, "split string, label_source string, ts timestamp, missing long, leaks int")
    with pytest.raises(AuditError, match=f"samples: 1 rows show {LEAKS[bit]}; nothing was published"):
        describe(frame, [("user", Kind.CATEGORICAL)], {}, DAYS[0])
