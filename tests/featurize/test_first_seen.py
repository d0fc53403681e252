"""Users and items never seen before, against sets; quantiles of events per user against numpy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from featurize import first_seen
from featurize.first_seen import spread
from infra.commit import commit
from infra.lake import Lake
from infra.tables import FIRST_SEEN

#: arrival -> (user, item) of its events; ids that look alike are different ones, and an item may be named as a user.
LOG = {
    "d1": [("u1", "a"), ("u1", "b"), ("u1", "a"), ("U1", "a")],
    "d2": [("u1", "a"), ("u2", "u1"), ("é", "b"), ("e\u0301", "b")],
    "d3": [("u2", "a")],
    "d4": [("u3", "c"), ("u2", "c"), ("U1", "c")],
}
NEW = {
    "d1": ({"u1", "U1"}, {"a", "b"}),
    "d2": ({"u2", "é", "e\u0301"}, {"u1"}),
    "d3": (set(), set()),
    "d4": ({"u3"}, {"c"}),
}


def run(spark: SparkSession, lake: Lake, batches: list[list[str]]) -> dict[str, first_seen.KeyCounts]:
    out: dict[str, first_seen.KeyCounts] = {}
    version, done = None, list[str]()
    for batch in batches:
        log = spark.createDataFrame(
            [(d, *e) for d in batch for e in LOG[d]], "arrival string, user string, item string"
        )
        counts, files = first_seen.count(spark, lake, log, batch, (version, done) if version is not None else None)
        version = commit(lake, FIRST_SEEN, files, replace={"arrival": batch}, metadata={})
        done, out = [*done, *batch], {**out, **counts}
    assert version is not None
    stored = lake.read(FIRST_SEEN.name, version).to_pylist()
    for day, (users, items) in NEW.items():
        found = {k: {r["key"] for r in stored if (r["arrival"], r["kind"]) == (day, k)} for k in ("user", "item")}
        assert found == {"user": users, "item": items}
    assert len(stored) == sum(len(users) + len(items) for users, items in NEW.values())
    return out


def test_each_key_is_new_once_however_the_arrivals_are_batched(spark: SparkSession, lake: Lake) -> None:
    daily = run(spark, lake, [[d] for d in LOG])
    assert daily == run(spark, Lake(lake.root / "other"), [["d1"], ["d2", "d3", "d4"]])
    assert {d: (c.new["user"], c.new["item"]) for d, c in daily.items()} == {
        d: (len(users), len(items)) for d, (users, items) in NEW.items()
    }
    assert daily["d1"].distinct == {"user": 2, "item": 2}
    assert daily["d1"].events_per_user == {"min": 1, "p10": 1, "p50": 1, "p90": 3, "p99": 3, "max": 3, "mean": 2.0}


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200))
def test_quantiles(events: list[int]) -> None:
    counts = {n: events.count(n) for n in set(events)}
    found = spread(counts)
    assert found is not None
    for percent in first_seen.PERCENTILES:
        assert found[f"p{percent}"] == np.quantile(events, percent / 100, method="inverted_cdf")
    assert (found["min"], found["max"]) == (min(events), max(events))
    assert found["mean"] == sum(events) / len(events)


def test_no_users_no_quantiles() -> None:
    assert spread({}) is None
