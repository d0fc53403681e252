"""Candidate and champion on the same part of the users: where a better mean could hide a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.decision.significance import holm, sign_flip_p
from evaluate.decision.statistics import RESAMPLES, Interval, paired_bootstrap
from infra.errors import UsageError

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Slice:
    """Values of the primary metric of some users, (B,) each."""

    users: Sequence[object] | NDArray[np.generic]
    per_user: NDArray[np.float64]


@dataclass(frozen=True)
class SliceDifference:
    """Two models on one slice; `p` is adjusted for all slices (Holm), None where the slice does not decide."""

    name: str
    users: int
    candidate: float
    champion: float
    relative: Interval
    """NaN where the champion is at 0."""
    p: float | None

    @property
    def told(self) -> str:
        """In words."""
        chance = "" if self.p is None else f", p {self.p:.4f} after Holm"
        return (
            f"{self.name}: {self.candidate:.5f} against {self.champion:.5f} on {self.users} users "
            f"({self.relative.estimate:+.2%}{chance})"
        )


def compare_slices(
    candidate: Mapping[str, Slice],
    champion: Mapping[str, Slice],
    margin: float | None,
    min_users: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> tuple[SliceDifference, ...]:
    """Every slice that both have. Only those of at least `min_users` that are below -margin are tested; the others are
    counted in Holm's correction as if their p-value were 1, which makes the tests stricter, never laxer.

    UsageError for a slice of other users.
    """
    parts = []
    for name in [name for name in candidate if name in champion]:
        ours, theirs = candidate[name], champion[name]
        if not np.array_equal(np.asarray(ours.users), np.asarray(theirs.users)):
            raise UsageError(f"slice {name}: the champion was scored on other users; score both on the same")
        found = paired_bootstrap(ours.per_user, theirs.per_user, seed=seed, resamples=resamples)
        means = float(np.mean(ours.per_user)), float(np.mean(theirs.per_user))
        parts.append(SliceDifference(name, len(ours.users), *means, found.relative, None))
    deciding = [i for i, part in enumerate(parts) if margin is not None and part.users >= min_users]
    p_values = [1.0] * len(deciding)
    for place, i in enumerate(deciding):
        if parts[i].relative.estimate < -(margin or 0):
            ours, theirs = candidate[parts[i].name], champion[parts[i].name]
            p_values[place] = sign_flip_p(ours.per_user, theirs.per_user, seed=seed)
    for i, p in zip(deciding, holm(p_values), strict=True):
        parts[i] = SliceDifference(**{**parts[i].__dict__, "p": p})
    return tuple(parts)


def worse(part: SliceDifference, margin: float) -> bool:
    """Below the champion by more than the margin, and not by chance."""
    return part.p is not None and part.p < ALPHA and part.relative.estimate < -margin
