"""featurize/samples.py beyond the labels: missing rates per day, history, sampled negatives, many tasks, the future."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from featurize import indexing, negatives, samples
from featurize.contract import Contract
from featurize.settings import SampleSettings
from infra.errors import AuditError, DataRefused
from infra.lake import Lake
from infra.tables import FIELD_VALUES, ITEMS, events, side_features
from tests.conftest import put
from tests.featurize.warehouse import FORM

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ITEMS_KEYS = [f"i{n}" for n in range(12)]
USERS = [f"u{n}" for n in range(8)]
START = datetime(2024, 3, 1, tzinfo=UTC)
DAYS = [(START + timedelta(n)).date().isoformat() for n in range(12)]
TODAY = DAYS[11]
SETTINGS: dict[str, Any] = {
    **FORM,
    "type": {"column": "e"},
    "targets": ["buy"],
    "context": ["view"],
    "items": {"path": "items", "format": "json", "key": "i", "time": {"column": "since", "unit": "s"}},
    "users": {"path": "users", "format": "json", "key": "u"},
    "fields": [
        {"name": "price", "kind": "numeric"},
        {"name": "tags", "kind": "multi"},
        {"name": "brand", "kind": "categorical", "source": "items"},
        {"name": "segment", "kind": "categorical", "source": "users"},
    ],
}
SAMPLED = Contract.model_validate(SETTINGS)
LABELLED = Contract.model_validate({**SETTINGS, "label": {"column": "e", "one_of": ["buy"]}})
VALUES = {"user": USERS, "tags": ["t0", "t1", "t2"], "brand": ["b0", "b1", "b2"], "segment": ["s0", "s1"]}
KNOWN = {field: {key: n + 2 for n, key in enumerate(keys)} for field, keys in {**VALUES, "item": ITEMS_KEYS}.items()}
FORGOTTEN = "i11"
"""An item that the vocabulary learns of on the last day only."""


def make_event(n: int, user: str, item: str, when: datetime, kind: str, rng: random.Random) -> dict[str, Any]:
    ds = when.date().isoformat()
    return {
        "arrival": ds,
        "ds": ds,
        "event_id": f"e{n:04d}",
        "user": user,
        "item": item,
        "ts": when,
        "type": kind,
        "label": None,
        "file": "f",
        "position": n,
        "f_price": rng.choice([None, 1.5, 2.5, 9.0]),
        "f_tags": rng.choice([None, [], ["t0"], ["t2", "t0", "new"]]),
    }


def random_log(seed: int = 5, count: int = 420, quiet: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Whole hours, so that many events of a user are at the same time; popular items first."""
    rng = random.Random(seed)
    log = []
    while len(log) < count:
        when = START + timedelta(hours=rng.randrange(12 * 24))
        if (when - START).days not in quiet:
            item = ITEMS_KEYS[min(int(rng.expovariate(0.3)), 11)]
            kind = rng.choice(["buy", "buy", "view"])
            log.append(make_event(len(log), rng.choice(USERS), item, when, kind, rng))
    return log


