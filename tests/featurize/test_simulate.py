"""The simulator keeps its own promises: truth.json against a plain recount of the files."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from featurize.simulate import simulate
from infra.errors import UsageError
from tests.featurize.simulated import accounted, recount

BESIDE = {
    *("missing_by_group", "bots", "hot_user", "time_units", "clock_skew", "schema_change", "oracle"),
}
"""What truth.json says beside the counts; each has its own test file."""


@pytest.mark.parametrize(
    ("users", "items", "days", "seed"),
    [(1, 10, 3, 0), (60, 30, 3, 1), (80, 40, 5, 2), (250, 60, 8, 3), (150, 60, 8, 4)],
)
def test_truth_is_what_a_plain_reader_counts(tmp_path: Path, users: int, items: int, days: int, seed: int) -> None:
    truth = simulate(tmp_path, users=users, items=items, days=days, seed=seed)
    assert json.loads((tmp_path / "truth.json").read_text()) == truth
    counted, rows = recount(tmp_path)
    arguments = {"seed": seed, "users": users, "items": items, "days": days, "start": "2026-01-01"}
    assert {name: value for name, value in truth.items() if name not in BESIDE} == arguments | counted
    assert set(truth) >= BESIDE
    for account in (*truth["arrivals"].values(), truth | {"quarantined": sum(truth["quarantined"].values())}):
        assert account["rows"] == account["events"] + account["duplicates"] + account["quarantined"]
    assert all(row["event"] in {"click", "impression"} for row in rows)


@pytest.mark.parametrize("options", [{"hot_user": 0.1}, {"bots": 0.1}, {"bots": 0.0}, {"hot_user": 0.5, "bots": 0.02}])
def test_truth_holds_with_every_option(tmp_path: Path, options: dict[str, Any]) -> None:
    truth = simulate(tmp_path, users=60, items=30, days=5, seed=6, **options)
    counted, _ = recount(tmp_path)
    assert {name: truth[name] for name in counted} == counted


def test_every_defect_occurs_at_its_share(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=400, items=60, days=7, seed=5, start=date(2024, 2, 26))
    rows, bad = truth["rows"], truth["quarantined"]
    assert list(truth["arrivals"]) == sorted(truth["arrivals"])
    assert list(truth["arrivals"])[3] == "2024-02-29"
    assert truth["duplicates"] / rows == pytest.approx(0.01, abs=0.001)
    assert truth["late"] / rows == pytest.approx(0.011, abs=0.002)
    assert bad.pop("too_late") / rows == pytest.approx(0.0025, abs=0.0005)
    assert bad.pop("from_the_future") / rows == pytest.approx(0.0005, abs=0.0002)
    assert bad.pop("id_conflict") / rows == pytest.approx(0.001, abs=0.0002)
    assert sum(bad.values()) / rows == pytest.approx(0.01, abs=0.001)


def test_a_log_of_a_few_hundred_rows_has_one_of_each_defect(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=12, items=20, days=7, seed=0)
    assert 300 <= truth["rows"] <= 700
    assert min(truth["duplicates"], truth["late"], *truth["quarantined"].values()) >= 1


def test_no_arrival_of_a_small_log_is_bad_enough_to_be_refused(tmp_path: Path) -> None:
    """The contract's threshold is 5 % of an arrival's rows."""
    for seed in range(6):
        truth = simulate(tmp_path / str(seed), users=60, items=30, days=4, seed=seed)
        assert all(day["quarantined"] <= 0.05 * day["rows"] for day in truth["arrivals"].values())


def test_bad_rows_take_every_form(tmp_path: Path) -> None:
    simulate(tmp_path, users=600, items=40, days=6, seed=2)
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for _, fate, row, _ in accounted(tmp_path):
        column = {"null_user": "user_id", "null_item": "item_id", "bad_time": "time", "bad_field": "price"}
        if fate in column:
            forms[fate].add(repr(row.get(column[fate], "absent")))
    assert forms["null_user"] == forms["null_item"] == {"None", "'absent'"}
    assert forms["bad_time"] == {"'absent'", "None", "'yesterday'", "29453760"}
    assert forms["bad_field"] == {"'cheap'"}


def test_a_conflict_differs_in_one_column_and_never_stands_first(tmp_path: Path) -> None:
    simulate(tmp_path, users=900, items=40, days=6, seed=2)
    kept: dict[str, dict[str, Any]] = {}
    differing, places = Counter[str](), Counter[str]()
    for arrival, fate, row, _ in accounted(tmp_path):
        if fate == "event":
            kept[row["event_id"]] = row | {"arrival": arrival}
        elif fate == "id_conflict":
            first = kept[row["event_id"]]
            places["same day" if first.pop("arrival") == arrival else "later"] += 1
            (column,) = [name for name in {**row, **first} if row.get(name) != first.get(name)]
            differing[column] += 1
    assert set(differing) == {"user_id", "item_id", "event", "price"}
    assert set(places) == {"same day", "later"}


def tree(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, users=40, items=20, days=3, seed=seed)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    zipped = [data for name, data in tree(tmp_path / "a").items() if name.endswith(".gz")]
    assert {data[4:8] for data in zipped} == {bytes(4)}, "a gzip header holds the time of writing"
    other = tree(tmp_path / "c")
    assert set(other) == set(tree(tmp_path / "a"))
    assert all(other[name] != data for name, data in tree(tmp_path / "a").items())


@pytest.mark.parametrize(("name", "value"), [("users", 0), ("items", 9), ("days", 2), ("seed", -1), ("days", -3)])
def test_counts_too_small_are_refused_and_named(tmp_path: Path, name: str, value: int) -> None:
    arguments: dict[str, Any] = {"users": 5, "items": 10, "days": 3, "seed": 0} | {name: value}
    with pytest.raises(UsageError, match=rf"{name} is {value}; it must be at least"):
        simulate(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bots": -0.1}, "bots is -0.1; it is a share from 0 to 0.5"),
        ({"hot_user": 1.0}, "hot_user is 1.0; it is a share from 0 to 0.9"),
        ({"hot_user": float("nan")}, "hot_user is nan"),
        ({"hot_user": 0.1, "users": 2}, "hot_user needs other users"),
        ({"schema_change": 1}, "schema_change is 1; name an arrival day from 2 to 3"),
        ({"schema_change": 4}, "schema_change is 4"),
    ],
)
def test_options_out_of_range_are_refused_and_named(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        simulate(tmp_path / "out", **({"users": 5, "items": 10, "days": 3, "seed": 0} | arguments))
    assert not (tmp_path / "out").exists()


def test_an_occupied_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="not an empty directory"):
            simulate(out, users=5, items=10, days=3, seed=0)
    assert tree(tmp_path) == {"mine.txt": b"keep"}


def test_the_demo_s_log_takes_seconds(tmp_path: Path) -> None:
    started = time.process_time()
    simulate(tmp_path, users=1500, items=400, days=10, seed=7)
    assert time.process_time() - started < 15
