"""featurize/oracle.py: its chances against the generator's own draws, its questions by hand and from the files."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from datetime import date
from typing import Any

import numpy as np
import pytest

from featurize import oracle as module
from featurize.behaviour import DAY_MS, Catalogue, Log, click_logit, play, shown, sigmoid
from featurize.clocks import Clocks
from featurize.machines import BOT, HOT, HUMAN, Cast, next_shown, play_hot
from featurize.oracle import next_click, next_shown_to, questions
from featurize.simulate import simulate
from featurize.world import CHANNEL_SHARES, World, draw_world
from tests.featurize.simulated import day_of, recount

DAY, RUNS = 3, 200_000


@pytest.fixture(scope="module")
def world() -> World:
    return draw_world(12, 15, 5, np.random.default_rng(4))


def states(world: World) -> list[tuple[int, int, np.ndarray]]:
    """(user, clicked last, shown last) of some users: nothing yet, a few things, a full memory."""
    rng = np.random.default_rng(9)
    on_sale = np.flatnonzero(world.items.launched_I <= DAY)
    few = np.array([on_sale[0], -1, -1, -1, -1, -1])
    full = [(user, int(rng.choice(on_sale)), rng.choice(on_sale, 6)) for user in (2, 3)]
    return [(0, -1, np.full(6, -1)), (1, int(on_sale[0]), few), *full]


def repeated(state: tuple[int, int, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, last, recent = state
    return np.full(RUNS, user), np.full(RUNS, last), np.tile(recent, (RUNS, 1))


def agrees(drawn: np.ndarray, chance_I: np.ndarray, runs: int) -> bool:
    """Every item's frequency within five standard deviations."""
    share_I = np.bincount(drawn, minlength=len(chance_I)) / runs
    return bool((np.abs(share_I - chance_I) <= 5 * np.sqrt(chance_I * (1 - chance_I) / runs) + 1e-12).all())


@pytest.mark.parametrize("which", range(4))
def test_what_is_shown_next_as_drawn(world: World, which: int) -> None:
    state, rng = states(world)[which], np.random.default_rng(which)
    user_A, last_A, recent_AB = repeated(state)
    drawn = shown(Catalogue(world.items, DAY), world.users.interest(DAY)[user_A], last_A, recent_AB, rng)
    (chance_I,) = next_shown_to(world, DAY, user_A[:1], last_A[:1], recent_AB[:1])
    assert chance_I.sum() == pytest.approx(1)
    assert agrees(drawn, chance_I, RUNS)


def play_to_first_click(world: World, state: tuple[int, int, np.ndarray], steps: int, seed: int) -> np.ndarray:
    """The first item clicked within `steps`, in those of RUNS sessions that have one: the generator's own draws."""
    rng = np.random.default_rng(seed)
    user_A, last_A, recent_AB = repeated(state)
    users = world.users
    stray_A = rng.random(RUNS) < 0.2
    device_A = np.where(stray_A, rng.integers(0, 4, RUNS), users.device_U[user_A])
    clicked, catalogue = [], Catalogue(world.items, DAY)
    for _ in range(steps):
        interest_AC = users.interest(DAY)[user_A]
        item_A = shown(catalogue, interest_AC, last_A, recent_AB, rng)
        channel_A = rng.choice(4, len(user_A), p=CHANNEL_SHARES)
        context_A = world.comfort_VH[device_A, channel_A] + users.taste_U[user_A]
        context_A -= world.thrift_G[users.segment_U[user_A]] * world.dearness(world.price_DI[DAY][item_A])
        logit_A = click_logit(world.items, interest_AC, np.arange(len(user_A)), last_A, item_A, context_A)
        hit_A = rng.random(len(user_A)) < sigmoid(logit_A)
        clicked.append(item_A[hit_A])
        recent_AB = np.column_stack([recent_AB[:, 1:], item_A])[~hit_A]
        user_A, last_A, device_A = user_A[~hit_A], last_A[~hit_A], device_A[~hit_A]
    return np.concatenate(clicked)


@pytest.mark.parametrize("which", range(4))
def test_next_click_as_drawn(world: World, which: int) -> None:
    """Less than a hundredth of the mass is off: what gives way to what was not clicked is averaged, not followed."""
    state = states(world)[which]
    (chance_I,) = next_click(world, DAY, np.array([state[0]]), np.array([state[1]]), state[2][None])
    drawn = play_to_first_click(world, state, 14, which)
    share_I = np.bincount(drawn, minlength=15) / len(drawn)
    assert chance_I.sum() == pytest.approx(1)
    assert np.abs(share_I - chance_I).sum() / 2 < 0.01
    for k in (1, 3, 5):
        best = np.sort(share_I)[-k:].sum()
        assert share_I[np.argsort(-chance_I, kind="stable")[:k]].sum() > 0.97 * best


