"""Many processes register at once, some are killed, the server refuses or loses its answers: one version per build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from evaluate.publish.claim import SUFFIX
from evaluate.publish.registry import BUILD_TAG, CHALLENGER, registry
from evaluate.settings import TrackingSettings
from infra.errors import EnvironmentProblem
from tests.evaluate.publish.registrar import upload_of
from tests.servers import MlflowServer, postgres, postgres_programs

pytestmark = pytest.mark.slow
NAME = "many.retrieval"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow's server with two workers on a PostgreSQL of its own."""
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("served")
    with postgres(folder) as database:
        server = MlflowServer(folder, database, workers=2)
        server.start()
        warm(server.uri)
        yield server
        server.stop()


def warm(uri: str) -> None:
    """Each worker searches runs once. MLflow 3.17 imports a module of its own in that request, and where two threads do
    it first at once, one answers 500 (`mlflow.server.auth` has no `auth_config`); its client asks again.
    """
    client = MlflowClient(tracking_uri=uri)
    for _ in range(3):
        searches = [threading.Thread(target=client.search_runs, args=(["0"],)) for _ in range(16)]
        for search in searches:
            search.start()
        for search in searches:
            search.join()


def begin(uri: str, workspace: Path, artifact: Path, builds: list[str], **environment: str) -> subprocess.Popen[str]:
    workspace.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.evaluate.publish.registrar", uri, workspace, artifact, NAME, *builds]
    return subprocess.Popen(
        [str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def check_registered(uri: str, builds: set[str]) -> None:
    """One version per build, numbered without gaps, each with a run of its own; no claim is left."""
    client = MlflowClient(tracking_uri=uri)
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert sorted(v.tags[BUILD_TAG] for v in versions) == sorted(builds)
    assert sorted(int(v.version) for v in versions) == list(range(1, len(builds) + 1))
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    finished = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
    assert sorted(r.info.run_id for r in finished) == sorted(v.run_id for v in versions)
    assert [m.name for m in client.search_registered_models() if SUFFIX in m.name] == []


@pytest.mark.parametrize("where", ["postgres", "sqlite"])
def test_eight_processes_with_the_same_and_different_builds(where, request, artifacts, tmp_path):
    server = request.getfixturevalue("served") if where == "postgres" else None
    uri = server.uri if server else f"sqlite:///{tmp_path}/shared.db"
    logged = len(server.log.read_text()) if server else 0
    (tmp_path / "wait").touch()
    many = [begin(uri, tmp_path, artifacts["popularity"], ["same", f"own-{i}", "late"]) for i in range(8)]
    (tmp_path / "go").touch()
    answers = [ended(process) for process in many]
    builds = {"same", "late", *(f"own-{i}" for i in range(8))}
    check_registered(uri, builds)
    for build in ("same", "late"):
        assert len({tuple(answer["found"][build]) for answer in answers}) == 1
    assert len({answer["store"] for answer in answers}) == 1
    if server:
        log = server.log.read_text()[logged:]
        assert [words for words in ("Traceback", " 500 ", "Internal Server Error") if words in log] == []


@pytest.mark.parametrize(
    ("when", "method", "left"),
    [("DIE_AT", "create_model_version", 0), ("DIE_AFTER", "create_model_version", 1),
     ("DIE_AFTER", "delete_registered_model", 1), ("DIE_AT", "set_registered_model_alias", 1)],
)  # fmt: skip
def test_killed_between_upload_and_alias(when, method, left, artifacts, tmp_path):
    uri = f"sqlite:///{tmp_path}/killed.db"
    killed = begin(uri, tmp_path, artifacts["popularity"], ["one"], **{when: method})
    killed.communicate(timeout=300)
    assert killed.returncode == -9
    client = MlflowClient(tracking_uri=uri)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == left
    assert client.get_registered_model(NAME).aliases == {}
    # Two at once come after it; a claim that the dead one left is theirs after two seconds.
    after = [begin(uri, tmp_path, artifacts["popularity"], [build], LEASE="2") for build in ("one", "two")]
    answers = [ended(process) for process in after]
    check_registered(uri, {"one", "two"})
    assert str(client.get_registered_model(NAME).aliases[CHALLENGER]) in ("1", "2")
    (one,) = client.search_model_versions(f"name = '{NAME}' and tags.`{BUILD_TAG}` = 'one'")
    assert answers[0]["found"]["one"] == [str(one.version), one.run_id]


class Between(BaseHTTPRequestHandler):
    """Passes requests on to `behind`. From request `first` on a 500 is the answer instead; where `lost`, the request
    whose number is `first` is carried out, and its answer lost."""

    behind = ""
    first = 10**9
    lost = False
    seen = 0
    counting = threading.Lock()

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with Between.counting:
            number, Between.seen = Between.seen, Between.seen + 1
        fails = number == self.first if self.lost else number >= self.first
        if not fails or self.lost:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
            answer = requests.request(self.command, self.behind + self.path, data=body, headers=headers, timeout=60)
        self.send_response(500 if fails else answer.status_code)
        content = b"{}" if fails else answer.content
        self.send_header("Content-Type", "application/json" if fails else answer.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def between(behind: str, first: int, lost: bool) -> Iterator[str]:
    Between.behind, Between.first, Between.lost, Between.seen = behind, first, lost, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def attempt(artifacts, tmp_path, monkeypatch) -> Callable[[str, str], tuple[str, str]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    upload = upload_of(artifacts["popularity"])

    def go(uri: str, build: str) -> tuple[str, str]:
        with registry(TrackingSettings(uri=uri), tmp_path, "faulty") as store:
            store.lease = 1.0
            found = store.register("faulty.retrieval", build, upload)
            store.move_alias("faulty.retrieval", CHALLENGER, found[0])
            return found

    return go


def test_a_server_that_fails_at_any_request(served, attempt, monkeypatch):
    """A 500 from the n-th request on is an EnvironmentProblem; the same command later registers one version."""
    attempt(served.uri, "first")  # which also makes the experiment and the name
    with between(served.uri, 10**9, False) as uri:
        attempt(uri, "measured")
        total = Between.seen
    assert total > 15
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    numbers = [0, *range(2, total, 4), total - 1]
    for number in numbers:
        with between(served.uri, number, False) as uri, pytest.raises(EnvironmentProblem, match=r"tracking\.uri http"):
            attempt(uri, f"fails-{number}")
        assert Between.seen > number
        attempt(served.uri, f"fails-{number}")
    client = MlflowClient(tracking_uri=served.uri)
    versions = client.search_model_versions("name = 'faulty.retrieval'")
    assert sorted(v.tags[BUILD_TAG] for v in versions) == sorted(
        ["first", "measured", *(f"fails-{n}" for n in numbers)]
    )
    assert sorted(int(v.version) for v in versions) == list(range(1, len(versions) + 1))


def test_answers_that_are_lost(served, attempt):
    """MLflow asks again for what the server has done: at every request still one version, and no gap."""
    client = MlflowClient(tracking_uri=served.uri)
    with between(served.uri, 10**9, False) as uri:
        attempt(uri, "lost")
        total = Between.seen
    for number in range(1, total, 3):
        with between(served.uri, number, True) as uri:
            attempt(uri, f"lost-{number}")
    versions = client.search_model_versions("name = 'faulty.retrieval'")
    builds = [v.tags[BUILD_TAG] for v in versions]
    assert len(builds) == len(set(builds))
    assert sorted(int(v.version) for v in versions) == list(range(1, len(versions) + 1))
