"""SIGKILL of the whole family while a model trains, then the same command: the same weights, bit for bit."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.disturbance import REPETITIONS, drawn, kill_family, started
from tests.pipelines.commands import logs2rec, small_recipe

pytestmark = pytest.mark.fault

#: Long enough to be hit in the middle, with a checkpoint in every epoch.
TRAINING = [
    "--set",
    "retrieval.candidate.training.epochs=30",
    "--set",
    "retrieval.candidate.training.checkpoint_every=1",
]


def recipe_in(folder: Path) -> Path:
    """Retrieval only: one ADRec."""
    made = logs2rec("simulate", folder / "raw", "--users", 120, "--items", 40, "--days", 4, "--seed", 2)
    assert made.code == 0, made.stderr
    recipe = small_recipe(folder, ranking=None)
    for stage in ("events", "vocabularies", "histories", "sequences"):
        done = logs2rec("stage", stage, "--config", recipe)
        assert done.code == 0, done.stderr
    return recipe


def weights(recipe: Path, workspace: str) -> str:
    """The hash of the trained weights, from the artifact's manifest."""
    (manifest,) = (recipe.parent / workspace / "artifacts").glob("retrieval-adrec-*/MANIFEST.json")
    found: str = json.loads(manifest.read_text())["files"]["model.safetensors"]["sha256"]
    return found


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_while_training(tmp_path: Path, repetition: int) -> None:
    recipe = recipe_in(tmp_path)
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(["cp", "-r", str(tmp_path / "workspace"), str(undisturbed)], check=True)
    done = logs2rec("stage", "train", "--config", recipe, *TRAINING, "--set", f"workspace={undisturbed}")
    assert done.code == 0, done.stderr

    process = started("stage", "train", "--config", recipe, *TRAINING)
    after = drawn(repetition).randint(2, 20)
    progress = tmp_path / "workspace" / "training"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        lines = [len(p.read_text().splitlines()) for p in progress.glob("*adrec*/progress.jsonl")]
        if lines and max(lines) >= after:
            break
        time.sleep(0.05)
    assert kill_family(process), "training ended before it could be killed"
    assert not list((tmp_path / "workspace" / "artifacts").glob("retrieval-adrec-*/MANIFEST.json"))

    again = logs2rec("stage", "train", "--config", recipe, *TRAINING, "--json")
    assert again.code == 0, again.stderr
    assert weights(recipe, "workspace") == weights(recipe, "undisturbed")
