"""featurize/machines.py: bots and the hot user, as the files show them."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from featurize.machines import BOT, HOT, cast
from featurize.simulate import simulate
from tests.featurize.simulated import recount


@pytest.mark.parametrize(
    ("users", "share", "expected"), [(199, 0.002, 0), (200, 0.002, 1), (1000, 0.005, 5), (1000, 0, 0), (40, 0.05, 2)]
)
def test_number_of_bots(users: int, share: float, expected: int) -> None:
    chosen = cast(users, share, True, np.random.default_rng(1))
    assert len(chosen.of_kind(BOT)) == expected
    assert len(chosen.of_kind(HOT)) == 1
    assert chosen.humans.sum() == users - expected - 1


def test_bots_are_counted_and_do_what_no_person_does(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=250, items=50, days=10, seed=3, bots=0.02)
    rows = recount(tmp_path)[1]
    bots = truth["bots"]
    assert len(bots["user_ids"]) == 5
    mine = [row for row in rows if row["user_id"] in bots["user_ids"]]
    assert bots["events"] == len(mine)
    assert bots["arrivals"] == Counter(row["arrival"] for row in mine)
    bursts = defaultdict(list)
    for row in mine:
        bursts[row["user_id"], row["arrival"]].append(row["time"])
    whole = [times for times in bursts.values() if len(times) > 20]  # others arrived late, by themselves
    assert len(whole) == 10, "a fifth of ten days for each of five"
    for times in whole:
        assert 130 <= len(times) <= 300
        gaps = Counter(b - a for a, b in pairwise(times))
        (gap, count), *_ = gaps.most_common(1)
        assert 5000 <= gap <= 60_000
        assert count > 0.85 * len(times), "regular, but for the rows that defects have taken"
    items = Counter(row["item_id"] for row in mine)
    assert max(items.values()) < 2 * len(mine) / 50
    people = Counter(row["item_id"] for row in rows if row["user_id"] not in bots["user_ids"])
    assert max(people.values()) > 2.5 * people.total() / 50


def test_no_bots(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=250, items=50, days=3, seed=3, bots=0)
    assert truth["bots"] == {"user_ids": [], "events": 0, "arrivals": {}}
    assert truth["hot_user"] == {"user_ids": [], "events": 0, "arrivals": {}}


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_hot_user_has_that_share_of_all_events_and_of_every_day(tmp_path: Path, share: float) -> None:
    truth = simulate(tmp_path, users=120, items=50, days=5, seed=3, hot_user=share)
    counted, rows = recount(tmp_path)
    (hot,) = truth["hot_user"]["user_ids"]
    per_user = Counter(row["user_id"] for row in rows)
    assert per_user.most_common(1) == [(hot, truth["hot_user"]["events"])]
    assert per_user[hot] / len(rows) == pytest.approx(share, abs=0.01)
    for arrival, count in truth["hot_user"]["arrivals"].items():
        assert count / counted["arrivals"][arrival]["events"] == pytest.approx(share, abs=0.03)
