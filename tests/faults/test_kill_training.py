"""SIGKILL of the whole family while a model trains, then the same command: the same weights, bit for bit."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.disturbance import REPETITIONS, drawn, fresh, kill_family, started
from tests.pipelines.commands import logs2rec

pytestmark = pytest.mark.fault

#: Long enough to be hit in the middle, with a checkpoint in every epoch; the shared log has 43 rows to train on.
SETTINGS = {"epochs": 20, "checkpoint_every": 1, "batch_size": 8}
TRAINING = [
    word for name, value in SETTINGS.items() for word in ("--set", f"retrieval.candidate.training.{name}={value}")
]


def weights(workspace: Path) -> str:
    """The hash of the trained weights, from the artifact's manifest."""
    (manifest,) = workspace.glob("artifacts/retrieval-adrec-*/MANIFEST.json")
    found: str = json.loads(manifest.read_text())["files"]["model.safetensors"]["sha256"]
    return found


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_while_training(raw: Path, undisturbed: Undisturbed, tmp_path: Path, repetition: int) -> None:
    """Retrieval only: one ADRec."""
    recipe = fresh(tmp_path / "run", raw, ranking=None)
    workspace, straight = recipe.parent / "workspace", recipe.parent / "straight"
    for copy in (workspace, straight):
        shutil.copytree(undisturbed.after("sequences"), copy)
    done = logs2rec("stage", "train", "--config", recipe, *TRAINING, "--set", f"workspace={straight}")
    assert done.code == 0, done.stderr

    process = started("stage", "train", "--config", recipe, *TRAINING)
    after = drawn(repetition).randint(2, 12)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        lines = [len(p.read_text().splitlines()) for p in workspace.glob("training/*adrec*/progress.jsonl")]
        if lines and max(lines) >= after:
            break
        time.sleep(0.05)
    assert kill_family(process), "training ended before it could be killed"
    assert not list(workspace.glob("artifacts/retrieval-adrec-*/MANIFEST.json"))

    again = logs2rec("stage", "train", "--config", recipe, *TRAINING, "--json")
    assert again.code == 0, again.stderr
    assert weights(workspace) == weights(straight)