def test_next_click_of_machines_as_drawn(world: World) -> None:
    kind_U = np.full(12, HUMAN)
    kind_U[5] = HOT
    rng = np.random.default_rng(3)
    others = play(world, kind_U == HUMAN, rng)
    (hot,) = [play_hot(world, Cast(kind_U), others, 0.999, rng)[DAY]]
    chance_I = next_shown(world, HOT, DAY)
    assert agrees(hot.item_N, chance_I, len(hot.item_N))
    assert agrees(hot.item_N[hot.clicked_N], chance_I, int(hot.clicked_N.sum()))
    on_sale = world.items.launched_I <= DAY
    assert next_shown(world, BOT, DAY) == pytest.approx(on_sale / on_sale.sum())


def by_hand() -> tuple[Log, Clocks]:
    """User 0 with history and target, user 1 without history, user 2 three hours ahead, user 3 silent on day 2."""
    hour = DAY_MS // 24
    rows = [  # (time, user, item, clicked)
        (1 * hour, 0, 5, True),
        (2 * hour, 0, 6, False),
        (3 * hour, 3, 1, True),
        (26 * hour, 0, 7, True),
        (27 * hour, 2, 4, True),
        (46 * hour, 2, 2, False),  # logged at 49 h: on day 2 already
        (47 * hour, 2, 3, True),
        (49 * hour, 0, 8, False),
        (50 * hour, 0, 7, True),  # lost
        (51 * hour, 0, 9, True),
        (52 * hour, 0, 5, True),
        (53 * hour, 1, 6, True),
    ]
    time_N, user_N, item_N, clicked_N = (np.array(column) for column in zip(*rows, strict=True))
    zero_N = np.zeros(len(rows), np.int64)
    log = Log(time_N, zero_N, user_N, item_N, clicked_N, zero_N, zero_N, np.ones(len(rows)))
    skew_U = np.array([0, 0, 3 * hour, 0])
    logged_N = time_N + skew_U[user_N]
    return log, Clocks(skew_U, logged_N, logged_N, zero_N)


KEPT = np.array([n for n in range(12) if n != 8])
"""What is accepted of `by_hand`."""