def sides(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Items say from when on they have a brand; users have a snapshot of the third and of the eighth day."""
    items = [
        {
            "arrival": DAYS[4],
            "key": key,
            "valid_from": START + timedelta(days=rng.randrange(-2, 12)),
            "f_brand": f"b{n}",
        }
        for key in ITEMS_KEYS[:9]
        for n in range(3)
    ]
    users = [
        {"arrival": day, "key": user, "f_segment": rng.choice([None, "s0", "s1", "s9"])}
        for day in (DAYS[2], DAYS[7])
        for user in USERS[:6]
    ]
    unique = {(r["key"], r["valid_from"]): r for r in items}
    return list(unique.values()), users


class Shop:
    """A lake with a log, side files and vocabularies; builds samples of it."""

    def __init__(self, spark: SparkSession, root: Path, contract: Contract, log: Sequence[dict[str, Any]]) -> None:
        self.spark, self.contract, self.log = spark, contract, list(log)
        self.lake = Lake(root)
        self.items, self.users = sides(random.Random(1))
        if contract.label is not None:
            self.log = [{**e, "label": int(e["type"] == "buy")} for e in self.log]
        known = [
            {"arrival": DAYS[11] if key == FORGOTTEN else DAYS[0], "field": field, "index": index, "key": key}
            for field, keys in KNOWN.items()
            for key, index in keys.items()
        ]
        items = [{k: r[k] for k in ("arrival", "index", "key")} for r in known if r["field"] == "item"]
        self.inputs = {
            "items": put(self.lake, ITEMS, items),
            "field_values": put(self.lake, FIELD_VALUES, [r for r in known if r["field"] != "item"]),
        }
        self.put()

    def put(self) -> None:
        lake, contract = self.lake, self.contract
        self.inputs["events"] = put(lake, events(contract.kinds_from("log")), self.log)
        self.inputs["item_features"] = put(lake, side_features("item", contract.kinds_from("items"), True), self.items)
        self.inputs["user_features"] = put(lake, side_features("user", contract.kinds_from("users")), self.users)

    def build(self, **over: Any) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
        made = SampleSettings.model_validate(over)
        arrivals = sorted({e["arrival"] for e in self.log})
        versions, report = samples.build(
            self.spark, self.lake, self.contract, made, self.inputs, arrivals, TODAY, {"run": "test"}
        )
        return {t: self.lake.read(t, v).to_pylist() for t, v in versions.items()}, report

    def positives_before(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The user's buys strictly before the event, oldest first."""
        own = [e for e in self.log if e["user"] == event["user"] and e["type"] == "buy" and e["ts"] < event["ts"]]
        return sorted(own, key=lambda e: (e["ts"], e["event_id"]))

    def brand(self, item: str | None, when: datetime) -> int | None:
        held = [r for r in self.items if r["key"] == item and r["valid_from"] <= when]
        return KNOWN["brand"][max(held, key=lambda r: r["valid_from"])["f_brand"]] if held else None

    def segment(self, user: str, ds: str) -> int | None:
        snapshot = DAYS[7] if ds >= DAYS[7] else DAYS[2]
        found = [r["f_segment"] for r in self.users if r["key"] == user and r["arrival"] == snapshot]
        return KNOWN["segment"].get(found[0], 1) if found and found[0] else None


@pytest.fixture(scope="module")
def labelled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(spark, tmp_path_factory.mktemp("labelled") / "lake", LABELLED, random_log())


@pytest.fixture(scope="module")
def sampled(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(spark, tmp_path_factory.mktemp("sampled") / "lake", SAMPLED, random_log())


def test_history_and_side_features_are_those_of_the_event_s_own_time(labelled: Shop) -> None:
    built, report = labelled.build(history=3)
    rows, log = {r["event_id"]: r for r in built["samples"]}, {e["event_id"]: e for e in labelled.log}
    assert len(rows) == len(log) == sum(report["rows"].values())
    for event_id, row in rows.items():
        event = log[event_id]
        history = [KNOWN["item"][e["item"]] for e in labelled.positives_before(event)[-3:]] or None
        assert row["f_history"] == history, event_id
        assert row["f_brand"] == labelled.brand(event["item"], event["ts"])
        assert row["f_segment"] == labelled.segment(event["user"], event["ds"])
        values = [row[f"f_{n}"] for n in ("user", "item", "price", "tags", "brand", "segment", "history")]
        assert row["missing"] == sum(1 << i for i, value in enumerate(values) if value is None)
        assert (row["label"], row["label_source"]) == (event["label"], "observed")
    assert {len(r["f_history"] or []) for r in rows.values()} == {0, 1, 2, 3}
    field = max(built["fields"], key=lambda f: f["position"])
    assert (field["position"], field["name"], field["kind"], field["size"]) == (6, "history", "multi", 14)


def test_missing_rates_per_field_and_day(labelled: Shop) -> None:
    """Recounted from the rows by DuckDB, whole numbers; every day of the log and every field is there."""
    built, _ = labelled.build()
    names = ["user", "item", "price", "tags", "brand", "segment"]
    table = labelled.lake.read("samples", labelled.lake.version("samples") or 0)
    found = {(r["ds"], r["field"]): (r["rows"], r["missing"]) for r in built["missing_rates"]}
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        db.register("samples", table)
        for name in names:
            query = f"select cast(ts as date)::varchar, count(*), count(*) - count(f_{name}) from samples group by 1"
            for ds, count, missing in db.sql(query).fetchall():
                assert found.pop((ds, name)) == (count, missing)
    assert found == {}
    assert {r["as_of"] for r in built["missing_rates"]} == {TODAY}
    assert {r["missing"] for r in built["missing_rates"] if r["field"] == "tags"} != {0}


def test_negatives_come_from_the_days_before_and_are_new_to_the_user(sampled: Shop) -> None:
    built, report = sampled.build(negatives=3)
    log = {e["event_id"]: e for e in sampled.log}
    by_event: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in built["samples"]:
        by_event[row["event_id"]].append(row)
    assert set(by_event) == {e["event_id"] for e in sampled.log if e["type"] == "buy"}
    counts = Counter[int]()
    for event_id, rows in by_event.items():
        event = log[event_id]
        (positive,) = (r for r in rows if r["label"] == 1)
        drawn = [r for r in rows if r["label"] == 0]
        assert (positive["label_source"], positive["item"]) == ("observed", KNOWN["item"][event["item"]])
        assert {r["label_source"] for r in drawn} <= {"sampled"}
        before = {e["item"] for e in sampled.log if e["type"] == "buy" and _days_back(event, e) in range(1, 8)}
        taboo = {e["item"] for e in sampled.positives_before(event)} | {event["item"], FORGOTTEN}
        allowed = {KNOWN["item"][i] for i in before - taboo}
        items = [r["item"] for r in drawn]
        assert len(set(items)) == len(items) <= 3
        assert set(items) <= allowed
        counts[len(items)] += 1
        if event["ds"] != DAYS[0] and len(allowed) >= 3:
            assert len(items) == 3
        for row in drawn:
            for name in ("f_user", "f_price", "f_tags", "f_segment", "ts", "split", "user"):
                assert row[name] == positive[name], name
            assert row["f_item"] == row["item"]
            assert row["f_brand"] == sampled.brand(ITEMS_KEYS[row["item"] - 2], event["ts"])
    assert counts[3] > 100
    assert counts[0] > 0, "the first day has nothing before it"
    assert report["negatives"] == {"wanted": 3 * len(by_event), "drawn": sum(n * c for n, c in counts.items())}
    later = [
        (r, e)
        for e in sampled.log
        for r in by_event.get(e["event_id"], [])
        if r["label"] == 0
        for f in sampled.log
        if f["user"] == e["user"] and f["type"] == "buy" and f["ts"] > e["ts"] and KNOWN["item"][f["item"]] == r["item"]
    ]
    assert later, "what the user takes only later is not left out: that would leak"


def _days_back(event: dict[str, Any], other: dict[str, Any]) -> int:
    return (datetime.fromisoformat(event["ds"]) - datetime.fromisoformat(other["ds"])).days


def test_missing_rates_leave_sampled_rows_out(sampled: Shop) -> None:
    built, _ = sampled.build()
    observed = Counter(e["ds"] for e in sampled.log if e["type"] == "buy")
    assert {r["ds"]: r["rows"] for r in built["missing_rates"]} == observed
    popularity = Counter((e["ds"], KNOWN["item"][e["item"]]) for e in sampled.log if e["type"] == "buy")
    expected = {k: n for k, n in popularity.items() if k[1] != KNOWN["item"][FORGOTTEN] or k[0] == DAYS[11]}
    assert {(r["ds"], r["item"]): r["events"] for r in built["popularity"]} == expected


@pytest.fixture
def cut_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small tasks, and every vocabulary too large to travel with them."""
    monkeypatch.setattr(samples, "ROWS_PER_TASK", 60)
    monkeypatch.setattr(indexing, "CLOSURE_KEYS", 2)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["temporal", "per_user_ratio"])
@pytest.mark.parametrize("shop", ["sampled", "labelled"])
def test_neither_tasks_nor_joins_change_a_row(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, shop: str, split: str
) -> None:
    """Other numbers of tasks and look-ups by join: the same rows and counts, means to the last digits."""
    made = request.getfixturevalue(shop)
    over = {"history": 2, "split": split, "negatives": 2}
    one, report = made.build(**over)
    request.getfixturevalue("cut_up")
    made.spark.conf.set("spark.sql.shuffle.partitions", "5")
    try:
        many, report_many = made.build(**over)
        again, _ = made.build(**over)
    finally:
        made.spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert many == again, "rows in the same order, figures to the last digit"
    assert len(made.lake.files("samples", made.lake.version("samples"), {"split": "train"})) > 3
    for table in ("samples", "missing_rates"):
        assert Counter(map(repr, many[table])) == Counter(map(repr, one[table])), table
    assert report_many["rows"] == report["rows"]
    for ours, theirs in zip(many["fields"], one["fields"], strict=True):
        assert ours == {**theirs, "mean": pytest.approx(theirs["mean"]), "std": pytest.approx(theirs["std"])}


def test_one_shuffle_by_user(sampled: Shop) -> None:
    """The windows of the split, the history and the negatives share it."""
    run = samples._Run(
        sampled.spark,
        sampled.lake,
        SAMPLED,
        SampleSettings(split="per_user_ratio", history=2),
        sampled.inputs,
        DAYS,
        TODAY,
        3,
    )
    rows, _ = samples._rows(run)
    plan = rows._jdf.queryExecution().executedPlan().toString()
    assert plan.count("Exchange hashpartitioning(user#") == 1


def future_of(shop: Shop) -> list[dict[str, Any]]:
    """What nobody could have known by noon of the ninth day: later events, side rows and snapshots."""
    rng = random.Random(99)
    return [
        make_event(9000 + n, rng.choice(USERS), "i9", START + timedelta(days=d, hours=13 + n % 9), "buy", rng)
        for n, d in enumerate([8, 8, 8, 9, 9, 10, 10, 11, 11] * 9)
    ]


@pytest.mark.parametrize("contract", [LABELLED, SAMPLED], ids=["labelled", "sampled"])
def test_a_planted_future_changes_nothing_before_it(spark: SparkSession, tmp_path: Path, contract: Contract) -> None:
    """Events from noon of the ninth day on, a side row that holds from then and a snapshot that comes then."""
    noon = START + timedelta(days=8, hours=12)
    shop = Shop(spark, tmp_path / "lake", contract, [e for e in random_log(7) if e["ts"] < noon])
    over = {"history": 3, "split": "per_user_ratio", "negatives": 2}
    shop.log.append(
        {**make_event(8000, "u0", "i0", START + timedelta(days=11), "buy", random.Random(0)), "label": None}
    )
    if contract.label is not None:
        shop.log[-1]["label"] = 1
    shop.put()
    before, _ = shop.build(**over)
    planted = future_of(shop)
    shop.log += planted if contract.label is None else [{**e, "label": 1} for e in planted]
    shop.items += [{"arrival": DAYS[4], "key": k, "valid_from": noon, "f_brand": "b2"} for k in ITEMS_KEYS]
    shop.users += [{"arrival": DAYS[9], "key": u, "f_segment": "s1"} for u in USERS]
    shop.put()
    after, _ = shop.build(**over)

    def known(built: dict[str, list[dict[str, Any]]]) -> Counter[str]:
        """The rows of events before that noon; the split is left out, which by design looks at all of a user's."""
        rows = [{k: v for k, v in r.items() if k != "split"} for r in built["samples"] if r["ts"] < noon]
        return Counter(map(repr, rows))

    assert len(known(before)) > 150
    assert known(after) == known(before)
    assert len(after["samples"]) > len(before["samples"])


def test_a_window_that_reaches_the_event_s_own_day_is_caught(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(spark, tmp_path / "lake", SAMPLED, random_log(3, 150))
    real = negatives.with_draws

    def leaky(*arguments: Any) -> Any:
        from pyspark.sql import functions as F

        return real(*arguments).withColumn("popular_until", F.col("ds"))

    monkeypatch.setattr(negatives, "with_draws", leaky)
    with pytest.raises(AuditError, match="popularity window that reaches the event's own day"):
        shop.build()
    assert not shop.lake.exists("samples")


def test_without_any_earlier_day_there_is_nothing_to_draw(spark: SparkSession, tmp_path: Path) -> None:
    rng = random.Random(0)
    log = [make_event(n, f"u{n % 3}", f"i{n % 4}", START + timedelta(hours=n), "buy", rng) for n in range(20)]
    with pytest.raises(DataRefused, match="samples: no negative could be drawn"):
        Shop(spark, tmp_path / "lake", SAMPLED, log).build()


def test_after_a_gap_the_last_days_that_had_events_are_drawn_from(spark: SparkSession, tmp_path: Path) -> None:
    """Nothing for nine days, then one day: the events of the first two days stand in."""
    shop = Shop(spark, tmp_path / "lake", SAMPLED, random_log(4, 80, quiet=range(2, 11)))
    built, _ = shop.build(split="per_user_ratio")
    last = {r["item"] for r in built["samples"] if r["ts"] >= START + timedelta(days=11) and r["label"] == 0}
    early = {KNOWN["item"][e["item"]] for e in shop.log if e["ds"] <= DAYS[1] and e["type"] == "buy"}
    assert last
    assert last <= early
