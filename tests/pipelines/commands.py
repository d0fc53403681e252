"""Runs the command line as a user does: another process, its exit code, its last line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "pipelines" / "recipes"

#: The session of the test run; its JVM lives too briefly for the second compiler to pay.
SPARK = {
    "shuffle_partitions": 2,
    "conf": {"spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"},
}

#: Models small enough that a whole line takes a minute.
_TRAINING = {"epochs": 2, "batch_size": 64, "learning_rate": 0.005, "workers": 2, "checkpoint_every": 2}
_QUICK = {**_TRAINING, "epochs": 1, "workers": 1}


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of stdout."""
        found: dict[str, Any] = json.loads(self.stdout.strip().splitlines()[-1])
        return found


def logs2rec(*arguments: str | Path, timeout: float = 540) -> Done:
    """Run one command in a process of its own."""
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def small_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe over `folder/raw` with tiny models; `changes` replace top-level settings."""
    recipe = {
        "name": "small",
        "data": str(folder / "raw"),
        "workspace": str(folder / "workspace"),
        "contract": str(RECIPES / "contracts" / "simulator.yaml"),
        "spark": SPARK,
        "ray": {"cpus": 2, "object_store_mb": 100},
        "tracking": {"training": False},
        "sequences": {"max_length": 20},
        "retrieval": {
            "candidate": {
                "config": {
                    "model": "adrec",
                    "width": 16,
                    "blocks": 1,
                    "denoiser_blocks": 1,
                    "max_length": 20,
                    "steps": 4,
                },
                "training": {**_TRAINING, "epochs": 4},
            },
            "baselines": [{"config": {"model": "popularity"}}],
            "evaluation": {"category_field": "category"},
        },
        "ranking": {
            "candidate": {
                "config": {"model": "asymdiffrec", "base": {"embedding_width": 4, "hidden": [16]}, "hidden": 16},
                "training": _QUICK,
            },
            "gate": {"min_users": 100_000},
        },
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path
