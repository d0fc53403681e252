"""The log that most fault tests share, and what each stage leaves of it if nobody disturbs it."""

from __future__ import annotations

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
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    assert logs2rec("simulate", folder, "--users", 60, "--items", 30, "--days", 5, "--seed", 5).code == 0
    return folder


@pytest.fixture(scope="session")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder, seconds = tmp_path_factory.mktemp("undisturbed"), {}
    recipe = fresh(folder / "run", raw)
    for stage in STAGES:
        begun = time.monotonic()
        done = logs2rec("stage", stage, "--config", recipe)
        assert done.code == 0, done.stderr
        seconds[stage] = time.monotonic() - begun
        shutil.copytree(recipe.parent / "workspace", folder / stage)
    return Undisturbed(folder, seconds)


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
