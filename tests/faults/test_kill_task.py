"""A Spark task killed in the middle of a file, or without room for one: nothing of what it began counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.committers import fill
from tests.faults.conftest import Undisturbed
from tests.faults.disturbance import REPETITIONS, drawn, fresh, rows_of
from tests.pipelines.commands import SPARK, logs2rec

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("stage", ["events", "histories", "sequences", "samples"])
def test_killed_in_the_middle_of_a_file(
    raw: Path, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, repetition: int
) -> None:
    daemon = {**SPARK["conf"], "spark.python.daemon.module": "tests.faults.dying_worker"}
    recipe = fresh(tmp_path / "run", raw, spark={**SPARK, "conf": daemon})
    workspace = recipe.parent / "workspace"
    undisturbed.before(stage, workspace)
    chance, marker = drawn(repetition, stage), tmp_path / "file"
    file, share = chance.randrange(2), chance.uniform(0.05, 0.95)
    monkeypatch.setenv("FAULT_TABLE", stage)
    monkeypatch.setenv("FAULT_MARKER", str(marker))
    monkeypatch.setenv("FAULT_FILE", str(file))
    monkeypatch.setenv("FAULT_SHARE", str(share))
    done = logs2rec("stage", stage, "--config", recipe)
    assert done.code == 0, done.stderr
    assert marker.with_name(f"file{file}").exists(), "no task wrote that file of the table: nothing was killed"
    assert rows_of(workspace) == rows_of(undisturbed.after(stage))
    files = (workspace / "lake" / stage).rglob("*.parquet")
    assert any(f.read_bytes()[-4:] != b"PAR1" for f in files), "the first try left no part of a file"


@pytest.mark.parametrize("stage", ["histories", "sequences"])
def test_a_task_finds_the_disk_full(
    raw: Path, undisturbed: Undisturbed, small_disk: Path, tmp_path: Path, stage: str
) -> None:
    """The task's own error is what the command says; with room again the same command does it all."""
    workspace = small_disk / "workspace"
    recipe = fresh(tmp_path / "run", raw, workspace=str(workspace))
    undisturbed.before(stage, workspace)
    before = rows_of(workspace)
    fill(small_disk, 32 << 10)  # enough for the lock and a log entry, not for a file of every bucket
    failed = logs2rec("stage", stage, "--config", recipe)
    assert failed.code == 1
    assert "cannot be written ([Errno 28] No space left on device)" in " ".join(failed.stderr.split())
    assert rows_of(workspace) == before
    (small_disk / "filler").unlink()
    again = logs2rec("stage", stage, "--config", recipe)
    assert again.code == 0, again.stderr
    assert rows_of(workspace) == rows_of(undisturbed.after(stage))
