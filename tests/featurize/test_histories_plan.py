"""Which parts of the histories a run date makes anew: decided from fingerprints alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import ClassVar

from featurize.histories import State, base_of, plan_of


def days(count: int) -> list[str]:
    return [(date(2024, 1, 1) + timedelta(days=n)).isoformat() for n in range(count)]


class TestPlan:
    EXPECTED: ClassVar = {d: f"files of {d}" for d in days(8)}

    def state(self, bases: Sequence[int] = (), tails: Sequence[int] = ()) -> State:
        named = days(8)
        return State(
            "",
            1,
            {named[b]: base_of(self.EXPECTED, named[b]) for b in bases},
            {named[t]: self.EXPECTED[named[t]] for t in tails},
        )

    def test_nothing_there(self) -> None:
        plan = plan_of(self.EXPECTED, State(), days(8)[7], 3, 7)
        assert (plan.full, plan.base, plan.tails, plan.new_base) == (True, days(8)[3], tuple(days(8)[4:]), None)
        assert plan_of(self.EXPECTED, State(), days(8)[7], 0, 7).base == days(8)[5], "undated: two days are windows"

    def test_the_next_day(self) -> None:
        plan = plan_of(self.EXPECTED, self.state([2], [3, 4, 5, 6]), days(8)[7], 3, 7)
        assert (plan.full, plan.base, plan.stale, plan.new_base) == (False, days(8)[2], (days(8)[7],), None)

    def test_a_base_is_due(self) -> None:
        plan = plan_of(self.EXPECTED, self.state([0], range(1, 8)), days(8)[7], 3, 3)
        assert (plan.stale, plan.new_base) == ((), days(8)[3])
        assert plan_of(self.EXPECTED, self.state([0], range(1, 8)), days(8)[7], 3, 4).new_base is None

    def test_never_a_base_inside_the_two_windows(self) -> None:
        plan = plan_of(self.EXPECTED, self.state([6], [7]), days(8)[7], 0, 7)
        assert plan.full
        assert plan.base == days(8)[5]

    def test_an_older_base_serves_when_the_newest_is_stale(self) -> None:
        changed = {**self.EXPECTED, days(8)[3]: "re-ingested"}
        plan = plan_of(changed, self.state([1, 4], range(2, 8)), days(8)[7], 2, 9)
        assert (plan.full, plan.base, plan.stale) == (False, days(8)[1], (days(8)[3],))

    def test_days_that_lost_their_events(self) -> None:
        fewer = {d: f for d, f in self.EXPECTED.items() if d != days(8)[6]}
        plan = plan_of(fewer, self.state([1], range(2, 8)), days(8)[7], 2, 9)
        assert plan.stale == (days(8)[6],)
        assert days(8)[6] not in plan.tails

    def test_so_many_stale_days_that_a_full_build_costs_less(self) -> None:
        assert not plan_of(self.EXPECTED, self.state([0], [5, 6, 7]), days(8)[7], 2, 2).full
        assert plan_of(self.EXPECTED, self.state([0], [6, 7]), days(8)[7], 2, 2).full

    def test_rebuild(self) -> None:
        assert plan_of(self.EXPECTED, self.state([3], [4, 5, 6, 7]), days(8)[7], 3, 7, rebuild=True).full
