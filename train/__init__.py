"""Models, losses, exact ranking, the loader and the Ray Train loop. `load` opens a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.artifact import Loaded


def load(path: str | Path) -> Loaded:
    """The model artifact in `path` (train.artifact.load), importing torch only now."""
    from train.artifact import load as load_artifact

    return load_artifact(path)
