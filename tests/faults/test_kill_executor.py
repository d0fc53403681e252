"""An executor dies in the middle of a submitted job: its tasks run again, and the tables show nothing of it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from featurize.simulate import simulate
from tests.faults.disturbance import REPETITIONS, drawn, fresh
from tests.featurize.submitting import Place, ledger_of, tables_of
from tests.pipelines.commands import logs2rec

pytestmark = pytest.mark.fault

CLUSTER = ("--master", "local-cluster[2,1,1024]", "--driver-memory", "700m")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("submit"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    simulate(folder, users=600, items=100, days=6, seed=5)
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace that the command line leaves."""
    recipe = fresh(tmp_path_factory.mktemp("undisturbed") / "run", raw)
    done = logs2rec("stage", "events", "--config", recipe)
    assert done.code == 0, done.stderr
    return recipe.parent / "workspace"


def at_work(job: subprocess.Popen[bytes], place: Place) -> tuple[psutil.Process, psutil.Process]:
    """The first executor's JVM with a Python worker of its own, as soon as there is one."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and job.poll() is None:
        for process in psutil.Process(job.pid).children(recursive=True):
            try:
                daemons = process.children() if "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()) else []
                workers = [w for daemon in daemons for w in daemon.children()]
            except psutil.NoSuchProcess:
                continue
            if workers:
                assert str(place.python) in daemons[0].cmdline()[0]
                return process, workers[0]
        time.sleep(0.02)
    raise AssertionError(f"no executor was seen at work: {(place.folder / 'stdout').read_text()[-2000:]}")


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("victim", ["executor", "python worker"])
def test_killed_while_a_task_runs(
    place: Place, raw: Path, undisturbed: Path, tmp_path: Path, victim: str, repetition: int
) -> None:
    recipe = fresh(tmp_path / "run", raw)
    job = place.start(CLUSTER, "events", "--config", recipe)
    try:
        executor, worker = at_work(job, place)
        time.sleep(drawn(repetition, victim).uniform(0.0, 0.2))  # its first task loads our packages that long
        (executor if victim == "executor" else worker).send_signal(signal.SIGKILL)
    finally:
        done = place.finish(job)
    assert done.code == 0, done.stdout[-3000:]
    assert ("Lost executor" if victim == "executor" else "Python worker exited unexpectedly") in done.stderr
    assert "Lost task" in done.stderr  # a task was under way
    workspace = recipe.parent / "workspace"
    assert tables_of(workspace) == tables_of(undisturbed)
    assert ledger_of(workspace) == ledger_of(undisturbed)
