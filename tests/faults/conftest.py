"""The log that most fault tests share, and what each stage leaves of it if nobody disturbs it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.disturbance import STAGES, fresh
from tests.pipelines.commands import logs2rec


@dataclass(frozen=True)
class Undisturbed:
    """Workspaces as the stages leave them, one after the other."""

    folder: Path
    seconds: dict[str, float]
    """How long each stage's command took."""

    def after(self, stage: str) -> Path:
        return self.folder / stage

    def before(self, stage: str, workspace: Path) -> None:
        """Put the workspace there as the stage finds it."""
        if stage != STAGES[0]:
            shutil.copytree(self.folder / STAGES[STAGES.index(stage) - 1], workspace)


@pytest.fixture(scope="session")
def lake_log(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with the log and what the stages make of it, made once for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "undisturbed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "seconds.json").exists():
            (folder / "seconds.json").write_text(json.dumps(_undisturbed(folder)))
    return folder


def _undisturbed(folder: Path) -> dict[str, float]:
    raw, seconds = folder / "raw", {}
    assert logs2rec("simulate", raw, "--users", 60, "--items", 30, "--days", 5, "--seed", 5).code == 0
    recipe = fresh(folder / "run", raw)
    for stage in STAGES:
        begun = time.monotonic()
        done = logs2rec("stage", stage, "--config", recipe)
        assert done.code == 0, done.stderr
        seconds[stage] = time.monotonic() - begun
        shutil.copytree(recipe.parent / "workspace", folder / stage)
    return seconds


@pytest.fixture(scope="session")
def raw(lake_log: Path) -> Path:
    return lake_log / "raw"


@pytest.fixture(scope="session")
def undisturbed(lake_log: Path) -> Undisturbed:
    return Undisturbed(lake_log, json.loads((lake_log / "seconds.json").read_text()))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of eight megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs takes root and mount(8)")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
