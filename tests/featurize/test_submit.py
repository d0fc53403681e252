"""featurize/submit.py: what spark-submit runs does what the command line does."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from featurize.simulate import simulate
from pipelines.cli import main as logs2rec
from pipelines.run import DATA_STAGES
from tests.featurize.submitting import REVISION, SCRIPT, Place, code_versions, ledger_of, tables_of
from tests.pipelines.commands import small_recipe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("submit"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    simulate(folder, users=60, items=30, days=4, seed=5)
    return folder


@pytest.fixture(scope="module")
def plain(spark: SparkSession, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose events the command line has published; the last test here goes on from there."""
    recipe = recipe_over(raw, tmp_path_factory.mktemp("plain"))
    command_line("events", recipe)
    return recipe


def command_line(stage: str, recipe: Path) -> None:
    """`logs2rec stage`, on the shared session."""
    with pytest.raises(SystemExit) as done:
        logs2rec(["stage", stage, "--config", str(recipe)])
    assert done.value.code == 0


def recipe_over(raw: Path, folder: Path) -> Path:
    """A recipe with a workspace of its own; its `spark` section is the shared session's."""
    (folder / "raw").symlink_to(raw)
    return small_recipe(folder)


def called(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The script run in this process as spark-submit runs it; its exit code."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert str(SCRIPT.parent) not in sys.path
    return done.value.code


@pytest.mark.parametrize("arguments", [["train", "--config", "r.yaml"], ["--config", "r.yaml", "promote"]])
def test_other_stages_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called([*arguments, "--json"], monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "needs no Spark" in err
    assert json.loads(out.splitlines()[-1])["kind"] == "UsageError"


def test_what_is_wrong_is_said_as_the_command_line_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["events", "--config", "nowhere.yaml", "--json"], ["evnts", "--config", "nowhere.yaml"], []):
        code = called(arguments, monkeypatch)
        said = capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            logs2rec(["stage", *arguments])
        assert (code, said) == (done.value.code, capsys.readouterr())
        assert code == 2


def test_without_the_packages_it_says_what_to_do(place: Place, tmp_path: Path) -> None:
    copy = shutil.copy(SCRIPT, tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [place.python, copy, "events", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "--py-files logs2rec.zip" in done.stderr
    assert json.loads(done.stdout)["exit_code"] == 2


def test_the_packages_of_the_checkout_serve_where_none_is_installed(tmp_path: Path) -> None:
    # -S and the folder of the packages: everything that is installed, but not the link to this checkout
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    command = [sys.executable, "-S", SCRIPT, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "published in front of it" in done.stdout


@pytest.mark.slow
def test_events_in_one_process(plain: Path, place: Place, raw: Path, tmp_path: Path) -> None:
    recipe = recipe_over(raw, tmp_path)
    done = place.submit(["--master", "local[2]"], "events", "--config", recipe, "--json")
    assert done.code == 0, done.stderr
    workspace = tmp_path / "workspace"
    assert tables_of(workspace) == tables_of(plain.parent / "workspace")
    assert ledger_of(workspace) == ledger_of(plain.parent / "workspace")
    assert done.json["tables"]["events"]["rows"] == len(tables_of(workspace)["events"]) > 1000
    assert code_versions(workspace) == {REVISION}
    assert not list((place.folder / "cwd").iterdir())


def test_exit_codes_come_through(place: Place, raw: Path, tmp_path: Path) -> None:
    recipe = recipe_over(raw, tmp_path)
    refused = place.submit(["--master", "local[2]"], "events", "--config", recipe, "--from", "2031-01-01")
    assert refused.code == 3, refused.stderr
    contrary = ["--master", "local[2]", "--conf", "spark.sql.session.timeZone=Europe/Berlin"]
    fixed = place.submit(contrary, "events", "--config", recipe)
    assert fixed.code == 2, fixed.stderr
    assert "spark.sql.session.timeZone=Europe/Berlin, but the tables rely on UTC" in fixed.stdout


@pytest.mark.slow
def test_every_stage_on_a_cluster(plain: Path, place: Place, raw: Path, tmp_path: Path) -> None:
    """Two executor processes whose Python has pyspark, pyarrow and deltalake; our packages from the archive."""
    recipe = recipe_over(raw, tmp_path)
    workspace = tmp_path / "workspace"
    options = ["--master", "local-cluster[2,1,1024]", "--driver-memory", "700m"]
    for stage in DATA_STAGES:
        done = place.submit(options, stage, "--config", recipe)
        assert done.code == 0, f"{stage}: {done.stdout[-3000:]}"
        command_line(stage, plain)
    assert tables_of(workspace) == tables_of(plain.parent / "workspace")
    assert ledger_of(workspace) == ledger_of(plain.parent / "workspace")
    assert code_versions(workspace) == {REVISION}
    executors = [p for app in (place.home / "work").iterdir() for p in app.iterdir()]
    assert len(executors) == 2 * len(DATA_STAGES)
