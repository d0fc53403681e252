"""The gate: may this candidate become the champion? A pure function of evidence and policy.

REJECT: the candidate is not usable (a failed check, a figure that is not finite). HOLD: usable, but
not shown to be good enough today. PROMOTE: not below the champion by more than the margin, and above
the floors. Nothing is read or written here; whoever calls moves the alias and records the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from evaluate.decision.statistics import LEVEL, RESAMPLES, Difference, paired_bootstrap
from infra.config import Settings
from infra.errors import UsageError

COVERAGE = "catalogue_coverage"
"""The key in `Evidence.metrics` that `GatePolicy.min_coverage` is held against."""


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
    min_coverage: float = Field(0.0, ge=0, le=1)
    """Least catalogue coverage (share of the candidates recommended to anyone); 0: not asked for."""
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
    """The verdict, its reasons with figures, and the comparison with the champion where one was made."""

    verdict: Verdict
    reasons: tuple[str, ...]
    difference: Difference | None = None


def decide(
    candidate: Evidence, champion: Evidence | None, baselines: Mapping[str, Evidence], policy: GatePolicy
) -> Decision:
    """REJECT, else HOLD, else PROMOTE, for the first of these that applies; all reasons of it are listed.

    REJECT: a check is False; a metric is not finite. HOLD: it is the champion; fewer users than
    `min_users`; not above a floor baseline; coverage below `min_coverage`; the lower bound against the
    champion not above -margin. Without a champion a candidate that passes the floors and is above 0 is promoted.
    UsageError, a fault of the caller: evidence on other users, a missing baseline or metric, per-user
    values that do not average to the metric they claim to be.
    """
    _check_evidence(candidate, champion, baselines, policy)
    refused = _failed_checks(candidate) + _not_finite(candidate)
    if refused:
        return Decision(Verdict.REJECT, tuple(refused))
    if champion is not None and champion.version == candidate.version:
        return Decision(Verdict.HOLD, (f"version {candidate.version} is already champion",))
    users = len(candidate.users)
    if users < policy.min_users:
        return Decision(Verdict.HOLD, (f"{users} users, min_users is {policy.min_users}",))

    floors = [_against_floor(candidate, name, baselines[name], policy) for name in policy.floor_baselines]
    floors += _against_min_coverage(candidate, policy)
    difference, against_champion = _against_champion(candidate, champion, policy)
    findings = [*floors, against_champion]
    missed = tuple(text for passed, text in findings if not passed)
    if missed:
        return Decision(Verdict.HOLD, missed, difference)
    return Decision(Verdict.PROMOTE, tuple(text for _, text in findings), difference)


Finding = tuple[bool, str]
"""Whether a requirement is met, and the sentence that says so with its figures."""


def _failed_checks(candidate: Evidence) -> list[str]:
    return [f"check {name} failed" for name, passed in candidate.checks.items() if not passed]


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


def _against_min_coverage(candidate: Evidence, policy: GatePolicy) -> list[Finding]:
    if not policy.min_coverage:
        return []
    coverage = candidate.metrics[COVERAGE]
    passed = coverage >= policy.min_coverage
    relation = "reaches" if passed else "is below"
    return [(passed, f"coverage {coverage:.4f} {relation} min_coverage {policy.min_coverage:.4f}")]


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
    needed = [policy.metric] + ([COVERAGE] if policy.min_coverage else [])
    for name in needed:
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
