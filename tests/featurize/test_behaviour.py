"""featurize/behaviour.py: the structure that a model can learn is in the log, found without the generator's help."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from featurize.simulate import simulate
from tests.featurize.simulated import recount


class TestStructure:
    """The demo's size, cut to 700 users: what a model can learn, found without the generator's help."""

    @pytest.fixture(scope="class")
    def log(self, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
        """Accepted rows of people whose clocks are right, with what the side files know of item and user."""
        root = tmp_path_factory.mktemp("log")
        truth = simulate(root, users=700, items=300, days=10, seed=11)
        sides: dict[str, Any] = {}
        for name in ("items", "users"):
            lines = (root / f"{name}.jsonl").read_text().splitlines()
            sides |= {row[f"{name[:-1]}_id"]: row for row in map(json.loads, lines)}
        others = {*truth["bots"]["user_ids"], *truth["clock_skew"]["user_ids"]}
        people = [row for row in recount(root)[1] if row["user_id"] not in others]
        return [sides[row["item_id"]] | sides[row["user_id"]] | row for row in people]

    def test_clicks_are_35_to_45_percent_and_days_hold_8_to_14_events(self, log: list[dict[str, Any]]) -> None:
        assert 0.35 < np.mean([row["event"] == "click" for row in log]) < 0.45
        sizes = Counter((row["user_id"], row["time"] // 86_400_000) for row in log).values()
        assert max(sizes) <= 14
        assert 10 < np.mean(list(sizes)) < 11.5  # 11 less the few that defects have spoilt
        per_user = sorted(Counter(row["user_id"] for row in log).values())
        assert per_user[len(per_user) // 20] < 20
        assert per_user[-len(per_user) // 20] > 90

    def test_times_tie_now_and_then(self, log: list[dict[str, Any]]) -> None:
        per_user = Counter((row["user_id"], row["time"]) for row in log)
        assert 0.005 < sum(count > 1 for count in per_user.values()) / len(log) < 0.05

    def test_a_category_has_a_zipf_head(self, log: list[dict[str, Any]]) -> None:
        """25 items per category: 1/H_25 = 0.26 for the head where equal shares were 0.04; successors flatten it."""
        shown: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in log:
            if row.get("category") is not None:
                shown[row["category"]][row["item_id"]] += 1
        heads = [max(items.values()) / items.total() for items in shown.values()]
        assert len(heads) == 12
        assert np.mean(heads) > 0.12

    def test_interest_is_narrow_and_drifts(self, log: list[dict[str, Any]]) -> None:
        """Days 1-3 and 8-10 of a user differ by more than odd and even rows of the same days do."""
        first = log[0]["time"] // 86_400_000
        by_user: defaultdict[str, list[list[str]]] = defaultdict(lambda: [[], []])
        for row in log:
            day = row["time"] // 86_400_000 - first
            if row.get("category") is not None and (day < 3 or day >= 7):
                by_user[row["user_id"]][day >= 7].append(row["category"])

        def distance(some: list[str], others: list[str]) -> float:
            shares = [{c: n / len(side) for c, n in Counter(side).items()} for side in (some, others)]
            return sum(abs(shares[0].get(c, 0) - shares[1].get(c, 0)) for c in set(some) | set(others)) / 2

        busy = [(early[:20], late[:20]) for early, late in by_user.values() if min(len(early), len(late)) >= 20]
        assert len(busy) > 100
        drift = np.mean([distance(early, late) for early, late in busy])
        whole = [early + late for early, late in busy]
        chance = np.mean([distance(both[::2], both[1::2]) for both in whole])
        assert drift > chance + 0.08
        assert np.mean([Counter(early).most_common(1)[0][1] / len(early) for early, _ in busy]) > 0.3

    def test_successors_lift_the_next_item_over_chance(self, log: list[dict[str, Any]]) -> None:
        """The four commonest followers of the last click, learnt on half of the users, in the other half."""
        seen: tuple[defaultdict[str, Counter[str]], list[tuple[str, str]]] = (defaultdict(Counter), [])
        last: dict[str, str] = {}
        for row in log:
            before = last.get(row["user_id"])
            if before is not None and int(row["user_id"][1:]) % 2:
                seen[0][before][row["item_id"]] += 1
            elif before is not None:
                seen[1].append((before, row["item_id"]))
            if row["event"] == "click":
                last[row["user_id"]] = row["item_id"]
        popular = [item for item, _ in sum(seen[0].values(), Counter()).most_common(4)]
        followed = np.mean([i in [j for j, _ in seen[0][b].most_common(4)] for b, i in seen[1]])
        chance = np.mean([i in popular for _, i in seen[1]])
        assert followed > 0.3
        assert followed > 4 * chance

    def test_each_kind_of_feature_moves_the_click_rate(self, log: list[dict[str, Any]]) -> None:
        """Chi-square of clicks over groups against independence: mean k - 1, deviation sqrt(2 (k - 1))."""

        def surprise(group: dict[int, Any]) -> float:
            rate = np.mean([log[i]["event"] == "click" for i in group])
            clicks: defaultdict[Any, list[bool]] = defaultdict(list)
            for i, key in group.items():
                clicks[key].append(log[i]["event"] == "click")
            chi = sum((sum(c) - rate * len(c)) ** 2 / (len(c) * rate * (1 - rate)) for c in clicks.values())
            return (chi - (len(clicks) - 1)) / math.sqrt(2 * (len(clicks) - 1))

        def groups(*names: str) -> dict[int, Any]:
            known = [i for i, row in enumerate(log) if all(row.get(name) is not None for name in names)]
            return {
                i: tuple(log[i][n] if isinstance(log[i][n], str) else log[i][n] > cut[n] for n in names) for i in known
            }

        cut = {"price": 20.0, "quality": 3.0, "joined": 250, "age": 50}
        for names in (("device", "channel"), ("segment", "price"), ("quality",), ("country",), ("joined",)):
            assert surprise(groups(*names)) > 10, names
        placebo = {i: int(row["event_id"][1:]) % 7 for i, row in enumerate(log)}
        assert abs(surprise(placebo)) < 4
        # Interest follows the segment, and age tells the segment: a missing one can be filled in.
        both = [row for row in log if row.get("age") is not None and row.get("segment") is not None]
        assert np.mean([(row["age"] > 56) == (row["segment"] == "senior") for row in both]) > 0.9
