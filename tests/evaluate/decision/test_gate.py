"""Every rule of the gate, each with evidence built so that the answer is plain by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.decision.gate import Decision, Evidence, GatePolicy, Verdict, decide
from evaluate.decision.slices import Slice
from infra.config import parse
from infra.errors import ConfigError, UsageError

COVERAGE = "catalogue_coverage"
BASE = np.array([0.1, 0.2, 0.4, 0.5])  # mean 0.3
POLICY = GatePolicy(metric="ndcg_at_20", resamples=200)


def evidence(factor: float = 1.0, version: str = "2", **changes: Any) -> Evidence:
    values = BASE * factor
    fields: dict[str, Any] = {
        "version": version,
        "metrics": {"ndcg_at_20": float(values.mean()), COVERAGE: 0.25},
        "per_user": values,
        "users": ("a", "b", "c", "d"),
        "checks": {"audit": True},
    }
    return Evidence(**(fields | changes))


def champion(factor: float = 1.0) -> Evidence:
    return evidence(factor, version="1")


def policy(**changes: Any) -> GatePolicy:
    return POLICY.model_copy(update=changes)


@given(change=st.floats(-0.5, 0.5).filter(lambda x: abs(x + 0.02) > 1e-9))
def test_promoted_exactly_when_above_the_margin(change: float) -> None:
    # Every user changes by the same share, so the interval is that one point.
    decision = decide(evidence(1 + change), champion(), {}, POLICY)
    assert decision.verdict == (Verdict.PROMOTE if change > -0.02 else Verdict.HOLD)


def test_the_lower_bound_decides_and_not_the_estimate() -> None:
    # Mean +25 %, all from one user of four: resamples without it (32 %) lose 10 % or so.
    values = np.array([0.09, 0.18, 0.36, 0.87])
    noisy = evidence(per_user=values, metrics={"ndcg_at_20": float(values.mean())})
    decision = decide(noisy, champion(), {}, POLICY)
    assert decision.verdict is Verdict.HOLD
    assert decision.difference is not None
    assert decision.difference.relative.estimate == pytest.approx(0.25)
    assert decision.difference.relative.low == pytest.approx(-0.1)


def test_reasons_carry_the_figures() -> None:
    (reason,) = decide(evidence(0.9), champion(), {}, POLICY).reasons
    assert reason == (
        "ndcg_at_20 0.27000 against 0.30000 of champion 1 on 4 users: -10.00%, "
        "lower 95% bound -10.00% is not above -2.00%"
    )


def test_failed_checks_and_bad_figures_reject_and_are_all_named() -> None:
    bad = evidence(
        metrics={"ndcg_at_20": 0.3, "mrr": math.nan, "gini": math.inf},
        checks={"audit": False, "loads_in_clean_process": True, "observed_labels": False},
    )
    decision = decide(bad, None, {}, POLICY)
    assert decision.verdict is Verdict.REJECT
    assert decision.reasons == (
        "check audit failed",
        "check observed_labels failed",
        "mrr is nan",
        "gini is inf",
    )


def test_per_user_values_that_are_not_finite_reject() -> None:
    values = np.array([0.1, math.nan, 0.4, math.inf])
    decision = decide(evidence(per_user=values), champion(), {}, POLICY)
    assert decision == Decision(Verdict.REJECT, ("2 of 4 per-user values are not finite",))


def test_too_few_users_hold() -> None:
    assert decide(evidence(), None, {}, policy(min_users=5)) == Decision(Verdict.HOLD, ("4 users, min_users is 5",))
    assert decide(evidence(), None, {}, policy(min_users=4)).verdict is Verdict.PROMOTE


def test_no_users_hold_although_the_means_are_undefined() -> None:
    nobody = evidence(per_user=np.zeros(0), users=(), metrics={"ndcg_at_20": math.nan})
    assert decide(nobody, None, {}, POLICY) == Decision(Verdict.HOLD, ("0 users, min_users is 1",))


def test_a_floor_must_be_exceeded() -> None:
    floors = policy(floor_baselines=("popularity", "bigram"))
    baselines = {"popularity": evidence(0.5), "bigram": evidence(1.0), "not asked for": evidence(9.0)}
    held = decide(evidence(1.0), champion(), baselines, floors)
    assert held.verdict is Verdict.HOLD
    assert held.reasons == ("ndcg_at_20 0.30000 is not above baseline bigram (0.30000)",)
    passed = decide(evidence(1.1), champion(), baselines, floors)
    assert passed.verdict is Verdict.PROMOTE
    assert len(passed.reasons) == 3


def test_the_first_champion_still_has_to_pass_the_floors() -> None:
    floors = policy(floor_baselines=("popularity",))
    assert decide(evidence(0.4), None, {"popularity": evidence(0.5)}, floors).verdict is Verdict.HOLD
    first = decide(evidence(0.6), None, {"popularity": evidence(0.5)}, floors)
    assert first.verdict is Verdict.PROMOTE
    assert first.difference is None
    assert "no champion yet" in first.reasons[-1]


def test_every_missed_requirement_is_listed() -> None:
    decision = decide(
        evidence(0.4),
        champion(),
        {"popularity": evidence(0.5)},
        policy(floor_baselines=("popularity",), floors={COVERAGE: 0.3}),
    )
    assert decision.verdict is Verdict.HOLD
    assert len(decision.reasons) == 3
    assert decision.reasons[1] == "catalogue_coverage 0.25000 is not above its floor 0.30000"


def test_a_figure_at_its_floor_is_not_above_it() -> None:
    assert decide(evidence(), champion(), {}, policy(floors={COVERAGE: 0.25})).verdict is Verdict.HOLD
    passed = decide(evidence(), champion(), {}, policy(floors={COVERAGE: 0.2}))
    assert passed.verdict is Verdict.PROMOTE
    assert passed.reasons[0] == "catalogue_coverage 0.25000 is above its floor 0.20000"


def test_lists_that_are_no_lists_reject() -> None:
    metrics = {"ndcg_at_20": 0.3, "quality/complete": 0.99, "quality/distinct": 1.0}
    decision = decide(evidence(metrics=metrics), champion(), {}, POLICY)
    assert decision.verdict is Verdict.REJECT
    assert decision.reasons == ("lists: quality/complete is 0.99000, which has to be 1",)


def halves(new: float, young: float) -> dict[str, Slice]:
    """100 users in two slices; the values of each are alike, so that a difference is beyond chance."""
    users, values = np.arange(100), np.linspace(0.1, 0.9, 50)
    return {"new": Slice(users[:50], values * new), "old": Slice(users[50:], values * young)}


def sliced(new: float, old: float, version: str) -> Evidence:
    slices = halves(new, old)
    values = np.concatenate([part.per_user for part in slices.values()])
    metrics = {"ndcg_at_20": float(values.mean())}
    return evidence(version=version, users=np.arange(100), per_user=values, metrics=metrics, slices=slices)


def test_a_slice_that_loses_holds_a_better_mean() -> None:
    decision = decide(sliced(0.8, 1.5, "2"), sliced(1, 1, "1"), {}, POLICY)
    assert decision.verdict is Verdict.HOLD
    assert len(decision.reasons) == 1
    assert decision.reasons[0].startswith(
        "slice new: 0.40000 against 0.50000 on 50 users (-20.00%, p 0.0002 after Holm"
    )
    assert [part.name for part in decision.slices] == ["new", "old"]
    assert decision.slices[1].relative.estimate == pytest.approx(0.5)


@pytest.mark.parametrize("allowed", [{"slice_margin": 0.25}, {"slice_margin": None}, {"min_slice_users": 51}])
def test_what_a_policy_lets_pass_in_slices(allowed: dict[str, Any]) -> None:
    assert decide(sliced(0.8, 1.5, "2"), sliced(1, 1, "1"), {}, policy(**allowed)).verdict is Verdict.PROMOTE


def test_a_loss_that_may_be_chance_is_not_held_against_a_slice() -> None:
    ours, theirs = sliced(1, 1.2, "2"), sliced(1, 1, "1")
    ours.slices["new"].per_user[:] = ours.slices["new"].per_user[::-1] * 0.8  # -20 %, up for as many as down
    ours.per_user[:50] = ours.slices["new"].per_user
    values = {"metrics": {"ndcg_at_20": float(ours.per_user.mean())}}
    ours = evidence(version="2", users=ours.users, per_user=ours.per_user, slices=ours.slices, **values)
    decision = decide(ours, theirs, {}, policy(margin=0.5))
    assert decision.slices[0].relative.estimate == pytest.approx(-0.2)
    assert decision.slices[0].p is not None
    assert decision.slices[0].p > 0.05
    assert decision.verdict is Verdict.PROMOTE


def test_a_slice_that_only_one_of_both_has_is_not_compared() -> None:
    ours, theirs = sliced(1, 1, "2"), sliced(1, 1, "1")
    del theirs.slices["old"]  # type: ignore[attr-defined]
    assert [part.name for part in decide(ours, theirs, {}, POLICY).slices] == ["new"]


def test_the_champion_itself_is_held() -> None:
    decision = decide(evidence(2.0), evidence(1.0), {}, POLICY)
    assert decision == Decision(Verdict.HOLD, ("version 2 is already champion",))


def test_a_champion_at_zero_is_beaten_only_by_more_than_zero() -> None:
    assert decide(evidence(1.0), champion(0.0), {}, POLICY).verdict is Verdict.PROMOTE
    draw = decide(evidence(0.0), champion(0.0), {}, POLICY)
    assert draw.verdict is Verdict.HOLD
    assert "absolute difference +0.00000 is not above 0" in draw.reasons[0]


def test_the_same_evidence_gets_the_same_decision() -> None:
    values = np.random.default_rng(0).random(50)
    noisy = evidence(per_user=values, users=range(50), metrics={"ndcg_at_20": float(values.mean())})
    other = evidence(per_user=values[::-1], users=range(50), version="1")
    assert decide(noisy, other, {}, POLICY) == decide(noisy, other, {}, POLICY)
    assert decide(noisy, other, {}, POLICY) != decide(noisy, other, {}, policy(seed=1))


FLOOR = POLICY.model_copy(update={"floor_baselines": ("bigram",)})
OTHERS = evidence(users=("a", "b", "d", "c"), version="1")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decide(evidence(), OTHERS, {}, POLICY), "champion 1 was scored on other users"),
        (
            lambda: decide(evidence(scored_on={"sequences": 3}), evidence(version="1"), {}, POLICY),
            "champion 1 was scored with another sequences than the candidate",
        ),
        (
            lambda: decide(
                evidence(slices={"new": Slice(("a",), BASE[:1])}),
                evidence(version="1", slices={"new": Slice(("b",), BASE[:1])}),
                {},
                POLICY,
            ),
            "slice new: the champion was scored on other users",
        ),
        (lambda: decide(evidence(), None, {"bigram": OTHERS}, FLOOR), "bigram 1 was scored on other users"),
        (lambda: decide(evidence(), None, {}, FLOOR), "no evidence for bigram"),
        (lambda: decide(evidence(metrics={"mrr": 0.5}), None, {}, POLICY), "no metric ndcg_at_20; it has mrr"),
        (
            lambda: decide(evidence(metrics={"ndcg_at_20": 0.3}), None, {}, policy(floors={COVERAGE: 0.1})),
            f"no metric {COVERAGE}",
        ),
        (lambda: decide(evidence(metrics={"ndcg_at_20": 0.31}), None, {}, POLICY), "0.31, its per-user"),
        (lambda: evidence(users=("a", "b")), r"shape \(4,\), but there are 2 users"),
    ],
)
def test_evidence_that_does_not_fit_is_a_fault_of_the_caller(call: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("margin", -0.1),
        ("margin", 1),
        ("min_users", 0),
        ("slice_margin", 1),
        ("min_slice_users", 0),
        ("resamples", 0),
        ("margins", 0.1),
    ],
)
def test_a_policy_out_of_range_names_the_setting(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"gate: {setting}: "):
        parse({"metric": "mrr", setting: value}, GatePolicy, "gate")
