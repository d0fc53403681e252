"""The settings of evaluation and tracking, apart from the code that needs torch and mlflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.config import Settings

COMMON = "common_catalogue"
"""The candidate set of what two models have in common."""
AccuracyMetric = Literal["hr", "ndcg", "mrr", "recall", "precision", "map"]


class RetrievalSettings(Settings):
    """What is measured of a sequence model."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20, 50), min_length=1)
    """Cut-offs."""
    metrics: tuple[AccuracyMetric, ...] = Field(("hr", "ndcg"), min_length=1)
    """What is measured at each cut-off. Of one target recall is the hit rate, and map is mrr."""
    list_length: int = Field(20, ge=1)
    """Length of the lists behind coverage and diversity."""
    category_field: str | None = None
    """The items' field whose distinct values are counted per list."""
    steps: int | None = Field(None, ge=0)
    """Steps of the reverse process at inference, at most the model's own number; all of them if null. 0 is one pass
    without noise, the row that shows what the process adds. Models without a process ignore it."""
    stop_after: int | None = Field(None, ge=1)
    """What stands after so many steps of the reverse process answers, noisy as it is; null: after all of them."""
    draws: int = Field(1, ge=1)
    """Noise draws per user; an item's score is its highest among them. Models without noise answer every one alike."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the noise at inference."""
    noise_seeds: int = Field(1, ge=1)
    """How often a diffusion model is measured, with this seed, the next, ...; figures are means over them, with their
    deviation."""
    slices: tuple[str, ...] = ()
    """Fields of the users' or items' side files (an item's: of the target) by whose values figures are cut, beside
    history, activity and the target's popularity, by which they are always cut."""
    batch_size: int = Field(512, ge=1)
    """Users scored at once; with a diffusion model the noise a user gets depends on it."""


Pattern = Literal["at_random", "by_activity", "by_day"]


class MissingnessSettings(Settings):
    """How a ranking model is tried on samples from which more fields are removed than the log misses."""

    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(tuple(n / 10 for n in range(1, 10)), min_length=1)
    """Shares of all cells that are removed, in whole percents, ascending."""
    patterns: tuple[Pattern, ...] = ("at_random", "by_activity", "by_day")
    """at_random: each cell by itself; by_activity: the fewer impressions a user has, the more; by_day: a field is gone
    for whole days, as when a source fails (left out where the samples are of fewer than 7 days)."""
    fields: bool = True
    """Whether each field is also removed from all samples, alone."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the draws; a cell that is removed at one rate is removed at all higher ones."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"rates {self.rates}: give each once, in ascending order")
        if odd := [rate for rate in self.rates if abs(100 * rate - round(100 * rate)) > 1e-6 or round(100 * rate) == 0]:
            raise ValueError(f"rates: {odd[0]} is no whole percent; figures are named by them")
        if len(set(self.patterns)) < len(self.patterns):
            raise ValueError(f"patterns {self.patterns}: one is there twice")
        return self


class ImpressionSettings(Settings):
    """What is measured of a ranking model."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10), min_length=1)
    """Cut-offs of the users' impressions in the order of their scores."""
    metrics: tuple[AccuracyMetric, ...] = Field(("hr", "ndcg"), min_length=1)
    """What is measured at each cut-off."""
    slices: tuple[str, ...] = ()
    """Fields of the samples by whose values figures are cut, beside activity, by which they are always cut."""
    missingness: MissingnessSettings | None = None
    """Also measured with more fields missing; null: only as the log has them."""

    batch_size: int = Field(4096, ge=1)
    """Impressions scored at once."""


class ScoringSettings(Settings):
    """How the lists of `recommendations` are made."""

    retrieve: int = Field(200, ge=1)
    """Candidates of the retrieval champion, which the ranking champion, if there is one, puts in order."""
    k: int = Field(20, ge=1)
    """Items of a list."""
    keep_seen: bool = False
    """Whether items of the user's own history (its events of a target type) may be recommended."""
    eligible: Path | None = None
    """File (Parquet, or CSV with a header) whose column `item` holds all that may be recommended, relative to the
    working directory; null: every item of the log."""
    popular_days: int = Field(7, ge=1)
    """What fills lists that the models leave short: the items that most users took in so many days."""
    steps: int | None = Field(None, ge=0)
    """Steps of the reverse process, as in a model's evaluation; null: all of them."""
    draws: int = Field(1, ge=1)
    """Noise draws per user; an item's score is its highest among them."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the noise."""
    batch_size: int = Field(256, ge=1)
    """Users scored at once."""

    @model_validator(mode="after")
    def _enough_candidates(self) -> Self:
        if self.k > self.retrieve:
            raise ValueError(f"k {self.k} exceeds retrieve {self.retrieve}: lists are cut from the candidates")
        return self


class TrackingSettings(Settings):
    """Where MLflow keeps runs and models."""

    uri: str | None = None
    """Tracking and registry server (http://..., postgresql://...); null: a SQLite file in the workspace."""
    experiment: str | None = None
    """Experiment name; the recipe's name if null."""
    training: bool = True
    """Whether training runs are logged while they go on (loss, validation, throughput)."""
