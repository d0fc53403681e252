"""Two days of hand-made tables and every figure counted by hand; what is read and what is left alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pyspark.sql import SparkSession

from featurize import profile
from featurize.contract import Contract
from featurize.profile import Before, Measured
from featurize.profile_rows import fields
from infra import tables
from infra.lake import Lake
from infra.tables import FIRST_SEEN, INGESTED_FILES, PROFILES, QUARANTINE
from tests.conftest import put

CONTRACT = Contract.model_validate(
    {
        "name": "hand-made",
        "source": {"path": "log/{date}", "format": "json"},
        "user": "u",
        "item": "i",
        "time": {"column": "t", "unit": "s"},
        "items": {"path": "items.json", "format": "json", "key": "i"},
        "fields": [
            {"name": "device", "kind": "categorical"},
            {"name": "age", "kind": "numeric"},
            {"name": "tags", "kind": "multi", "source": "items"},
        ],
    }
)
DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]
#: (arrival, event day, user, item, type, label, device, age)
LOG: list[tuple[Any, ...]] = [
    (0, 0, "ann", "x", "view", 0, "phone", 30.0),
    (0, 0, "ann", "y", "buy", 1, "phone", 30.0),
    (0, 0, "bob", "x", "view", 0, None, None),
    (0, 0, "bob", "x", "view", 0, "tv", 50.0),
    (1, 1, "ann", "x", "view", 0, "car", 31.0),
    (1, 1, "cem", "z", "view", 1, None, None),
    (1, 0, "bob", "y", "view", 1, "phone", 50.0),
]


def events() -> list[dict[str, Any]]:
    names = ("arrival", "ds", "user", "item", "type", "label", "f_device", "f_age")
    out = []
    for number, row in enumerate(LOG):
        values = dict(zip(names, row, strict=True))
        fixed = {"event_id": str(number), "file": "f", "position": number, "ts": datetime(2026, 1, 1, tzinfo=UTC)}
        out.append({**values, **fixed, "arrival": DAYS[row[0]], "ds": DAYS[row[1]]})
    return out


def account(arrival: str, path: str, **counts: int) -> dict[str, Any]:
    none = dict.fromkeys(profile.ACCOUNT, 0)
    return {"arrival": arrival, "path": path, "size": 1, "etag": "e", **none, **counts}


def refused(arrival: str, reason: str) -> dict[str, Any]:
    return {"arrival": arrival, "file": "f", "position": 9, "reason": reason, "detail": "", "raw": ""}


@pytest.fixture
def versions(lake: Lake) -> dict[str, int]:
    files = [
        account(DAYS[0], "a", rows=5, events=3, quarantined=2),
        account(DAYS[0], "b", rows=2, events=1, duplicates=1),
        account(DAYS[1], "c", rows=4, events=3, quarantined=1, late=1),
        account(DAYS[2], "d", rows=1, quarantined=1),
    ]
    bad = [(0, "bad_time"), (0, "bad_time"), (1, "malformed"), (2, "malformed")]
    items = [("x", ["p", "q"]), ("y", []), ("z", None)]
    side = tables.side_features("item", CONTRACT.kinds_from("items"))
    return {
        "events": put(lake, tables.events(CONTRACT.kinds_from("log")), events()),
        "quarantine": put(lake, QUARANTINE, [refused(DAYS[d], r) for d, r in bad]),
        "ingested_files": put(lake, INGESTED_FILES, files),
        "item_features": put(lake, side, [{"arrival": DAYS[1], "key": k, "f_tags": t} for k, t in items]),
    }


def measure(
    spark: SparkSession, lake: Lake, versions: dict[str, int], days: list[str], before: Before | None = None
) -> Measured:
    return profile.measure(spark, lake, CONTRACT, versions, days, before, {})


def after(measured: Measured, arrivals: list[str]) -> Before:
    last = arrivals[-1]
    return Before(last, arrivals, measured.versions, measured.figures[last]["snapshots"])


def test_every_count_by_hand(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    measured = measure(spark, lake, versions, DAYS)
    first, second, third = (measured.figures[d] for d in DAYS)
    assert {c: first[c] for c in profile.ACCOUNT} == {
        "rows": 7,
        "events": 4,
        "duplicates": 1,
        "quarantined": 2,
        "late": 0,
    }
    assert (first["reasons"], second["reasons"]) == ({"bad_time": 2}, {"malformed": 1})
    assert [f["users"] for f in (first, second, third)] == [2, 3, 0]
    assert [f["items"] for f in (first, second, third)] == [2, 3, 0]
    assert [f["new_users"] for f in (first, second, third)] == [2, 1, 0]
    assert [f["new_items"] for f in (first, second, third)] == [2, 1, 0]
    assert (first["label_rate"], second["label_rate"], third["label_rate"]) == (0.25, 2 / 3, None)
    assert first["events_per_user"]["max"] == 2
    assert second["event_days"] == [
        {"ds": DAYS[0], "late": True, "events": 1, "labelled": 1, "positive": 1, "events_so_far": 5},
        {"ds": DAYS[1], "late": False, "events": 2, "labelled": 2, "positive": 1, "events_so_far": 2},
    ]
    assert first["event_days"][0]["events_so_far"] == 4  # what came later was not there yet
    assert third["event_days"] == []


def test_fields_by_hand(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    measured = measure(spark, lake, versions, DAYS[:2])
    rows = {r["column"]: r for r in fields(lake, measured.versions["profiles"], DAYS[1])}
    assert list(rows) == ["type", "f_device", "f_age", "f_tags"]
    assert [(r["rows"], r["missing"]) for r in rows.values()] == [(3, 0), (3, 1), (3, 1), (3, 1)]
    device, age, tags = rows["f_device"]["drift"], rows["f_age"]["drift"], rows["f_tags"]
    assert device["bins"] == ["phone", "tv", "(other)", "(missing)"]
    assert (device["reference"], device["current"]) == ([2, 1, 0, 1], [1, 0, 1, 1])
    assert age["bins"] == ["below 30", "30", "over 30 to 50", "above 50", "(missing)"]
    assert (age["reference"], age["current"]) == ([0, 2, 1, 0, 1], [0, 0, 2, 0, 1])
    assert (tags["drift"], tags["sketch"]["values"]) == (None, [["", 1], ["p", 1], ["q", 1]])
    # The side file was not there on the first day.
    assert [r["column"] for r in fields(lake, measured.versions["profiles"], DAYS[0])] == ["type", "f_device", "f_age"]


def test_one_by_one_equals_all_at_once(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    once = measure(spark, lake, versions, DAYS)
    stored = {d: fields(lake, once.versions["profiles"], d) for d in DAYS}
    before, done = None, []
    for day in DAYS:
        done.append(day)
        one = measure(spark, lake, versions, [day], before)
        assert one.figures == {day: once.figures[day]}
        assert fields(lake, one.versions["profiles"], day) == stored[day]
        before = after(one, list(done))


def test_an_unchanged_side_file_is_not_read_again(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    two = measure(spark, lake, versions, DAYS[:2])
    for file in lake.files("item_features", versions["item_features"]):
        with open(file, "wb"):  # a reader would fail
            pass
    third = measure(spark, lake, versions, DAYS[2:], after(two, DAYS[:2]))
    tags = fields(lake, third.versions["profiles"], DAYS[2])[-1]
    assert (tags["column"], tags["psi"], tags["level"]) == ("f_tags", 0.0, "stable")


def test_earlier_events_are_not_read(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    one = measure(spark, lake, versions, DAYS[:1])
    for file in lake.files("events", versions["events"], {"arrival": DAYS[0]}):
        with open(file, "wb"):
            pass
    two = measure(spark, lake, versions, DAYS[1:2], after(one, DAYS[:1]))
    assert two.figures[DAYS[1]]["new_users"] == 1


def test_what_another_command_changed_is_put_back(spark: SparkSession, lake: Lake, versions: dict[str, int]) -> None:
    one = measure(spark, lake, versions, DAYS[:1])
    stranger = [{"arrival": DAYS[0], "kind": "user", "key": k} for k in ("cem", "eve")]
    put(lake, FIRST_SEEN, stranger)
    two = measure(spark, lake, versions, DAYS[1:2], after(one, DAYS[:1]))
    assert two.figures[DAYS[1]]["new_users"] == 1  # cem is new: the stranger's row was never published
    keys = {r["key"] for r in lake.read(FIRST_SEEN.name, two.versions[FIRST_SEEN.name]).to_pylist()}
    assert keys == {"ann", "bob", "cem", "x", "y", "z"}
    assert lake.partitions(PROFILES.name, two.versions[PROFILES.name], "arrival") == DAYS[:2]
