"""The name under which a model's training resumes."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.model_stages import run_name_of
from pipelines.recipe import SequenceModelRun


def name_of(**training: Any) -> str:
    run = SequenceModelRun.model_validate({"config": {"model": "sasrec"}, "training": training})
    return run_name_of("train:retrieval:sasrec", "2026-03-01", {"sequences": 3}, run)


@pytest.mark.parametrize("changed", [{"workers": 2}, {"workers": (1, 4)}, {"max_failures": 3}, {"timeout_seconds": 90}])
def test_what_does_not_decide_the_weights_goes_on_where_it_stopped(changed: dict[str, Any]) -> None:
    assert name_of(**changed) == name_of()


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"batch_size": 8}, {"seed": 1}, {"precision": "bf16"}])
def test_what_decides_the_weights_is_another_run(changed: dict[str, Any]) -> None:
    assert name_of(**changed) != name_of()
