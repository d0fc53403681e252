"""Settings of the Spark stages. Apart from the jobs, because executors have no pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from infra.config import Settings


class VocabularySettings(Settings):
    """When a key enters its vocabulary."""

    min_item_count: int = Field(1, ge=1)
    """Events that an item needs."""
    min_value_count: int = Field(1, ge=1)
    """Occurrences that a field's value needs; values of side files always enter."""


class SequenceSettings(Settings):
    """How histories become sequences."""

    split: Literal["temporal", "leave_one_out", "per_user_ratio"] = "temporal"
    """temporal: for run date d train on days before d-1, validate on d-1, test on d. leave_one_out: each
    user's last event tests, the one before validates. per_user_ratio: the last share of each user's events
    tests, a share of the rest validates. The last two for comparison with papers and for small data."""
    max_length: int = Field(50, ge=1)
    """L: training sequences are cut into chunks of L+1 events, the latest chunk full."""
    history_cap: int = Field(1000, ge=1)
    """N: a history is a user's last N events: what trains, and what stands before an evaluation target (also
    what "history removed" removes)."""
    positives_only: bool = False
    """Leave out events whose label is 0."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """per_user_ratio: share of each user's latest events (rounded up) that is the test window."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """per_user_ratio: share of each user's remaining latest events (rounded up) that is the validation window."""
    k_core: int | None = Field(None, ge=2)
    """Leave out users and items with fewer than this many events (of context too: they are part of the sequence),
    again and again until none is left to remove; not with temporal, where it would choose them by the future."""
    buckets: int = Field(8, ge=1, le=10_000)
    """Buckets of the table `histories`, by user hash; a task holds one. Fixed once the table is there."""
    base_every: int = Field(7, ge=1)
    """Days after which the daily tails of `histories` are merged into a new base."""

    @model_validator(mode="after")
    def _no_future(self) -> SequenceSettings:
        if self.k_core is not None and self.split == "temporal":
            raise ValueError(
                "k_core: with split temporal it would keep users and items for what they do in the future; "
                "leave it out, or set split to leave_one_out or per_user_ratio"
            )
        return self


class SampleSettings(Settings):
    """How labelled events are split into training, validation and test samples."""

    split: Literal["temporal", "per_user_ratio"] = "temporal"
    """temporal: days before d-1, d-1, and d. per_user_ratio: the last share of each user's events tests."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """per_user_ratio: share of each user's latest events (rounded up) for test."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """per_user_ratio: share of each user's remaining latest events (rounded up) for validation."""
    negatives: int = Field(4, ge=1, le=100)
    """Without a label rule: negatives drawn for every positive, from popularity^0.75 over the 7 days before it."""
    history: int = Field(0, ge=0, le=1000)
    """Above 0: a further field `history`, the user's last so many positive items strictly before the event."""
