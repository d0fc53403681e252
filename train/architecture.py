"""What every model's configuration says of its model (train/configs.py, train/ranking_configs.py)."""

from __future__ import annotations

from typing import ClassVar

from infra.config import Settings


class Architecture(Settings):
    """What every model's configuration says of it besides its settings."""

    kind: ClassVar[str]
    """The protocol that the model serves: sequence or ranking."""
    counted: ClassVar[bool] = False
    """Counted over the training data in this process instead of trained by workers; has nothing to search."""
