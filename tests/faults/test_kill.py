"""SIGKILL, then the same command again: the state equals that of an undisturbed run, row by row.

Named points are wrapped by tests/faults/killed.py; random moments are drawn from FAULT_SEED, once per
repetition (FAULT_REPETITIONS, 1 in CI).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.disturbance import REPETITIONS, drawn, fresh, kill_family, rows_of, started
from tests.pipelines.commands import ROOT, logs2rec

pytestmark = pytest.mark.fault

TABLES = {"events": ("events", "quarantine", "ingested_files"), "vocabularies": ("items", "field_values")}
"""What a stage commits, in this order; a table is drawn from these."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    assert logs2rec("simulate", folder, "--users", 60, "--items", 30, "--days", 4, "--seed", 5).code == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """The rows after each stage of a run that nobody disturbs."""
    recipe = fresh(tmp_path_factory.mktemp("undisturbed") / "run", raw)
    out = {}
    for stage in ("events", "vocabularies"):
        done = logs2rec("stage", stage, "--config", recipe)
        assert done.code == 0, done.stderr
        out[stage] = rows_of(recipe.parent / "workspace")
    return out


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("events", "between_files_and_commit"),
        ("events", "between_commit_and_answer"),
        ("events", "between_commits_and_ledger"),
        ("vocabularies", "between_commit_and_answer"),
    ],
)
def test_killed_at_a_point(
    raw: Path, undisturbed: dict[str, dict[str, list[str]]], tmp_path: Path, stage: str, point: str, repetition: int
) -> None:
    table = drawn(repetition, stage, point).choice(TABLES[stage])
    recipe = fresh(tmp_path / "run", raw)
    workspace = recipe.parent / "workspace"
    if stage == "vocabularies":
        assert logs2rec("stage", "events", "--config", recipe).code == 0
    before = rows_of(workspace)
    command = ["-m", "tests.faults.killed", point, table, "stage", stage, "--config", str(recipe)]
    killed = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert rows_of(workspace) == before  # nothing is half published
    again = logs2rec("stage", stage, "--config", recipe)
    assert again.code == 0, again.stderr
    assert rows_of(workspace) == undisturbed[stage]


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_at_any_moment(
    raw: Path, undisturbed: dict[str, dict[str, list[str]]], tmp_path: Path, repetition: int
) -> None:
    """The driver and all its children, at a moment drawn between start and a usual run's length."""
    recipe = fresh(tmp_path / "run", raw)
    workspace = recipe.parent / "workspace"
    process = started("stage", "events", "--config", recipe)
    time.sleep(drawn(repetition).uniform(1.0, 15.0))
    kill_family(process)
    published = rows_of(workspace)
    assert set(published["runs"]) <= set(undisturbed["events"]["runs"])
    again = logs2rec("stage", "events", "--config", recipe)
    assert again.code == 0, again.stderr
    assert rows_of(workspace) == undisturbed["events"]


def test_two_at_once(raw: Path, undisturbed: dict[str, dict[str, list[str]]], tmp_path: Path) -> None:
    """Two commands on one workspace: each succeeds or says that the other is at work; no row is there twice."""
    recipe = fresh(tmp_path / "run", raw)
    command = [sys.executable, "-m", "pipelines.cli", "stage", "events", "--config", str(recipe)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    answers = [(p.communicate(timeout=300)[1], p.returncode) for p in both]
    for words, code in answers:
        assert code == 0 or (code == 2 and "is at work there" in words), words
    assert 0 in {code for _, code in answers}
    assert logs2rec("stage", "events", "--config", recipe).code == 0
    assert rows_of(recipe.parent / "workspace") == undisturbed["events"]
