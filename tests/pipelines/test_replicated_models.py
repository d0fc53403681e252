"""The sections of replicate.yaml, each as it is shipped, for two steps of every stage."""

from __future__ import annotations

import pytest
import torch

from infra.config import read_yaml
from pipelines.replicate import SETTINGS, settings_of
from tests.train.models.contract import CATALOGUE, TRAINING
from train.models import build_sequence
from train.stages import stages_of
from train.step import Stepper

COUNTED = {"popularity", "bigram"}


@pytest.mark.parametrize("section", sorted(set(read_yaml(SETTINGS)) - COUNTED))
def test_gradients_of_a_fresh_model_are_of_a_sane_size(section: str) -> None:
    """At the shipped depth: what vanishes in a shallow model may be a factor of 1e6 for each LayerNorm in this one."""
    shipped = settings_of(section)
    training = shipped.training.model_copy(update={"clip_norm": 0.0})
    torch.manual_seed(0)
    model = build_sequence(shipped.config, CATALOGUE).train()
    names, known = {name for name, _ in model.named_parameters()}, {}
    for stage in {stage.name: stage for stage in stages_of(model, training.epochs)}.values():
        stepper = Stepper(model, stage, names, training, 1, known)
        for step in range(2):
            stepper.step([TRAINING], torch.Generator().manual_seed(step), 1e-3, (False, False))
            sizes = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            assert 1e-4 < torch.stack(sizes).norm() < 100, stage.name
        known = stepper.known()
