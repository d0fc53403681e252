"""A Spark task killed in the middle of a file: the task is tried again, and nothing of the first try counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kill import rows_of
from tests.pipelines.commands import logs2rec, small_recipe

pytestmark = pytest.mark.fault

STAGES = ("events", "vocabularies", "histories", "sequences", "samples")


def stage(recipe: Path, name: str, *more: str) -> None:
    done = logs2rec("stage", name, "--config", recipe, *more)
    assert done.code == 0, done.stderr


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    assert logs2rec("simulate", folder, "--users", 60, "--items", 30, "--days", 4, "--seed", 5).code == 0
    return folder


def fresh(folder: Path, raw: Path, **spark: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "raw").symlink_to(raw)
    return small_recipe(folder, spark={"shuffle_partitions": 2, **spark})


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    recipe = fresh(tmp_path_factory.mktemp("undisturbed") / "run", raw)
    for name in STAGES:
        stage(recipe, name)
    return rows_of(recipe.parent / "workspace")


@pytest.mark.parametrize("table", ["events", "histories", "sequences", "samples"])
def test_killed_in_the_middle_of_a_file(
    raw: Path, undisturbed: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    marker = tmp_path / "killed"
    monkeypatch.setenv("FAULT_TABLE", table)
    monkeypatch.setenv("FAULT_MARKER", str(marker))
    recipe = fresh(tmp_path / "run", raw, conf={"spark.python.daemon.module": "tests.faults.dying_worker"})
    for name in STAGES:
        stage(recipe, name)
    assert marker.exists(), "no task wrote a file of that table: nothing was killed"
    assert rows_of(recipe.parent / "workspace") == undisturbed
    files = (recipe.parent / "workspace" / "lake" / table).rglob("*.parquet")
    assert any(f.read_bytes()[-4:] != b"PAR1" for f in files), "the first try left no half of a file"
