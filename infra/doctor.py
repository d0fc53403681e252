"""What this machine has of what a run needs, and what to do about the rest.

Findings only: printing and the exit code are the command line's. No check raises.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from infra.errors import EnvironmentProblem
from infra.java import find_java

PYTHON = (3, 11)
PACKAGES = ("pyspark", "torch", "ray", "pyarrow", "deltalake", "mlflow")
CORES = 2
MEMORY = 4 << 30
"""Bytes of free memory below which Spark's JVM, Ray and one training worker do not fit side by side."""
DISK = 5 << 30
TIMEOUT = 3.0
"""Seconds that a service has to answer."""

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Finding:
    """One thing examined: `found` is what is there, `advice` what to do (empty when there is nothing to do)."""

    name: str
    ok: bool
    found: str
    advice: str = ""


def examine(
    workspace: str | Path,
    tracking_uri: str | None = None,
    ray_address: str | None = None,
    disk: str | Path | None = None,
) -> list[Finding]:
    """Every finding, in the order in which a run meets them.

    workspace: the directory (or object-store URI) that tables and models go to. disk: where free space
    counts, the workspace unless given. tracking_uri: MLflow's store, as in the recipe. ray_address:
    the recipe's ray.address; without it a run starts its own Ray.
    """
    findings = [python(), *packages(), java(), cores(), memory()]
    where = disk if disk is not None else workspace
    if not _is_remote(where):
        findings.append(free_disk(_local(where)))
    findings.append(writable(workspace))
    if tracking_uri:
        findings.append(tracking(tracking_uri))
    if ray_address:
        findings.append(ray(ray_address))
    return [*findings, accelerator()]


def python() -> Finding:
    """The interpreter's version."""
    ok = sys.version_info >= PYTHON
    needed = ".".join(map(str, PYTHON))
    advice = "" if ok else f"make an environment with Python {needed} or newer: make setup PYTHON=python{needed}"
    return Finding("python", ok, ".".join(map(str, sys.version_info[:3])), advice)


def packages() -> Iterator[Finding]:
    """The heavy packages' versions from their metadata; none is imported."""
    for name in PACKAGES:
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "run `make setup`, or `pip install -c constraints.txt -e .`")


def java() -> Finding:
    """The Java that Spark would run on."""
    try:
        found = find_java()
    except EnvironmentProblem as problem:
        return Finding("java", False, "none that Spark can use", str(problem))
    return Finding("java", True, f"{found.version} from {found.source} ({found.home})")


def cores() -> Finding:
    """CPU cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ok = count >= CORES
    return Finding("cores", ok, str(count), "" if ok else "runs, but slowly: set spark.master to local[1,4]")


def memory() -> Finding:
    """Free memory: the machine's, but never more than the container's limit."""
    free = psutil.virtual_memory().available
    free = min(free, _container_limit() or free)
    ok = free >= MEMORY
    advice = f"free {_gib(MEMORY)} or lower spark.driver_memory and the number of training workers"
    return Finding("memory", ok, f"{_gib(free)} free", "" if ok else advice)


def free_disk(path: Path) -> Finding:
    """Free space on the file system that `path` lies on, or would lie on once made."""
    try:
        free = shutil.disk_usage(_nearest_existing(path)).free
    except OSError as error:
        return Finding("disk", False, f"{path}: {error.strerror}", "choose a directory that can be reached")
    ok = free >= DISK
    advice = f"make room on the disk of {path} ({_gib(DISK)} is a sensible floor) or move the workspace"
    return Finding("disk", ok, f"{_gib(free)} free at {path}", "" if ok else advice)


def writable(workspace: str | Path) -> Finding:
    """Whether files can be made in the workspace (or, while it does not exist, where it will be made)."""
    if _is_remote(workspace):
        return Finding(
            "workspace", True, f"{_without_secrets(str(workspace))}: object store, tried at the first commit"
        )
    path = _local(workspace)
    try:
        with tempfile.TemporaryFile(dir=_nearest_existing(path)):
            return Finding("workspace", True, f"{path} is writable")
    except OSError as error:
        advice = "give this user write access to it, or point `workspace` to a directory of your own"
        return Finding("workspace", False, f"{path}: {error.strerror}", advice)


def tracking(uri: str) -> Finding:
    """MLflow's store: a SQLite file that can be written, or a server that answers."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme == "sqlite":
        return _sqlite(uri)
    if scheme in ("http", "https"):
        return _health(uri)
    if scheme in _DATABASE_PORTS:
        return _reach("tracking", uri, _DATABASE_PORTS[scheme], "start the database, or correct the tracking URI")
    advice = "use sqlite:///PATH/mlflow.db or the http(s) address of an MLflow server; MLflow refuses file stores"
    return Finding("tracking", False, f"{_without_secrets(uri)}: not a kind of store known here", advice)


