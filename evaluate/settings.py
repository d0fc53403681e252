"""The settings of evaluation and tracking, apart from the code that needs torch and mlflow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from infra.config import Settings


class RetrievalSettings(Settings):
    """What is measured of a sequence model."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((5, 10, 20, 50), min_length=1)
    """Cut-offs of HR and NDCG."""
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
    batch_size: int = Field(512, ge=1)
    """Users scored at once; with a diffusion model the noise a user gets depends on it."""


class ImpressionSettings(Settings):
    """What is measured of a ranking model."""

    batch_size: int = Field(4096, ge=1)
    """Impressions scored at once."""


class TrackingSettings(Settings):
    """Where MLflow keeps runs and models."""

    uri: str | None = None
    """Tracking and registry server (http://..., postgresql://...); null: a SQLite file in the workspace."""
    experiment: str | None = None
    """Experiment name; the recipe's name if null."""
    training: bool = True
    """Whether training runs are logged while they go on (loss, validation, throughput)."""
