"""What the data stages hand to the model stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COUNTS = ("rows", "events", "duplicates", "quarantined", "late")


@dataclass(frozen=True)
class Data:
    """What the model stages need to know of the data stages: pinned versions and the dates."""

    versions: Mapping[str, int]
    arrivals: tuple[str, ...]
    day: str
    items_hash: str = ""
    sizes: Mapping[str, int] | None = None
