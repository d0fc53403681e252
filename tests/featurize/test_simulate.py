"""The simulator keeps its own promises: truth.json against a naive recount, and the structure is there."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.defects import DUPLICATE, LATE, MISSING_RATES, Plan, plan
from featurize.simulate import simulate
from infra.errors import UsageError

LOG_FIELDS = ("device", "country", "age", "price", "channel")
REASONS = {"malformed", "empty_line", "null_user", "null_item", "bad_time", "bad_field", "too_late"}


def physical_lines(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """(arrival, file, line) in the order in which the lower one wins."""
    for file in sorted(root.glob("events/*/*")):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert not data or data.endswith(b"\n")
        for line in data.split(b"\n")[:-1]:
            yield file.parent.name, file.name, line


def verdict(line: bytes, arrival: str) -> tuple[str | None, dict[str, Any], int]:
    """The reason to refuse a line (None: valid), its row, and how many days after its event it came."""
    if not line:
        return "empty_line", {}, 0
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return "malformed", {}, 0
    if row.get("user_id") is None:
        return "null_user", row, 0
    if row.get("item_id") is None:
        return "null_item", row, 0
    if type(row.get("time")) is not int:
        return "bad_time", row, 0
    if isinstance(row.get("price"), str):
        return "bad_field", row, 0
    day = datetime.fromtimestamp(row["time"] / 1000, UTC).date()
    age = (date.fromisoformat(arrival) - day).days
    return ("too_late" if age > 3 else None), row, age


def recount(root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What truth.json should say of the log, and the accepted rows in the order of (time, event_id)."""
    arrivals: dict[str, Counter[str]] = {directory.name: Counter() for directory in (root / "events").iterdir()}
    reasons = dict.fromkeys(REASONS, 0)
    kept: dict[str, dict[str, Any]] = {}
    for arrival, _, line in physical_lines(root):
        here = arrivals[arrival]
        here["rows"] += 1
        reason, row, age = verdict(line, arrival)
        if reason is not None:
            here["quarantined"] += 1
            reasons[reason] += 1
            continue
        assert age >= 0, "an event may not lie after its arrival day"
        if row["event_id"] in kept:
            here["duplicates"] += 1
            assert kept[row["event_id"]] == row, "copies are exact"
        else:
            here["events"] += 1
            here["late"] += age > 0
            kept[row["event_id"]] = row
    rows = sorted(kept.values(), key=lambda row: (row["time"], row["event_id"]))
    names = ("rows", "events", "duplicates", "quarantined", "late")
    counted: dict[str, Any] = {name: sum(day[name] for day in arrivals.values()) for name in names}
    counted["quarantined"] = reasons
    counted["arrivals"] = {day: {name: count[name] for name in names} for day, count in arrivals.items()}
    counted["clicks"] = sum(row["event"] == "click" for row in rows)
    counted["missing"] = {name: sum(row.get(name) is None for row in rows) for name in LOG_FIELDS}
    counted["users_seen"] = len({row["user_id"] for row in rows})
    counted["items_seen"] = len({row["item_id"] for row in rows})
    return counted, rows


@pytest.mark.parametrize(
    ("users", "items", "days", "seed"),
    [(1, 10, 3, 0), (60, 30, 3, 1), (80, 40, 5, 2), (150, 60, 8, 3), (150, 60, 8, 4)],
)
def test_truth_is_what_a_naive_reader_counts(tmp_path: Path, users: int, items: int, days: int, seed: int) -> None:
    truth = simulate(tmp_path, users=users, items=items, days=days, seed=seed)
    assert json.loads((tmp_path / "truth.json").read_text()) == truth
    counted, rows = recount(tmp_path)
    arguments = {"seed": seed, "users": users, "items": items, "days": days, "start": "2026-01-01"}
    assert truth == arguments | counted
    for account in (*truth["arrivals"].values(), truth | {"quarantined": sum(truth["quarantined"].values())}):
        assert account["rows"] == account["events"] + account["duplicates"] + account["quarantined"]
    assert all(row["event"] in {"click", "impression"} for row in rows)


def test_every_defect_occurs_at_its_share(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=400, items=60, days=7, seed=5, start=date(2024, 2, 26))
    rows = truth["rows"]
    assert list(truth["arrivals"]) == sorted(truth["arrivals"])
    assert list(truth["arrivals"])[3] == "2024-02-29"
    assert truth["duplicates"] / rows == pytest.approx(0.01, abs=0.001)
    assert truth["late"] / rows == pytest.approx(0.01, abs=0.001)
    too_late = truth["quarantined"].pop("too_late")
    assert too_late / rows == pytest.approx(0.002, abs=0.0005)
    assert sum(truth["quarantined"].values()) / rows == pytest.approx(0.01, abs=0.001)


def test_a_log_of_a_few_hundred_rows_has_one_of_each_defect(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=12, items=20, days=7, seed=0)
    assert 300 <= truth["rows"] <= 700
    assert min(truth["duplicates"], truth["late"], *truth["quarantined"].values()) >= 1


