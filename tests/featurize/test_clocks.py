"""featurize/clocks.py: units, skew and jumps, as the files show them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.clocks import UNIT_NAMES, read_clocks, whole_seconds, written
from featurize.simulate import simulate
from tests.featurize.simulated import accounted, day_of, physical_lines, verdict

DAY = 86_400_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("log")
    simulate(root, users=600, items=40, days=8, seed=12)
    return root


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "truth.json").read_text())
    return found


def test_each_device_has_its_unit_and_every_file_holds_all_four(folder: Path, truth: dict[str, Any]) -> None:
    """Digits of an integer near 1.7e9 seconds: 10 for s, 13, 16 and 19 for ms, us and ns."""
    units = {"phone": 13, "tablet": 10, "desktop": 16, "tv": 19}
    accepted = [row for _, fate, row, _ in accounted(folder) if fate == "event"]
    assert {(row["device"], row["digits"]) for row in accepted if row.get("device") is not None} == set(units.items())
    counted = Counter(row["digits"] for row in accepted)
    files: dict[str, set[int]] = {}
    for arrival, file, line in physical_lines(folder):
        reason, row, _ = verdict(line, arrival)
        if reason is None:
            files.setdefault(f"{arrival}/{file}", set()).add(row["digits"])
    assert set(map(frozenset, files.values())) == {frozenset(units.values())}
    assert truth["time_units"] == {"s": counted[10], "ms": counted[13], "us": counted[16], "ns": counted[19]}
    assert min(truth["time_units"].values()) > 0.05 * truth["events"]


def test_a_time_is_written_exactly_in_every_unit() -> None:
    ms = 1_767_225_600_123
    assert [written(ms, UNIT_NAMES.index(unit)) for unit in ("ms", "us", "ns")] == [ms, ms * 10**3, ms * 10**6]
    assert whole_seconds(np.array([1999, 1999]), np.array([1, 0])).tolist() == [1000, 1999]  # tablet, phone


def test_skew_is_one_offset_per_user_of_minutes_or_hours(truth: dict[str, Any]) -> None:
    skew = truth["clock_skew"]
    assert len(skew["user_ids"]) == len(skew["seconds"]) == 18  # 3 % of 600
    for seconds in skew["seconds"]:
        minutes, rest = divmod(abs(seconds), 60)
        assert rest == 0
        assert 1 <= minutes < 60 or (minutes % 60 == 0 and minutes <= 480)
    assert any(s > 3600 for s in skew["seconds"])
    assert any(s < -3600 for s in skew["seconds"])


def test_truth_counts_what_skewed_users_logged_and_on_which_dates(folder: Path, truth: dict[str, Any]) -> None:
    events = [(arrival, row) for arrival, fate, row, _ in accounted(folder) if fate == "event"]
    skew = truth["clock_skew"]
    mine = [(arrival, row) for arrival, row in events if row["user_id"] in skew["user_ids"]]
    assert skew["events"] == len(mine)
    assert skew["arrivals"] == Counter(arrival for arrival, _ in mine)
    seconds = dict(zip(skew["user_ids"], skew["seconds"], strict=True))
    moved = [
        row for _, row in mine if day_of(row) != day_of(row | {"time": row["time"] - 1000 * seconds[row["user_id"]]})
    ]
    assert skew["on_another_date"] == len(moved) > 0
    assert any(day_of(row) > arrival for arrival, row in mine), "ahead by less than a day: accepted"
    assert any(day_of(row) < arrival for arrival, row in mine), "behind: late"
    assert truth["event_dates"] == Counter(day_of(row) for _, row in events)


def test_jumps_lie_outside_every_window() -> None:
    rng = np.random.default_rng(0)
    time_N = rng.integers(0, 10 * DAY, 40_000)
    clocks = read_clocks(time_N, rng.integers(0, 300, 40_000), rng.integers(0, 4, 40_000), 300, rng)
    by = (clocks.logged_N - clocks.steady_N)[clocks.jumped]
    assert len(by) == 40
    assert sorted(np.unique(np.sign(by))) == [-1, 1]
    days = clocks.days - time_N // DAY
    assert set(np.unique(days[~clocks.jumped])) == {-1, 0, 1}
    # an arrival up to 2 days late still finds the first in the future, one on the day the other too late
    assert days[clocks.jumped & (clocks.logged_N > clocks.steady_N)].min() >= 2
    assert days[clocks.jumped & (clocks.logged_N < clocks.steady_N)].max() <= -4


def test_a_user_s_order_survives_skew_and_units(folder: Path) -> None:
    """Event numbers rise with the true time: so do a user's accepted times."""
    last: dict[str, tuple[int, str]] = {}
    rows = sorted((row["event_id"], row) for _, fate, row, _ in accounted(folder) if fate == "event")
    for number, row in rows:
        before = last.get(row["user_id"], (0, ""))
        assert (row["time"], number) > before
        last[row["user_id"]] = (row["time"], number)
