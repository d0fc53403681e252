"""SIGKILL, then the same command again: the state equals that of an undisturbed run, row by row.

Named points are wrapped by tests/faults/killed.py; random moments are drawn from FAULT_SEED, once per
repetition (FAULT_REPETITIONS, 1 in CI).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.disturbance import REPETITIONS, drawn, fresh, killed, killed_at, rows_of
from tests.pipelines.commands import ROOT, logs2rec

pytestmark = pytest.mark.fault

TABLES = {
    "events": ("events", "quarantine", "ingested_files"),
    "vocabularies": ("items", "field_values"),
    "histories": ("histories",),
    "sequences": ("sequences",),
    "samples": ("samples", "fields"),
}
"""What a stage commits; a table is drawn from these."""


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("events", "between_files_and_commit"),
        ("events", "between_commit_and_answer"),
        ("events", "between_commits_and_ledger"),
        ("vocabularies", "between_commit_and_answer"),
        ("histories", "between_files_and_commit"),
        ("sequences", "between_files_and_commit"),
        ("sequences", "between_commits_and_ledger"),
        ("samples", "between_commit_and_answer"),
    ],
)
def test_killed_at_a_point(
    raw: Path, undisturbed: Undisturbed, tmp_path: Path, stage: str, point: str, repetition: int
) -> None:
    table = drawn(repetition, stage, point).choice(TABLES[stage])
    recipe = fresh(tmp_path / "run", raw)
    workspace = recipe.parent / "workspace"
    undisturbed.before(stage, workspace)
    before = rows_of(workspace)
    killed_at(point, table, "stage", stage, "--config", recipe)
    assert rows_of(workspace) == before  # nothing is half published
    again = logs2rec("stage", stage, "--config", recipe)
    assert again.code == 0, again.stderr
    assert rows_of(workspace) == rows_of(undisturbed.after(stage))


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_killed_at_any_moment(raw: Path, undisturbed: Undisturbed, tmp_path: Path, repetition: int) -> None:
    """The driver and all its children, at a moment drawn from all but the first of an undisturbed run."""
    seconds = drawn(repetition).uniform(0.3, 0.95) * undisturbed.seconds["events"]
    recipe = killed(["stage", "events"], lambda folder: fresh(folder, raw), tmp_path, seconds)
    workspace = recipe.parent / "workspace"
    whole = rows_of(undisturbed.after("events"))
    assert set(rows_of(workspace)["runs"]) <= set(whole["runs"])
    again = logs2rec("stage", "events", "--config", recipe)
    assert again.code == 0, again.stderr
    assert rows_of(workspace) == whole


def test_two_at_once(raw: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
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
    assert rows_of(recipe.parent / "workspace") == rows_of(undisturbed.after("events"))
