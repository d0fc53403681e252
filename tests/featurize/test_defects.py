"""featurize/defects.py: what a plan promises about its lines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featurize.defects import CONFLICT, DUPLICATE, EVENT, FUTURE, LATE, TOO_LATE, Plan, plan
from featurize.simulate import simulate
from tests.featurize.simulated import physical_lines, verdict


def some_plan(days: int = 10, turn: int | None = None) -> tuple[Plan, np.ndarray, np.ndarray]:
    """A plan over 200,000 events (seed 0), the day of each, and the day it was logged for."""
    rng = np.random.default_rng(0)
    sent_N = np.arange(200_000) % days
    logged_N = sent_N + rng.choice([-9, -1, 0, 1, 9], 200_000, p=[0.001, 0.02, 0.958, 0.02, 0.001])
    return plan(sent_N, logged_N, rng.random(200_000), days, rng, turn), sent_N, logged_N


def of_fate(lines: Plan, fate: int) -> tuple[list[int], list[int]]:
    chosen = lines.fate_R == fate
    return lines.event_R[chosen].tolist(), lines.arrival_R[chosen].tolist()


def test_copies_of_late_events_stay_on_their_day() -> None:
    """Or a copy of an event two days late could come beyond the window of three."""
    lines, sent_N, _ = some_plan()
    came = {event: day for event, day in zip(*of_fate(lines, LATE), strict=True) if sent_N[event] < day}
    copies = [(event, day) for event, day in zip(*of_fate(lines, DUPLICATE), strict=True) if event in came]
    assert len(copies) > 10
    assert all(day == came[event] for event, day in copies)


def test_every_fate_is_what_the_dates_say() -> None:
    lines, _, logged_N = some_plan()
    age_R = lines.arrival_R - logged_N[lines.event_R]
    for fate, ages in ((EVENT, {-1, 0}), (LATE, {1, 2}), (DUPLICATE, {-1, 0, 1, 2, 3}), (CONFLICT, {-1, 0, 1, 2})):
        assert set(age_R[lines.fate_R == fate].tolist()) == ages
    assert age_R[lines.fate_R == TOO_LATE].min() == 4
    assert age_R[lines.fate_R == FUTURE].max() < -1


def test_each_event_has_one_line_and_only_accepted_ones_have_more() -> None:
    lines, _, _ = some_plan()
    first = ~np.isin(lines.fate_R, [DUPLICATE, CONFLICT])
    assert sorted(lines.event_R[first].tolist()) == list(range(200_000))
    accepted = set(lines.accepted()[0].tolist())
    more = lines.event_R[~first].tolist()
    assert set(more) <= accepted
    assert max(Counter(more).values()) == 1, "a copy of a conflict would be a question of its own"


@pytest.mark.parametrize("fate", [DUPLICATE, CONFLICT])
def test_repeats_come_behind_their_original_where_it_matters(fate: int) -> None:
    """A copy may lie in the lower file of the day, which changes nothing; a conflict would win there."""
    lines, _, _ = some_plan()
    place = {event: row for row, event in enumerate(lines.event_R.tolist()) if lines.fate_R[row] <= LATE}
    repeats = [(place[event], row) for row, event in enumerate(lines.event_R.tolist()) if lines.fate_R[row] == fate]
    behind = sum(first < row for first, row in repeats)
    same_day = sum(lines.arrival_R[first] == lines.arrival_R[row] for first, row in repeats)
    assert 0.4 * len(repeats) < same_day < 0.9 * len(repeats)
    assert behind == len(repeats) if fate == CONFLICT else 0.7 * len(repeats) < behind < len(repeats)


def test_nothing_is_repeated_across_a_change_of_schema() -> None:
    lines, _, _ = some_plan(turn=5)
    side = {event: day < 5 for event, day in zip(lines.accepted()[0], lines.accepted()[1], strict=True)}
    for fate in (DUPLICATE, CONFLICT):
        events, days = of_fate(lines, fate)
        assert all(side[event] == (day < 5) for event, day in zip(events, days, strict=True))
        assert any(lines_day == 5 for lines_day in days)


def test_copies_come_in_the_same_file_the_other_one_and_on_later_days(tmp_path: Path) -> None:
    simulate(tmp_path, users=300, items=40, days=6, seed=1)
    first: dict[bytes, tuple[str, str]] = {}
    where: Counter[str] = Counter()
    for arrival, file, line in physical_lines(tmp_path):
        if verdict(line, arrival)[0] is not None:
            continue
        if line in first:
            earlier = first[line]
            where["later" if arrival > earlier[0] else "same file" if file == earlier[1] else "other file"] += 1
        else:
            first[line] = (arrival, file)
    assert set(where) == {"same file", "other file", "later"}
