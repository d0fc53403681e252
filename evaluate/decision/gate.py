"""The gate: may this candidate become the champion? A pure function of evidence and policy.

REJECT: the candidate is not usable (a failed check, lists that are not what lists have to be, a figure that is not
finite). HOLD: usable, but not shown to be good enough today. PROMOTE: not below the champion by more than the margin,
in no slice shown to be worse by more than its own, and above the floors. Nothing is read or written here; whoever
calls moves the alias and records the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evaluate.decision.slices import Slice, SliceDifference, compare_slices, worse
from evaluate.decision.statistics import LEVEL, RESAMPLES, Difference, paired_bootstrap
from evaluate.metrics.list_quality import PREFIX as QUALITY
from infra.config import Settings
from infra.errors import UsageError


class GatePolicy(Settings):
    """What a candidate must show. Compared are means over users of the primary metric."""

    metric: str
    """Primary metric: the key in `Evidence.metrics` whose per-user values the evidence carries. Larger is better."""
    margin: float = Field(0.02, ge=0, lt=1)
    """Non-inferiority: the lower 95 % bound of the relative difference to the champion must be above -margin."""
    floor_baselines: tuple[str, ...] = ()
    """Baselines whose mean the candidate must exceed, by name; empty: none."""
    min_users: int = Field(1, ge=1)
    """Fewer users than this are too few to decide on."""
    slice_margin: float | None = Field(0.1, ge=0, lt=1)
    """No slice may be shown to be worse than the champion (paired permutation test, 5 % after Holm over all slices) and
    be below it by more than this; null: slices do not decide."""
    min_slice_users: int = Field(50, ge=1)
    """Slices of fewer users do not decide."""
    floors: dict[str, float] = Field({})
    """What figures of the candidate must be above, by name: {catalogue_coverage: 0.1, category_count: 3}."""
    approval: bool = False
    """Whether a person has to agree (`logs2rec promote --approve WHY`) before the alias moves."""
    resamples: int = Field(RESAMPLES, ge=1)
    """Resamples of the paired bootstrap."""
    seed: int = Field(0, ge=0)
    """Seed of the bootstrap: the same evidence always gets the same decision."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one model did on the targets of one day.

    per_user (B,): the primary metric, aligned with `users`; metrics: means by name, the primary one among
    them; checks: what must hold before figures count, e.g. audit, loads_in_clean_process.
    """

    version: str
    metrics: Mapping[str, float]
    per_user: NDArray[np.float64]
    users: Sequence[object] | NDArray[np.generic]
    checks: Mapping[str, bool] = field(default_factory=dict)
    slices: Mapping[str, Slice] = field(default_factory=dict)
    """Of the primary metric, by name; those that both models have are compared."""
    scored_on: Mapping[str, object] = field(default_factory=dict)
    """Table versions, split and settings that the figures were made with: the same for all that are compared."""

    def __post_init__(self) -> None:
        if self.per_user.shape != (len(self.users),):
            raise UsageError(
                f"evidence of version {self.version}: per_user has shape {self.per_user.shape}, "
                f"but there are {len(self.users)} users"
            )

    @property
    def mean(self) -> float:
        """Mean of the primary metric over users; NaN without users."""
        return float(self.per_user.mean()) if self.per_user.size else float("nan")


class Verdict(StrEnum):
    """What the gate says."""

    PROMOTE = "promote"
    HOLD = "hold"
    REJECT = "reject"


@dataclass(frozen=True)
class Decision:
    """The verdict, its reasons with figures, and the comparisons with the champion where they were made."""

    verdict: Verdict
    reasons: tuple[str, ...]
    difference: Difference | None = None
    slices: tuple[SliceDifference, ...] = ()


def decide(
    candidate: Evidence, champion: Evidence | None, baselines: Mapping[str, Evidence], policy: GatePolicy
) -> Decision:
    """REJECT, else HOLD, else PROMOTE, for the first of these that applies; all reasons of it are listed.

    REJECT: a check is False; a `quality/` figure is below 1; a metric is not finite. HOLD: it is the champion; fewer
    users than `min_users`; not above a floor or a floor baseline; the lower bound against the champion not above
    -margin; a slice worse than `slice_margin`. Without a champion a candidate that passes the floors and is above 0 is
    promoted. UsageError, a fault of the caller: evidence on other users, versions or settings, a missing baseline or
    metric, per-user values that do not average to the metric they claim to be.
    """
    _check_evidence(candidate, champion, baselines, policy)
    refused = _failed_checks(candidate) + _poor_lists(candidate) + _not_finite(candidate)
    if refused:
        return Decision(Verdict.REJECT, tuple(refused))
    if champion is not None and champion.version == candidate.version:
        return Decision(Verdict.HOLD, (f"version {candidate.version} is already champion",))
    users = len(candidate.users)
    if users < policy.min_users:
        return Decision(Verdict.HOLD, (f"{users} users, min_users is {policy.min_users}",))

    floors = [_against_floor(candidate, name, baselines[name], policy) for name in policy.floor_baselines]
    floors += [_above(candidate, name, least) for name, least in policy.floors.items()]
    difference, against_champion = _against_champion(candidate, champion, policy)
    slices = () if champion is None else compare_slices(
        candidate.slices, champion.slices, policy.slice_margin, policy.min_slice_users,
        seed=policy.seed, resamples=policy.resamples,
    )  # fmt: skip
    findings = [*floors, against_champion, *_in_slices(slices, policy)]
    missed = tuple(text for passed, text in findings if not passed)
    if missed:
        return Decision(Verdict.HOLD, missed, difference, slices)
    return Decision(Verdict.PROMOTE, tuple(text for _, text in findings), difference, slices)


Finding = tuple[bool, str]
"""Whether a requirement is met, and the sentence that says so with its figures."""


def _failed_checks(candidate: Evidence) -> list[str]:
    return [f"check {name} failed" for name, passed in candidate.checks.items() if not passed]


def _poor_lists(candidate: Evidence) -> list[str]:
    poor = {name: value for name, value in candidate.metrics.items() if name.startswith(QUALITY) and value < 1}
    return [f"lists: {name} is {value:.5f}, which has to be 1" for name, value in poor.items()]


def _not_finite(candidate: Evidence) -> list[str]:
    if not len(candidate.users):
        return []  # nothing was measured: too few users, no fault of the model
    wrong = [f"{name} is {value}" for name, value in candidate.metrics.items() if not np.isfinite(value)]
    lost = int((~np.isfinite(candidate.per_user)).sum())
    return wrong + ([f"{lost} of {len(candidate.users)} per-user values are not finite"] if lost else [])


def _against_floor(candidate: Evidence, name: str, baseline: Evidence, policy: GatePolicy) -> Finding:
    passed = candidate.mean > baseline.mean
    relation = "above" if passed else "not above"
    return passed, f"{policy.metric} {candidate.mean:.5f} is {relation} baseline {name} ({baseline.mean:.5f})"


def _above(candidate: Evidence, name: str, least: float) -> Finding:
    value = candidate.metrics[name]
    passed = value > least
    return passed, f"{name} {value:.5f} is {'above' if passed else 'not above'} its floor {least:.5f}"


def _in_slices(slices: Sequence[SliceDifference], policy: GatePolicy) -> list[Finding]:
    if policy.slice_margin is None or not slices:
        return []
    found = [(False, f"slice {part.told}") for part in slices if worse(part, policy.slice_margin)]
    decided = sum(part.users >= policy.min_slice_users for part in slices)
    return found or [(True, f"no slice of {decided} is shown to be worse by more than {policy.slice_margin:.0%}")]


def _against_champion(
    candidate: Evidence, champion: Evidence | None, policy: GatePolicy
) -> tuple[Difference | None, Finding]:
    if champion is None:
        shown = f"{policy.metric} {candidate.mean:.5f} on {len(candidate.users)} users"
        if candidate.mean <= 0:
            return None, (False, f"no champion yet, and the candidate found nothing: {shown}")
        return None, (True, f"no champion yet: the first one, {shown}")
    difference = paired_bootstrap(candidate.per_user, champion.per_user, seed=policy.seed, resamples=policy.resamples)
    means = (
        f"{policy.metric} {candidate.mean:.5f} against {champion.mean:.5f} of champion {champion.version} "
        f"on {len(candidate.users)} users"
    )
    if champion.mean <= 0:
        # No ratio to zero says anything; the candidate has to be above it beyond chance.
        low = difference.absolute.low
        passed = low > 0
        bound = f"lower {LEVEL:.0%} bound of the absolute difference {low:+.5f}"
        return difference, (passed, f"{means}: {bound} {'is' if passed else 'is not'} above 0")
    relative = difference.relative
    passed = relative.low > -policy.margin
    bound = f"{relative.estimate:+.2%}, lower {LEVEL:.0%} bound {relative.low:+.2%}"
    return difference, (passed, f"{means}: {bound} {'is' if passed else 'is not'} above {-policy.margin:+.2%}")


def _check_evidence(
    candidate: Evidence, champion: Evidence | None, baselines: Mapping[str, Evidence], policy: GatePolicy
) -> None:
    for name in (policy.metric, *policy.floors):
        if name not in candidate.metrics:
            raise UsageError(
                f"version {candidate.version} has no metric {name}; it has {', '.join(candidate.metrics) or 'none'}"
            )
    claimed = candidate.metrics[policy.metric]
    if np.isfinite(claimed) and np.isfinite(candidate.mean) and not np.isclose(claimed, candidate.mean, rtol=1e-6):
        raise UsageError(
            f"version {candidate.version}: {policy.metric} is {claimed}, its per-user values average {candidate.mean}"
        )
    missing = [name for name in policy.floor_baselines if name not in baselines]
    if missing:
        raise UsageError(
            f"floor_baselines: no evidence for {', '.join(missing)}; evaluate it or remove it from the policy"
        )
    others = [("champion", champion)] + [(name, baselines[name]) for name in policy.floor_baselines]
    for name, other in others:
        if other is not None and not np.array_equal(np.asarray(candidate.users), np.asarray(other.users)):
            raise UsageError(
                f"{name} {other.version} was scored on other users than the candidate; score both on the same"
            )
        if other is not None and other.scored_on != candidate.scored_on:
            odd = [
                k
                for k in {**candidate.scored_on, **other.scored_on}
                if candidate.scored_on.get(k) != other.scored_on.get(k)
            ]
            raise UsageError(
                f"{name} {other.version} was scored with another {', '.join(odd)} than the candidate; score both alike"
            )
