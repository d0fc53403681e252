"""infra/archive.py: the archive for spark-submit holds the packages, always the same bytes, and knows its revision."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from infra.archive import PACKAGES, ROOT, build
from infra.ledger import code_version
from tests.test_layers import sources


def test_it_holds_every_module_and_recipe_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path / "build" / "a.zip", "r")) as archive:
        names = archive.namelist()
    modules = {p.relative_to(ROOT).as_posix() for p in sources(*PACKAGES)}
    assert {"infra/spark.py", "featurize/__init__.py", "pipelines/cli.py"} <= modules <= set(names)
    rest = set(names) - modules
    assert {"infra/REVISION", "pipelines/recipes/demo.yaml", "pipelines/recipes/contracts/simulator.yaml"} <= rest
    others = {n for n in rest if not n.startswith("pipelines/recipes/")}
    assert {n.rpartition("/")[2] for n in others} == {"REVISION", "METADATA"}


def test_equal_sources_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path / "a.zip").read_bytes()
    copy = tmp_path / "copy"
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in {".py", ".yaml"}:
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                os.utime(target, (10**9, 10**9))
    (copy / "infra" / "__pycache__").mkdir()
    (copy / "infra" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"no source")
    (copy / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr("infra.archive.ROOT", copy)
    assert build(tmp_path / "b.zip", code_version()).read_bytes() == first
    (copy / "infra" / "disk.py").write_text("x = 1\n")
    assert build(tmp_path / "c.zip", code_version()).read_bytes() != first


def test_code_from_the_archive_says_the_archives_revision(tmp_path: Path) -> None:
    path = build(tmp_path / "a.zip", "abc-dirty")
    code = (
        "import importlib.metadata, infra.ledger, pipelines.run; "
        "print(infra.ledger.__file__, infra.ledger.code_version(), importlib.metadata.version('logs2rec'))"
    )
    # -S: without the link from the environment to this checkout
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), sysconfig.get_path("purelib")])}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(path / "infra" / "ledger.py"), "abc-dirty", "0.1.0"]


def test_a_bare_copy_of_the_sources_does_not_know_its_version(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path / "a.zip", "r")) as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if n.endswith(".py")])
    # the packages' folder on the path, but nothing of it that speaks of logs2rec
    site = tmp_path / "site"
    site.mkdir()
    for part in Path(sysconfig.get_path("purelib")).iterdir():
        if "logs2rec" not in part.name:
            (site / part.name).symlink_to(part)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(site)])}
    command = [sys.executable, "-S", "-c", "from infra.ledger import code_version; print(code_version())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site, env=environment)
    assert done.stdout.strip() == "unknown", done.stderr
