"""What every model's configuration says of its model (train/configs.py, train/ranking_configs.py)."""

from __future__ import annotations

from typing import ClassVar

from infra.config import Settings

FORMAT_VERSION = 2
"""Of artifacts: what a model's tensors are called, and what they and absent settings mean. Part of what a training is a
function of, so that with another version models are trained again."""


class Architecture(Settings):
    """What every model's configuration says of it besides its settings."""

    kind: ClassVar[str]
    """The protocol that the model serves: sequence or ranking."""
    counted: ClassVar[bool] = False
    """Counted over the training data in this process instead of trained by workers; has nothing to search."""
    later: ClassVar[tuple[str, ...]] = ()
    """Settings that came later: a study's cell is called as before where they are at their defaults."""