def ray(address: str) -> Finding:
    """Whether something listens at the Ray cluster's address: host:port, ray://host:port, or auto."""
    advice = "start it (`ray start --head`), or leave ray.address out to run a private Ray"
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS") or _ray_on_this_machine()
        if found is None:
            return Finding("ray", False, "auto: no Ray is running on this machine", advice)
        address = found
    uri = address if "://" in address else f"tcp://{address}"
    return _reach("ray", uri, 10001 if uri.startswith("ray://") else 6379, advice)


def accelerator() -> Finding:
    """The device that training would take. None is no failure: everything runs on the CPU too."""
    try:
        import torch

        if torch.cuda.is_available():
            devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            return Finding("accelerator", True, ", ".join(f"{d.name} ({_gib(d.total_memory)})" for d in devices))
        if shutil.which("nvidia-smi"):
            advice = "install the torch build for this driver's CUDA version; until then training runs on the CPU"
            return Finding(
                "accelerator", False, f"torch {torch.__version__} sees no GPU, yet nvidia-smi is here", advice
            )
    except Exception as error:  # a torch that is broken fails in more ways than ImportError
        reason = f"torch cannot be used: {type(error).__name__}: {error}"
        return Finding(
            "accelerator", False, reason, "reinstall it: pip install --force-reinstall -c constraints.txt torch"
        )
    return Finding("accelerator", True, "none: training runs on the CPU")


def _sqlite(uri: str) -> Finding:
    # sqlite:///relative/path and sqlite:////absolute/path, as SQLAlchemy reads them
    path = Path(unquote(urlsplit(uri).path[1:]))
    if path == Path() or path.name == ":memory:":
        return Finding("tracking", False, f"{uri} names no file", "write sqlite:///PATH/mlflow.db")
    advice = "give this user write access to the file and its directory, or choose another tracking URI"
    try:
        if path.exists():
            path.open("r+b").close()
        # SQLite also puts its journal beside the file.
        with tempfile.TemporaryFile(dir=_nearest_existing(path.parent)):
            return Finding("tracking", True, f"{path} {'is writable' if path.exists() else 'can be made'}")
    except OSError as error:
        return Finding("tracking", False, f"{path}: {error.strerror}", advice)


def _health(uri: str) -> Finding:
    shown = _without_secrets(uri)
    advice = "start the MLflow server, or correct the tracking URI"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=TIMEOUT) as answer:
            return Finding("tracking", True, f"{shown} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        error.close()
        return Finding("tracking", False, f"{shown}/health answers {error.code}", "is this an MLflow server? " + advice)
    except (OSError, ValueError, http.client.HTTPException) as error:  # refused, too late, no HTTP, no URL
        return Finding("tracking", False, f"{shown} does not answer: {getattr(error, 'reason', error)}", advice)


def _ray_on_this_machine() -> str | None:
    """The address that a running raylet was given on its command line."""
    option = "--gcs-address="
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if Path(command[0]).name == "raylet":
            return next((word.removeprefix(option) for word in command if word.startswith(option)), None)
    return None


def _reach(name: str, uri: str, default_port: int, advice: str) -> Finding:
    """A TCP connection, opened and closed."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host, port = None, default_port
    if not host:
        return Finding(name, False, f"{_without_secrets(uri)}: no host in it", "write the address as host:port")
    try:
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except OSError as error:
        return Finding(name, False, f"{host}:{port} cannot be reached: {error.strerror or error}", advice)
    return Finding(name, True, f"{host}:{port} accepts connections")


def _is_remote(place: str | Path) -> bool:
    return "://" in str(place) and not str(place).startswith("file://")


def _local(place: str | Path) -> Path:
    text = str(place)
    return Path(unquote(urlsplit(text).path) if text.startswith("file://") else text).expanduser()


def _nearest_existing(path: Path) -> Path:
    """`path` or the lowest directory above it that exists.

    >>> _nearest_existing(Path("/no-such-directory/below"))
    PosixPath('/')
    """
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _without_secrets(uri: str) -> str:
    """The URI without user, password, query: it is printed and ends up in logs.

    >>> _without_secrets("https://me:secret@host:5000/a?token=b")
    'https://host:5000/a'
    """
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}" if separator else uri


def _container_limit() -> int | None:
    try:
        text = _MEMORY_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max": no limit


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