def test_nothing_is_too_late_in_a_log_within_the_window(tmp_path: Path) -> None:
    truth = simulate(tmp_path, users=100, items=20, days=4, seed=0)
    assert truth["quarantined"]["too_late"] == 0
    assert truth["late"] > 0


def test_copies_come_in_the_same_file_the_other_one_and_on_later_days(tmp_path: Path) -> None:
    simulate(tmp_path, users=300, items=40, days=6, seed=1)
    first: dict[bytes, tuple[str, str]] = {}
    where: Counter[str] = Counter()
    for arrival, file, line in physical_lines(tmp_path):
        if verdict(line, arrival)[0] is not None:
            continue
        if line in first:
            days = (date.fromisoformat(arrival) - date.fromisoformat(first[line][0])).days
            where[f"{days} days" if days else "same file" if file == first[line][1] else "other file"] += 1
        else:
            first[line] = (arrival, file)
    assert set(where) == {"same file", "other file", "1 days", "2 days"}


def test_copies_of_late_events_stay_on_their_day() -> None:
    """Or a copy of an event two days late could come beyond the window of three."""
    rng = np.random.default_rng(0)
    lines = plan(np.arange(200_000) % 10, rng.random(200_000), 10, rng)
    came = dict(zip(*_of_fate(lines, LATE), strict=True))
    copies = [(event, day) for event, day in zip(*_of_fate(lines, DUPLICATE), strict=True) if event in came]
    assert len(copies) > 10
    assert all(day == came[event] for event, day in copies)


def _of_fate(lines: Plan, fate: int) -> tuple[list[int], list[int]]:
    chosen = lines.fate_R == fate
    return lines.event_R[chosen].tolist(), lines.arrival_R[chosen].tolist()


def test_bad_rows_take_every_form(tmp_path: Path) -> None:
    simulate(tmp_path, users=600, items=40, days=6, seed=2)
    forms: defaultdict[str, set[str]] = defaultdict(set)
    for arrival, _, line in physical_lines(tmp_path):
        reason, row, _ = verdict(line, arrival)
        column = {"null_user": "user_id", "null_item": "item_id", "bad_time": "time", "bad_field": "price"}
        if reason in column:
            forms[reason].add(repr(row.get(column[reason], "absent")))
    assert forms["null_user"] == forms["null_item"] == {"None", "'absent'"}
    assert forms["bad_time"] == {"None", "'absent'", "'yesterday'"}
    assert forms["bad_field"] == {"'cheap'"}


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
    arguments = {"users": 5, "items": 10, "days": 3, "seed": 0} | {name: value}
    with pytest.raises(UsageError, match=rf"{name} is {value}; it must be at least"):
        simulate(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_an_occupied_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="not an empty directory"):
            simulate(out, users=5, items=10, days=3, seed=0)
    assert tree(tmp_path) == {"mine.txt": b"keep"}


class TestStructure:
    """The demo's size, cut to 700 users: what a model can learn, found without the generator's help."""

    @pytest.fixture(scope="class")
    def log(self, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
        """Accepted rows with what the side files know of item and user."""
        root = tmp_path_factory.mktemp("log")
        simulate(root, users=700, items=300, days=10, seed=11)
        sides = {}
        for name in ("items", "users"):
            lines = (root / f"{name}.jsonl").read_text().splitlines()
            sides |= {row[f"{name[:-1]}_id"]: row for row in map(json.loads, lines)}
        return [sides[row["item_id"]] | sides[row["user_id"]] | row for row in recount(root)[1]]

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

    def test_fields_are_missing_at_their_rates_half_absent_half_null(self, tmp_path: Path) -> None:
        simulate(tmp_path, users=2000, items=2000, days=3, seed=6)
        rows = {"log": recount(tmp_path)[1]}
        for name in ("items", "users"):
            rows[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows["items"]) == len(rows["users"]) == 2000
        fields = dict.fromkeys(LOG_FIELDS, "log") | dict.fromkeys(("category", "tags", "quality"), "items")
        fields |= dict.fromkeys(("segment", "joined"), "users")
        assert set(fields) == set(MISSING_RATES)
        for name, source in fields.items():
            rate, count = MISSING_RATES[name], len(rows[source])
            assert 0.05 <= rate <= 0.3
            five_sigma = 5 * math.sqrt(rate / 2 * (1 - rate / 2) / count)
            absent = sum(name not in row for row in rows[source]) / count
            null = sum(name in row and row[name] is None for row in rows[source]) / count
            assert absent == pytest.approx(rate / 2, abs=five_sigma), name
            assert null == pytest.approx(rate / 2, abs=five_sigma), name
        tags = [row["tags"] for row in rows["items"] if row.get("tags") is not None]
        assert {len(of_item) for of_item in tags} == {0, 1, 2, 3}
