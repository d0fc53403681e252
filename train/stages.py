"""Which stage every epoch belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from infra.errors import TrainingError
from train.protocol import Stage


def stages_of(model: Any, epochs: int) -> list[Stage]:
    """The stage of every epoch, in order; a model without `stages` has one, named 'main'.

    Raises TrainingError for a stage that freezes nothing it names, or everything.
    """
    stages: Sequence[Stage] = model.stages() if hasattr(model, "stages") else [Stage("main", 1.0, model.loss)]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    for stage in stages:
        _require_parameters(stage, trainable)
    lengths = split_epochs([s.share for s in stages], epochs)
    return [stage for stage, length in zip(stages, lengths, strict=True) for _ in range(length)]


def split_epochs(shares: Sequence[float], epochs: int) -> list[int]:
    """Whole epochs by share: at least one each, together `epochs`, otherwise as near as possible.

    >>> split_epochs([0.3, 0.1, 0.6], 10), split_epochs([0.3, 0.1, 0.6], 4)
    ([3, 1, 6], [1, 1, 2])
    """
    if epochs < len(shares):
        raise TrainingError(f"training.epochs {epochs} is less than the model's {len(shares)} stages; raise it")
    exact = [share / sum(shares) * epochs for share in shares]
    lengths = [max(1, math.floor(e + 1e-9)) for e in exact]
    while sum(lengths) != epochs:
        step = 1 if sum(lengths) < epochs else -1
        open_to_change = [i for i, n in enumerate(lengths) if n + step >= 1]
        lengths[max(open_to_change, key=lambda i: step * (exact[i] - lengths[i]))] += step
    return lengths


def _require_parameters(stage: Stage, trainable: set[str]) -> None:
    for prefix in stage.frozen:
        if not any(name.startswith(prefix) for name in trainable):
            raise TrainingError(f"stage {stage.name!r} freezes {prefix!r}, but no parameter's name begins so")
    if all(name.startswith(stage.frozen) for name in trainable):
        raise TrainingError(f"stage {stage.name!r} freezes every parameter; nothing is left to train")