def test_questions_by_hand() -> None:
    log, clocks = by_hand()
    first, second = questions(log, clocks, KEPT, 2)
    assert (first.user, first.target, first.history.tolist(), first.day, first.last) == (0, 9, [5, 7], 2, 7)
    assert first.recent_B.tolist() == [5, 6, 7, -1, -1, -1]
    assert (second.user, second.target, second.history.tolist(), second.day, second.last) == (2, 3, [4], 1, 4)
    assert second.recent_B.tolist() == [4, -1, -1, -1, -1, -1]


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Scores rank the items 5, 9, 8 (tied with 9, lower number first: 8, 9) and 3.

    User 0 (history 5, 7; target 9) stands at rank 3, and at 2 without the history; the target 3 of user 2
    was clicked by nobody on day 0: a miss.
    """
    log, clocks = by_hand()
    score_I = np.zeros(15)
    score_I[[5, 9, 8, 3]] = [0.4, 0.3, 0.3, 0.2]
    monkeypatch.setattr(module, "_scores", lambda world, cast, asked: [score_I] * len(asked))
    short = World(world.users, world.items, world.price_DI[:3], world.comfort_VH, world.thrift_G)
    log.item_N[2] = 9  # clicked on day 0
    found = module.oracle(short, log, clocks, KEPT, Cast(np.zeros(4, np.int64)), date(2026, 1, 1))
    assert found["date"] == "2026-01-03"
    assert found["targets"] == found["evaluated"] == 2
    assert found["targets_unseen_share"] == 0.5
    for name, rank in (("all_items", 3), ("history_removed", 2)):
        assert found[name] == {
            "users": 2,
            **{f"hr_at_{k}": 0.5 for k in (5, 10, 20)},
            **{f"ndcg_at_{k}": pytest.approx(0.5 / math.log2(rank + 1)) for k in (5, 10, 20)},
        }
    log.item_N[9] = 7  # user 0 clicks again what is in the history
    found = module.oracle(short, log, clocks, KEPT, Cast(np.zeros(4, np.int64)), date(2026, 1, 1))
    assert (found["all_items"]["users"], found["history_removed"]["users"]) == (2, 1)


def test_nobody_to_ask_has_no_figures(world: World) -> None:
    log, clocks = by_hand()
    found = module.oracle(world, log, clocks, KEPT[:0], Cast(np.zeros(4, np.int64)), date(2026, 1, 1))
    assert found["targets"] == 0
    assert found["all_items"] == found["history_removed"]
    assert {found["targets_unseen_share"], *found["all_items"].values()} == {0, None}


class TestWholeLog:
    """A log of a thousand users: targets recounted from the files, and what the figures mean."""

    @pytest.fixture(scope="class")
    def found(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        root = tmp_path_factory.mktemp("log")
        simulate(root, users=1000, items=200, days=6, seed=8)
        truth = json.loads((root / "truth.json").read_text())
        return truth, recount(root)[1]

    def test_users_and_unseen_targets_are_those_of_the_files(
        self, found: tuple[dict[str, Any], list[dict[str, Any]]]
    ) -> None:
        truth, rows = found
        history, target = defaultdict(list), dict[str, str]()
        trained = {row["item_id"] for row in rows if row["event"] == "click" and day_of(row) < "2026-01-05"}
        for row in rows:
            if row["event"] == "click" and day_of(row) < "2026-01-06":
                history[row["user_id"]].append(row["item_id"])
            elif row["event"] == "click" and day_of(row) == "2026-01-06":
                target.setdefault(row["user_id"], row["item_id"])
        asked = {user: item for user, item in target.items() if user in history}
        assert truth["oracle"]["date"] == "2026-01-06"
        assert truth["oracle"]["targets"] == truth["oracle"]["evaluated"] == len(asked)
        assert truth["oracle"]["all_items"]["users"] == len(asked)
        unseen = sum(item not in trained for item in asked.values()) / len(asked)
        assert truth["oracle"]["targets_unseen_share"] == pytest.approx(unseen)
        removed = sum(item not in history[user] for user, item in asked.items())
        assert truth["oracle"]["history_removed"]["users"] == removed

    def test_it_beats_what_the_log_alone_tells(self, found: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        """Markov chain of clicks with popularity behind it, learnt on the days before: far above chance, below."""
        truth, rows = found
        popular: dict[str, int] = defaultdict(int)
        after: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        last: dict[str, str] = {}
        hits, count = 0, 0
        asked: set[str] = set()
        for row in rows:
            if row["event"] != "click":
                continue
            user, item = row["user_id"], row["item_id"]
            if day_of(row) < "2026-01-06":
                popular[item] += 1
                if user in last:
                    after[last[user]][item] += 1
            elif day_of(row) == "2026-01-06" and user in last and user not in asked:
                asked.add(user)
                score = {i: after[last[user]][i] + popular[i] / 1e4 for i in popular}
                hits += item in sorted(score, key=lambda i: -score[i])[:20]
                count += 1
            last[user] = item
        assert 3 * 20 / 200 < hits / count < truth["oracle"]["all_items"]["hr_at_20"] - 0.05

    def test_figures_are_ordered_as_they_must_be(self, found: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        for figures in (found[0]["oracle"]["all_items"], found[0]["oracle"]["history_removed"]):
            rates = [figures[f"hr_at_{k}"] for k in (5, 10, 20)]
            gains = [figures[f"ndcg_at_{k}"] for k in (5, 10, 20)]
            assert 0 < rates[0] < rates[1] < rates[2] < 1
            assert gains == sorted(gains)
            assert all(gain < rate for gain, rate in zip(gains, rates, strict=True))


def test_its_chances_are_calibrated() -> None:
    """Over a whole log: the hit rate at K is the mass that the K best items have, for several K."""
    world = draw_world(3000, 60, 5, np.random.default_rng(1))
    log = play(world, np.full(3000, True), np.random.default_rng(2))
    clocks = Clocks(np.zeros(3000, np.int64), log.time_N, log.time_N, log.time_N * 0)
    asked = questions(log, clocks, np.arange(len(log.time_N)), 4)
    user_A, last_A = np.array([q.user for q in asked]), np.array([q.last for q in asked])
    chance_AI = next_click(world, 4, user_A, last_A, np.stack([q.recent_B for q in asked]))
    best_AI = np.argsort(-chance_AI, axis=1)
    row_A, target_A = np.arange(len(asked)), np.array([q.target for q in asked])
    for k in (1, 3, 10, 20):
        expected = np.take_along_axis(chance_AI, best_AI[:, :k], axis=1).sum(axis=1).mean()
        hit = (best_AI[row_A, :k] == target_A[:, None]).any(axis=1).mean()
        assert hit == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(asked)) + 0.01)
