"""Runs stages through the real spark-submit, on executors with a Python environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pyspark
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.archive import build
from infra.java import find_java
from infra.lake import Lake
from infra.ledger import Ledger
from tests.pipelines.commands import ROOT, Done

EXECUTOR_PACKAGES = ("pyspark", "pyarrow", "deltalake", "numpy")
"""All that an executor's Python has, with what these require; numpy because arrays of Arrow are handed on as its."""

SCRIPT = ROOT / "featurize" / "submit.py"
REVISION = "the-revision-in-the-archive"


def closure(*names: str) -> set[str]:
    """Names of distributions, with everything that they require (their extras excepted), recursively."""
    found: set[str] = set()
    while names:
        found |= {*map(canonicalize_name, names)}
        required = [Requirement(line) for name in names for line in distribution(name).requires or ()]
        wanted = {canonicalize_name(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})}
        names = tuple(wanted - found)
    return found


def python_with(folder: Path, *names: str) -> Path:
    """The interpreter of a new environment in which these distributions, linked from ours, are all there is."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for name in names:
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


def spark_home(folder: Path) -> Path:
    """Spark as the pip package has it, in a folder of its own: a local-cluster leaves its `work` in SPARK_HOME."""
    folder.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        if part.name != "work":
            (folder / part.name).symlink_to(part)
    return folder


@dataclass(frozen=True)
class Place:
    """Where spark-submit is called from: outside the checkout, with the archive, executors on `python`."""

    folder: Path
    python: Path
    archive: Path
    home: Path

    @classmethod
    def make(cls, folder: Path) -> Place:
        """One with executors that have what executors need, and nothing else."""
        python = python_with(folder / "environment", *closure(*EXECUTOR_PACKAGES))
        return cls(folder, python, build(folder / "logs2rec.zip", REVISION), spark_home(folder / "spark"))

    def start(self, options: Sequence[str], *arguments: str | Path) -> subprocess.Popen[bytes]:
        """`spark-submit OPTIONS submit.py ARGUMENTS`, under way; what it says goes to files in the folder."""
        ours = ("SPARK_", "PYSPARK_", "PYTHON")  # above all PYTHONPATH
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        environment |= {
            "JAVA_HOME": str(find_java().home),
            "SPARK_HOME": str(self.home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYSPARK_PYTHON": str(self.python),
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }
        submit = Path(sys.executable).parent / "spark-submit"
        command = [submit, *options, "--py-files", self.archive, SCRIPT, *arguments]
        (self.folder / "cwd").mkdir(exist_ok=True)
        with (self.folder / "stdout").open("w") as out, (self.folder / "stderr").open("w") as err:
            return subprocess.Popen(
                list(map(str, command)), cwd=self.folder / "cwd", env=environment, stdout=out, stderr=err
            )

    def finish(self, process: subprocess.Popen[bytes], timeout: float = 540) -> Done:
        """Wait for the end of what `start` started."""
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return Done(code, (self.folder / "stdout").read_text(), (self.folder / "stderr").read_text())

    def submit(self, options: Sequence[str], *arguments: str | Path) -> Done:
        """Start and finish."""
        return self.finish(self.start(options, *arguments))


def tables_of(workspace: Path) -> dict[str, list[str]]:
    """Every row of every published table, as sorted text."""
    lake = Lake(workspace / "lake")
    latest = {t: v for r in Ledger(lake).rows() for t, v in r.outputs.items()}
    return {t: sorted(repr(row) for row in lake.read(t, v).to_pylist()) for t, v in latest.items()}


def ledger_of(workspace: Path) -> list[dict[str, Any]]:
    """The ledger's rows without what differs from run to run: times, run, code, and the names of data files."""
    passing = {"seconds", "run_id", "published_at", "code_version"}
    rows = []
    for published in Ledger(Lake(workspace / "lake")).rows():
        row = {k: v for k, v in published.__dict__.items() if k not in passing}
        row["report"] = {k: v for k, v in published.report.items() if k != "state"}  # of histories: hashes of names
        rows.append(row)
    return sorted(rows, key=repr)


def code_versions(workspace: Path) -> set[str]:
    """What the ledger calls the code that published."""
    return {r.code_version for r in Ledger(Lake(workspace / "lake")).rows()}
