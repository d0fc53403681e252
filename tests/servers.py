"""Real servers on free ports of the loopback, started by the tests that need them: MLflow's, and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def wait_until(true: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class MlflowServer:
    """A real tracking server; it keeps artifacts below `folder`, and passes them on."""

    def __init__(self, folder: Path, database: str, workers: int = 1) -> None:
        self.port = free_port()
        self.uri, self.folder, self.database = f"http://127.0.0.1:{self.port}", folder, database
        self.workers = workers
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", str(self.workers)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        wait_until(self.answers, 120)

    def answers(self) -> bool:
        import requests

        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def send(self, number: int) -> None:
        """A signal to the server and all that it started."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """For good, if it runs."""
        if self.process is not None:
            self.send(signal.SIGKILL)


@contextmanager
def failing(port: int) -> Iterator[None]:
    """A server that answers everything with a 500."""

    class Fails(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(500)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = refuse

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Fails)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def postgres_programs() -> Path | None:
    """The folder of initdb and postgres; Debian keeps them out of the search path."""
    found = [Path(p).parent for p in [shutil.which("initdb")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((p for p in found if (p / "initdb").exists() and (p / "postgres").exists()), None)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A fresh cluster in `folder` while the block lasts; yields the address of an empty database."""
    programs = postgres_programs()
    assert programs is not None, "PostgreSQL is not installed"
    # It refuses to run as root, whose tests lend the folder to nobody.
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    cluster, port = folder / "cluster", free_port()
    cluster.mkdir()
    if user:
        shutil.chown(cluster, "nobody", "nogroup")
        for parent in cluster.parents[:4]:
            if parent != Path("/tmp") and parent.stat().st_uid == os.getuid():
                parent.chmod(parent.stat().st_mode | 0o011)
    made = [programs / "initdb", "-D", cluster, "-U", "tests", "--auth=trust", "--no-sync", "--encoding=UTF8"]
    subprocess.run(made, check=True, capture_output=True, cwd="/", **user)
    command = [programs / "postgres", "-D", cluster, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user)
    try:
        wait_until(lambda: _ready(port))
        yield f"postgresql+psycopg2://tests@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()


def _ready(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host="127.0.0.1", port=port, user="tests", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True
