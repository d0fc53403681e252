"""A Spark task killed in the middle of a file: the task is tried again, and nothing of the first try counts."""

from __future__ import annotations

from pathlib import Path

import pytest

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
