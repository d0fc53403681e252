"""What every model's configuration says of its model (train/configs.py, train/ranking_configs.py)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from infra.config import Settings

FORMAT_VERSION = 2
"""Of artifacts: what a model's tensors are called, and what they and absent settings mean. Part of what a training is a
function of, so that with another version models are trained again."""


Width = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=1_024)]
Steps = Annotated[int, Field(ge=1, le=100_000)]
"""No model is near these bounds; a description that goes beyond them, by mistake or to harm, ends here and not in a
loop without end (train.artifact)."""


class Architecture(Settings):
    """What every model's configuration says of it besides its settings."""

    kind: ClassVar[str]
    """The protocol that the model serves: sequence or ranking."""
    counted: ClassVar[bool] = False
    """Counted over the training data in this process instead of trained by workers; has nothing to search."""
    later: ClassVar[tuple[str, ...]] = ()
    """Settings that came later: a study's cell is called as before where they are at their defaults."""
