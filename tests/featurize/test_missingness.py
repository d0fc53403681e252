"""featurize/missingness.py: rates by group as documented, and truth.json's counts against the files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from featurize.missingness import MISSING_RATES, NOT_AT_RANDOM
from featurize.simulate import simulate
from tests.featurize.simulated import LOG_FIELDS, recount


def rate_of(rows: list[dict[str, Any]], name: str, rate: float) -> None:
    """Half of what is missing is absent, half null, within five standard deviations."""
    five_sigma = 5 * math.sqrt(rate / 2 * (1 - rate / 2) / len(rows))
    assert sum(name not in row for row in rows) / len(rows) == pytest.approx(rate / 2, abs=five_sigma), name
    null = sum(name in row and row[name] is None for row in rows) / len(rows)
    assert null == pytest.approx(rate / 2, abs=five_sigma), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("log")
    simulate(root, users=2000, items=2000, days=3, seed=6)
    return root


@pytest.fixture(scope="module")
def log(folder: Path) -> list[dict[str, Any]]:
    return recount(folder)[1]


def test_fields_missing_at_random_are_half_absent_half_null(folder: Path, log: list[dict[str, Any]]) -> None:
    rows = {"log": log}
    for name in ("items", "users"):
        rows[name] = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    assert len(rows["items"]) == len(rows["users"]) == 2000
    fields = dict.fromkeys(("category", "tags", "quality"), "items") | dict.fromkeys(("segment", "joined"), "users")
    fields |= dict.fromkeys(("device", "channel"), "log")
    assert set(fields) == set(MISSING_RATES) - {"app_version"}
    assert set(NOT_AT_RANDOM) == set(LOG_FIELDS) - set(fields)
    for name, source in fields.items():
        assert 0.05 <= MISSING_RATES[name] <= 0.3
        rate_of(rows[source], name, MISSING_RATES[name])
    tags = [row["tags"] for row in rows["items"] if row.get("tags") is not None]
    assert {len(of_item) for of_item in tags} == {0, 1, 2, 3}


def test_country_is_missing_by_device(log: list[dict[str, Any]]) -> None:
    """Also where the device is missing: only a tv writes nanoseconds, 19 digits."""
    rate_of([row for row in log if row["digits"] == 19], "country", 0.40)
    rate_of([row for row in log if row["digits"] != 19], "country", 0.09)


def test_age_is_missing_by_the_age_itself(log: list[dict[str, Any]]) -> None:
    """A user has one age, so other rows tell what a missing one is."""
    age_of = {row["user_id"]: row["age"] for row in log if row.get("age") is not None}
    known = [row for row in log if row["user_id"] in age_of]
    assert len(known) > 0.98 * len(log)
    # users known by few rows are those that are rarely missing: a little below the chance
    young = [row for row in known if age_of[row["user_id"]] < 30]
    assert sum(row.get("age") is None for row in young) / len(young) == pytest.approx(0.45, abs=0.02)
    older = [row for row in known if age_of[row["user_id"]] >= 30]
    assert sum(row.get("age") is None for row in older) / len(older) == pytest.approx(0.18, abs=0.02)


def test_price_is_missing_by_the_price_itself(log: list[dict[str, Any]]) -> None:
    """An item has one price on a day, so other rows of the day tell what a missing one is."""

    def key(row: dict[str, Any]) -> tuple[str, int]:
        return row["item_id"], int(row["event_id"][1:]) * 3 // len(log)  # events are numbered in the order of time

    prices = {key(row): row["price"] for row in log if row.get("price") is not None}
    known = [row for row in log if key(row) in prices]
    dear, cheap = (
        [row for row in known if (prices[key(row)] > 25) is above and not 24 < prices[key(row)] < 33]
        for above in (True, False)
    )
    assert min(len(dear), len(cheap)) > 2000
    assert sum(row.get("price") is None for row in dear) / len(dear) == pytest.approx(0.22, abs=0.03)
    assert sum(row.get("price") is None for row in cheap) / len(cheap) == pytest.approx(0.05, abs=0.02)


def test_truth_by_group_adds_up_to_the_totals(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    assert set(truth["missing_by_group"]) == set(NOT_AT_RANDOM)
    for name, of_field in truth["missing_by_group"].items():
        groups = [group for group in of_field.values() if isinstance(group, dict)]
        assert sum(group["events"] for group in groups) == truth["events"]
        assert sum(group["missing"] for group in groups) == truth["missing"][name]
        for group in groups:
            sigma = math.sqrt(group["chance"] * (1 - group["chance"]) * group["events"])
            assert abs(group["missing"] - group["chance"] * group["events"]) < 5 * sigma


def test_truth_by_group_is_counted_exactly(folder: Path, log: list[dict[str, Any]]) -> None:
    """Where every row tells its group: only a tv writes nanoseconds, 19 digits."""
    truth = json.loads((folder / "truth.json").read_text())["missing_by_group"]["country"]
    for group, rows in (
        ("tv", [row for row in log if row["digits"] == 19]),
        ("other devices", [row for row in log if row["digits"] != 19]),
    ):
        assert truth[group]["events"] == len(rows)
        assert truth[group]["missing"] == sum(row.get("country") is None for row in rows)
