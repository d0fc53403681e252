"""infra/doctor.py: every finding in its good and its bad case, on real files, sockets and servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra import doctor
from infra.doctor import Finding, examine
from infra.errors import EnvironmentProblem
from infra.java import Java

GIB = 2**30


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@contextmanager
def server(status: int) -> Iterator[str]:
    """An HTTP server that answers /health with `status` and everything else with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@contextmanager
def listener() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def says_what_to_do(finding: Finding) -> bool:
    return finding.ok == (finding.advice == "")


def test_examine_answers_everything_that_was_asked(tmp_path: Path) -> None:
    with listener() as port:
        findings = examine(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", f"127.0.0.1:{port}", disk=tmp_path)
    names = [finding.name for finding in findings]
    assert names == [
        *("python", "pyspark", "torch", "ray", "pyarrow", "deltalake", "mlflow", "java", "cores", "memory"),
        *("disk", "workspace", "tracking", "ray", "accelerator"),
    ]
    assert all(says_what_to_do(finding) for finding in findings)
    assert os.listdir(tmp_path) == []


def test_examine_leaves_out_what_was_not_asked(tmp_path: Path) -> None:
    names = [finding.name for finding in examine("s3://bucket/place")]
    assert "tracking" not in names
    assert "disk" not in names
    assert names.count("ray") == 1  # the package


def test_packages_are_read_without_importing_them() -> None:
    code = (
        "import sys; from infra import doctor; list(doctor.packages()); doctor.python(); doctor.memory();"
        "print(sorted({'pyspark', 'torch', 'ray', 'mlflow', 'deltalake', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("pyarrow", "no-such-package"))
    there, missing = doctor.packages()
    assert (there.ok, there.found) == (True, metadata.version("pyarrow"))
    assert not missing.ok
    assert "make setup" in missing.advice


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.python() == Finding("python", True, ".".join(map(str, sys.version_info[:3])))
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    finding = doctor.python()
    assert not finding.ok
    assert "python99.0" in finding.advice


def test_java_found_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_java", lambda: Java(Path("/opt/jdk"), 21, "JAVA_HOME"))
    assert doctor.java() == Finding("java", True, "21 from JAVA_HOME (/opt/jdk)")

    def none() -> Java:
        raise EnvironmentProblem("install one and set JAVA_HOME")

    monkeypatch.setattr(doctor, "find_java", none)
    finding = doctor.java()
    assert not finding.ok
    assert finding.advice == "install one and set JAVA_HOME"


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert (doctor.cores().ok, doctor.cores().found) == (False, "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    assert doctor.cores() == Finding("cores", True, "4")


@pytest.mark.parametrize(
    ("free", "limit", "ok", "found"),
    [
        (8 * GIB, None, True, "8.0 GiB free"),
        (8 * GIB, "max", True, "8.0 GiB free"),
        (64 * GIB, str(3 * GIB), False, "3.0 GiB free"),
        (GIB, str(16 * GIB), False, "1.0 GiB free"),
    ],
)
def test_memory_is_never_more_than_the_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, limit: str | None, ok: bool, found: str
) -> None:
    if limit:
        (tmp_path / "memory.max").write_text(limit + "\n")
    monkeypatch.setattr(doctor, "_MEMORY_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    finding = doctor.memory()
    assert (finding.ok, finding.found) == (ok, found)
    assert says_what_to_do(finding)


def test_disk_is_measured_where_the_directory_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=GIB)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    finding = doctor.free_disk(tmp_path / "not" / "yet")
    assert asked == [tmp_path]
    assert not finding.ok
    assert "1.0 GiB free" in finding.found
    assert "make room" in finding.advice


def test_workspace_is_tried_not_guessed(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "new").ok
    assert doctor.writable(f"file://{tmp_path}").ok
    file = tmp_path / "file"
    file.write_text("")
    finding = doctor.writable(file)
    assert not finding.ok
    assert "workspace" in finding.advice
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_workspace_without_write_access(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not doctor.writable(tmp_path).ok


def test_sqlite_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.tracking("sqlite:///mlflow.db") == Finding("tracking", True, "mlflow.db can be made")
    (tmp_path / "my store.db").write_bytes(b"content")
    finding = doctor.tracking(f"sqlite:///{tmp_path}/my%20store.db")
    assert finding == Finding("tracking", True, f"{tmp_path}/my store.db is writable")
    assert (tmp_path / "my store.db").read_bytes() == b"content"
    assert not doctor.tracking(f"sqlite:///{tmp_path}").ok  # a directory
    assert "sqlite:///PATH" in doctor.tracking("sqlite:///:memory:").advice
    assert "sqlite:///PATH" in doctor.tracking("sqlite://").advice
    assert os.listdir(tmp_path) == ["my store.db"]


def test_http_store_that_answers() -> None:
    with server(200) as uri:
        assert doctor.tracking(uri + "/").ok


def test_http_store_that_is_ill_or_something_else() -> None:
    with server(503) as uri:
        finding = doctor.tracking(uri)
    assert not finding.ok
    assert "503" in finding.found


def test_http_store_that_is_not_there_or_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not doctor.tracking(f"http://127.0.0.1:{closed_port()}").ok
    assert not doctor.tracking("http://:x").ok
    monkeypatch.setattr(doctor, "TIMEOUT", 0.2)
    with listener() as port:
        finding = doctor.tracking(f"http://127.0.0.1:{port}")
    assert not finding.ok
    assert "timed out" in finding.found


def test_database_store() -> None:
    with listener() as port:
        assert doctor.tracking(f"postgresql+psycopg2://me:secret@127.0.0.1:{port}/mlflow").ok
    finding = doctor.tracking(f"postgresql://me:secret@127.0.0.1:{closed_port()}/mlflow")
    assert not finding.ok
    assert "secret" not in finding.found + finding.advice


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns"])
def test_file_stores_are_pointed_to_sqlite(uri: str) -> None:
    finding = doctor.tracking(uri)
    assert not finding.ok
    assert "sqlite:///" in finding.advice


@pytest.mark.parametrize(
    "uri", ["http://me:secret@127.0.0.1:1", "s3://me:secret@b/x?token=secret", "odd://me:secret@host"]
)
def test_no_password_is_ever_shown(uri: str) -> None:
    finding = doctor.tracking(uri)
    assert "secret" not in finding.found + finding.advice
    assert "secret" not in doctor.writable(uri).found


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_ray_address(form: str) -> None:
    with listener() as port:
        assert doctor.ray(form.format(port)).ok
    finding = doctor.ray(form.format(closed_port()))
    assert not finding.ok
    assert "ray start" in finding.advice


@pytest.mark.parametrize("address", ["127.0.0.1:port", ":6379", "ray://"])
def test_ray_address_that_is_none(address: str) -> None:
    finding = doctor.ray(address)
    assert not finding.ok
    assert "host:port" in finding.advice


def test_ray_auto_asks_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[SimpleNamespace] = [SimpleNamespace(info={"cmdline": None})]
    monkeypatch.setattr(doctor.psutil, "process_iter", lambda attributes: iter(processes))
    assert "no Ray is running" in doctor.ray("auto").found
    with listener() as port:
        command = ["/site-packages/ray/core/src/ray/raylet/raylet", "--x=1", f"--gcs-address=127.0.0.1:{port}"]
        processes.append(SimpleNamespace(info={"cmdline": command}))
        assert doctor.ray("auto") == Finding("ray", True, f"127.0.0.1:{port} accepts connections")


def test_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="H200", total_memory=139 * GIB)
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda index: gpu)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.13.0"))
    assert doctor.accelerator() == Finding("accelerator", True, "H200 (139.0 GiB), H200 (139.0 GiB)")
    cuda.is_available = lambda: False
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.accelerator() == Finding("accelerator", True, "none: training runs on the CPU")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "sees no GPU" in doctor.accelerator().found
    assert says_what_to_do(doctor.accelerator())
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises
    assert "torch cannot be used" in doctor.accelerator().found
