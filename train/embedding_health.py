"""How an item table is spread: variance, mean cosine, isotropy, distance from a round Gaussian.

A table collapses when its rows come to lie in one direction or in few: the mean cosine goes towards 1, isotropy
towards 0. All four figures follow from moments that add up over blocks of rows and over ranks, so a table of any
length needs D x D numbers beside it.

The figures are those of embedding_metrics.ipynb in the published ADRec code, which has their values, but not how KL is
defined. `kl_gaussian` is ours: of the definitions that fit those values it is the one that neither rotation nor scale
changes. On N(0, I) tables it gives 0.87 +- 0.01 for 0.88 (Baby) and 0.69 +- 0.01 for 0.68 (Beauty), all of it from
estimating Σ from V rows, about D² / 4V. What the values rule out is N(0, I) itself as the reference (a table of
variance 0.006 would be hundreds away) and a mean left in (SASRec+'s mean cosine of 0.24 alone would add 20); they do
not rule out a scale for each dimension (0.86 +- 0.01, 0.68 +- 0.01) instead of one for all. Their ceiling of 10.37 is
that of ln(det + 1e-9), 1/2 ln 1e9 = 10.36. Ours has no such ceiling, so a table at it there may stand far higher here.

Shapes: V catalogue rows, N candidate rows (those from FIRST_INDEX on), B rows of a block, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train.ranks import sum_over_ranks
from train.sharded import ShardedTable

FIGURES = ("variance", "mean_cosine", "isotropy", "kl_gaussian")
PREFIX = "embedding_"
"""What precedes a figure's name among a run's metrics."""

KEPT = 256
"""Validations that a history holds at most."""

_BLOCK = 8192
_NOISE = 1e-12
"""An eigenvalue below this part of a row's mean square counts as 0: float64 moments know no smaller one."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows x in float64, from which the figures follow; those of parts of a table add up to the whole's."""

    rows: Tensor
    """N, how many."""
    directions: Tensor
    """How many of them are not zero, that is have a direction."""
    sum_D: Tensor
    """Σ x"""
    unit_D: Tensor
    """Σ x / |x| over rows with a direction."""
    outer_DD: Tensor
    """Σ x xᵀ"""

    @classmethod
    def of(cls, e_ND: Tensor) -> Moments:
        """One pass over the rows, block by block."""
        width = e_ND.shape[1]
        zero = torch.zeros((), dtype=torch.float64, device=e_ND.device)
        found = cls(zero, zero, zero.new_zeros(width), zero.new_zeros(width), zero.new_zeros(width, width))
        for x_BD in e_ND.detach().split(_BLOCK):
            found = found + cls._of_block(x_BD.double())
        return found

    @classmethod
    def _of_block(cls, x_BD: Tensor) -> Moments:
        norm_B = x_BD.norm(dim=1)  # in float64 also of the smallest float32
        unit_BD = x_BD / norm_B.where(norm_B > 0, 1.0)[:, None]
        rows = x_BD.new_tensor(len(x_BD))
        return cls(rows, (norm_B > 0).sum().double(), x_BD.sum(dim=0), unit_BD.sum(dim=0), x_BD.T @ x_BD)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(mine + theirs for mine, theirs in zip(self._parts(), other._parts(), strict=True)))

    def over_ranks(self) -> Moments:
        """Those of all ranks' rows: one exchange of D² + 2D + 2 numbers. Every rank calls it."""
        parts = self._parts()
        summed = sum_over_ranks(torch.cat([part.reshape(-1) for part in parts]))
        pieces = summed.split([part.numel() for part in parts])
        return Moments(*(piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.rows, self.directions, self.sum_D, self.unit_D, self.outer_DD

    def figures(self) -> dict[str, float]:
        """The figures of `embedding_health`. TrainingError when the rows are not finite."""
        if not all(part.isfinite().all() for part in self._parts()):
            raise TrainingError("the item table holds values that are not finite; lower training.learning_rate")
        spectrum_D = self._spectrum()
        mean, largest = spectrum_D.mean().item(), spectrum_D[-1].item()
        constant = largest == 0
        # A floor of its own, so that a flat direction costs a finite number of nats.
        ratios_D = torch.full_like(spectrum_D, _NOISE) if constant else (spectrum_D / mean).clamp(min=_NOISE)
        return {
            "variance": mean,
            "mean_cosine": self._mean_cosine(),
            "isotropy": 0.0 if constant else spectrum_D[0].item() / largest,
            "kl_gaussian": max(0.0, -0.5 * ratios_D.log().sum().item()),
        }

    def _spectrum(self) -> Tensor:
        """λ_D, ascending: the eigenvalues of the covariance Σ x xᵀ / N - μ μᵀ, zeros without two rows."""
        count = self.rows.item()
        if count < 2:
            return torch.zeros_like(self.sum_D)
        mean_D, square_DD = self.sum_D / count, self.outer_DD / count
        spectrum_D = torch.linalg.eigvalsh(square_DD - torch.outer(mean_D, mean_D))
        return spectrum_D.where(spectrum_D > _NOISE * square_DD.trace(), 0.0)

    def _mean_cosine(self) -> float:
        """(|Σ u|² - n) / (n (n - 1)), u being the n unit rows: of all ordered pairs, without each row's own."""
        count = self.directions.item()
        if count < 2:
            return 0.0
        mean = (self.unit_D.square().sum().item() - count) / (count * (count - 1))
        return min(1.0, max(-1.0, mean))


def embedding_health(e_VD: Tensor) -> dict[str, float]:
    """The four figures of a whole table's candidate rows, in float64.

    With λ the eigenvalues of the rows' covariance (over N, not N - 1) and λ̄ their mean:

    variance      λ̄, the mean over dimensions of the variance over items
    mean_cosine   of two distinct items, over all pairs; a row of zeros has no direction and is left out
    isotropy      min λ / max λ, in [0, 1]
    kl_gaussian   KL(N(μ, Σ) || N(μ, λ̄ I)) = -1/2 Σ ln(λ / λ̄), in nats: 0 where all directions are spread alike

    Defined everywhere: a flat direction makes isotropy 0 and counts in the KL as λ / λ̄ = 1e-12. Equal rows, or fewer
    than two, have variance 0, isotropy 0 and the largest KL, D ln(1e12) / 2; without two directions the mean cosine
    is 0. TrainingError when a value is not finite.

    >>> embedding_health(torch.tensor([[9., 9.], [9., 9.], [1., 0.], [-1., 0.], [0., 1.], [0., -1.]]))["isotropy"]
    1.0
    """
    return Moments.of(e_VD[FIRST_INDEX:]).figures()


def health_metrics(model: Any) -> dict[str, float]:
    """The figures of a model's item table under the names of a run's metrics; none of a model that learns no table.

    Of a sharded table they are those of all ranks' rows, and every rank calls this.
    """
    table = getattr(model, "items", None)
    if not isinstance(table, nn.Embedding | ShardedTable):
        return {}
    if isinstance(table, ShardedTable):
        first = -((table.rank - FIRST_INDEX) // table.world)  # row s of a shard is item s W + r
        figures = Moments.of(table.weight[first:]).over_ranks().figures()
    else:
        figures = embedding_health(table.weight)
    return {PREFIX + name: figures[name] for name in FIGURES}


def with_validation(
    history: Sequence[Mapping[str, float]], entry: Mapping[str, float], best_epoch: int
) -> list[dict[str, float]]:
    """The history and one more validation; beyond KEPT every other one goes, but not the best and not the new.

    >>> long = [{"epoch": i} for i in range(1, KEPT + 1)]
    >>> kept = with_validation(long, {"epoch": KEPT + 1}, best_epoch=2)
    >>> [e["epoch"] for e in kept[:4]], kept[-1]["epoch"], len(kept)
    ([1, 2, 3, 5], 257, 130)
    """
    longer = [dict(e) for e in (*history, entry)]
    if len(longer) <= KEPT:
        return longer
    kept = [e for i, e in enumerate(longer[:-1]) if i % 2 == 0 or e["epoch"] == best_epoch]
    return [*kept, longer[-1]]


def figures_at(history: Sequence[Mapping[str, float]], epoch: int) -> dict[str, float]:
    """The figures of one epoch's validation in a history; none where it is not."""
    entry = next((e for e in history if e["epoch"] == epoch), {})
    return {name: value for name, value in entry.items() if name.startswith(PREFIX)}
