"""Settings of the Spark stages. Apart from the jobs, because executors have no pydantic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.config import Settings


class VocabularySettings(Settings):
    """When a key enters its vocabulary."""

    min_item_count: int = Field(1, ge=1)
    """Events that an item needs."""
    min_value_count: int = Field(1, ge=1)
    """Occurrences that a field's value needs; values of side files always enter."""


class SequenceSettings(Settings):
    """How histories become sequences."""

    split: Literal["temporal", "leave_one_out"] = "temporal"
    """temporal: for run date d train on days before d-1, validate on d-1, test on d. leave_one_out: each
    user's last event tests, the one before validates; for comparison with papers."""
    max_length: int = Field(50, ge=1)
    """L: training sequences are cut into chunks of L+1 events, the latest chunk full."""
    history_cap: int = Field(1000, ge=1)
    """Events kept of the history before an evaluation target (also what "history removed" removes)."""
    positives_only: bool = False
    """Leave out events whose label is 0."""


class SampleSettings(Settings):
    """How labelled events are split into training, validation and test samples."""

    split: Literal["temporal", "per_user_ratio"] = "temporal"
    """temporal: days before d-1, d-1, and d. per_user_ratio: the last share of each user's events tests."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """per_user_ratio: share of each user's latest events (rounded up) for test."""
    valid_share: float = Field(0.1, gt=0, lt=1)
    """per_user_ratio: share of each user's remaining latest events (rounded up) for validation."""
