"""Training runs in real MLflow stores, and in stores that are gone, hang or never were there.

The callback is driven by hand as Ray's controller does it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from infra.mlflow_store import ENVIRONMENT
from tests.servers import MlflowServer, wait_until
from train import tracking
from train.tracking import RUN_TAG, Outbox, Tracker, finish, mlflow_callback

GOOD, BAD = SimpleNamespace(error=None), SimpleNamespace(error=RuntimeError("worker 1 failed"))


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with a blank and a number sign in its address."""
    return f"sqlite:///{tmp_path_factory.mktemp('a store') / 'mlflow #1.db'}"


def tracker_of(uri: str, run_name: str, **changes: Any) -> Tracker:
    about = {"params": {"model.width": 48, "training.workers": 2}, "tags": {"logs2rec.role": "retrieval"}}
    return Tracker(uri, "demo", run_name, **{**about, "artifacts": "file:///nowhere", **changes})


def started(tracker: Tracker, notes: Path | None = None) -> Any:
    """A callback as it arrives in the controller."""
    import ray.cloudpickle as wire  # how Ray carries it there

    callback = wire.loads(wire.dumps(mlflow_callback(tracker, notes)))
    callback.after_controller_start(None)
    return callback


def report(callback: Any, step: int, **metrics: Any) -> None:
    mine = {"step": step, "loss": 1 / step, **metrics}
    callback.after_report(None, [mine, {"step": step, "loss": -1.0}])


def run_of(tracker: Tracker) -> Run:
    """The one run that carries the name."""
    client = MlflowClient(tracking_uri=tracker.uri)
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.data.tags[RUN_TAG] == tracker.run_name]
    return run


def history(tracker: Tracker, metric: str = "loss") -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=tracker.uri).get_metric_history(run_of(tracker).info.run_id, metric)
    return sorted((m.step, m.value) for m in found)


def wait_until_sent(outbox: Outbox) -> None:
    wait_until(lambda: not outbox._waiting and not outbox._sending)


class TestStore:
    def test_a_run_from_its_start_to_its_end(self, uri: str) -> None:
        tracker = tracker_of(uri, "whole", params={"model.width": 48, "model.hidden": [64, 32], "a@b": "x" * 7000})
        callback = started(tracker)
        for step in (10, 20, 30):
            report(callback, step, stage="main" if step < 30 else "tune", seconds=np.float32(0.5))
        callback.after_controller_finish(GOOD)
        run = run_of(tracker)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "whole")
        assert history(tracker) == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
        assert run.data.metrics == {"step": 30, "loss": 1 / 30, "seconds": 0.5}
        assert run.data.params == {"model.width": "48", "model.hidden": "[64, 32]", "a_at_b": "x" * 6000}
        tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
        assert tags == {RUN_TAG: "whole", "logs2rec.role": "retrieval", "logs2rec.stage": "tune"}
        assert run.info.artifact_uri.startswith("file:///nowhere/")

    def test_only_finite_numbers_are_metrics(self, uri: str) -> None:
        tracker, callback = tracker_of(uri, "finite"), started(tracker_of(uri, "finite"))
        not_finite = {"a": float("nan"), "b": float("inf"), "c": -np.float64("inf"), "d": 10**400}
        no_numbers = {"e": "text", "f": None, "g": True, "h": [1.0], "i": np.bool_(True), "j": 1j, "k": {"l": 1}}
        odd_names = {"valid/ndcg@20": 0.25, "../m[0]": 1, "": 2, "x" * 300: 3, "é": 4, "/n//o/": 5, "...p": 6}
        report(callback, 1, **not_finite, **no_numbers, **odd_names)
        callback.after_report(None, [{"no_step": 7}])
        callback.after_controller_finish(GOOD)
        expected = {"valid/ndcg_at_20": 0.25, "m_0_": 1, "_": 2, "x" * 250: 3, "é": 4, "n/o": 5, ".p": 6}
        assert run_of(tracker).data.metrics == {"step": 1, "loss": 1, **expected, "no_step": 7}
        assert history(tracker, "no_step") == [(0, 7)]

    def test_a_resumed_training_continues_its_run(self, uri: str) -> None:
        tracker = tracker_of(uri, "it's resumed")
        for number, (status, result) in enumerate((("FAILED", BAD), ("FINISHED", GOOD))):
            params = {"training.workers": 2 - number, f"new.{number}": number}
            callback = started(replace(tracker, params=params))
            report(callback, number + 1)
            wait_until_sent(callback.outbox)
            assert run_of(tracker).info.status == "RUNNING"
            callback.after_controller_finish(result)
            assert run_of(tracker).info.status == status
        assert history(tracker) == [(1, 1.0), (2, 0.5)]
        assert run_of(tracker).data.params == {"training.workers": "2", "new.0": "0", "new.1": "1"}

    def test_ways_to_end(self, uri: str) -> None:
        started(tracker_of(uri, "aborted")).before_controller_abort()
        assert run_of(tracker_of(uri, "aborted")).info.status == "KILLED"
        finish(tracker_of(uri, "aborted"), "FAILED")
        assert run_of(tracker_of(uri, "aborted")).info.status == "FAILED"
        assert run_of(tracker_of(uri, "whole")).info.status == "FINISHED"

    def test_a_large_backlog_is_sent_to_the_last_report(self, uri: str) -> None:
        tracker, outbox = tracker_of(uri, "backlog"), Outbox(tracker_of(uri, "backlog"))
        for step in range(1, 1001):
            outbox.put({"step": step, **{f"m{i}": step * i for i in range(12)}})
        assert outbox.close("FINISHED")
        assert history(tracker, "m11") == [(step, step * 11) for step in range(1, 1001)]

    def test_a_run_deleted_meanwhile_is_begun_anew(self, uri: str) -> None:
        tracker, outbox = tracker_of(uri, "deleted"), Outbox(tracker_of(uri, "deleted"))
        outbox.put({"step": 1, "loss": 1.0})
        wait_until_sent(outbox)
        MlflowClient(tracking_uri=uri).delete_run(run_of(tracker).info.run_id)
        outbox.put({"step": 2, "loss": 0.5})
        assert outbox.close("FINISHED")
        assert history(tracker) == [(2, 0.5)]

    def test_what_the_store_refuses_does_not_block_the_rest(
        self, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        tracker, outbox = tracker_of(uri, "refused"), Outbox(tracker_of(uri, "refused"))
        with monkeypatch.context() as patch:
            patch.setattr(tracking, "plain_name", lambda name: name)
            outbox.put({"step": 1, "loss@": 1.0})
            wait_until(lambda: outbox.lost == 1)
        outbox.put({"step": 2, "loss": 0.5})
        assert not outbox.close("FINISHED")
        assert history(tracker) == [(2, 0.5)]
        assert run_of(tracker).info.status == "FINISHED"
        assert [m.partition(": ")[2][:20] for m in caplog.messages] == ["MLflow cannot be tol", "1 reports did not ge"]

    def test_copies_of_a_callback_do_nothing_on_their_own(self, uri: str) -> None:
        import ray.cloudpickle as wire

        threads = threading.active_count()
        copy = wire.loads(wire.dumps(mlflow_callback(tracker_of(uri, "copy"))))
        callback = started(tracker_of(uri, "copy"))
        wire.dumps(callback)
        assert threading.active_count() == threads + 1
        assert not hasattr(copy, "outbox")
        callback.after_controller_finish(GOOD)

    @pytest.mark.slow
    def test_a_process_killed_while_the_database_is_made_leaves_none(self, tmp_path: Path) -> None:
        path, making = tmp_path / "store" / "mlflow.db", tmp_path / "elsewhere"
        making.mkdir()
        code = (
            "from train.tracking import *; import time\n"
            f"Outbox(Tracker({f'sqlite:///{path}'!r}, 'demo', 'killed', {{}}, {{}})); time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(making)})
        try:
            wait_until(lambda: any(file.stat().st_size > 100_000 for file in making.glob("*/*.db")))
        finally:
            process.kill()
            process.wait()
        assert list(path.parent.iterdir()) == []
        finish(tracker_of(f"sqlite:///{path}", "killed"), "FAILED")
        assert run_of(tracker_of(f"sqlite:///{path}", "killed")).info.status == "FAILED"
        assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event]]:
    """(address, whether a request has come): accepts, reads and never answers."""
    asked = threading.Event()
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return
                connections[-1].recv(1)
                asked.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


class TestOutage:
    def test_a_server_that_never_answers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(tracking, "_GRACE", 0.5)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with silent_server() as (address, asked):
            callback = started(tracker_of(address, "silent"), tmp_path / "notes")
            for step in range(1, 1001):
                report(callback, step)
            assert asked.wait(30)
            for step in range(1001, 2001):  # a request is under way and stays so
                report(callback, step)
            before = time.monotonic()
            callback.after_controller_finish(GOOD)
            assert time.monotonic() - before < 10  # of the request's 30 s
            assert not callback.outbox._over.is_set()
            assert len(callback.outbox._waiting) == 2000
        assert callback.outbox._over.wait(30)  # its thread ends with the server
        (line,) = (tmp_path / "notes").read_text().splitlines()
        missed = "2000 reports and the end of the run did not get to MLflow (no answer yet)"
        assert line == f"run silent, tracking.uri {address}: {missed}"

    @pytest.mark.parametrize("address", ["", "nonsense://x", "http://[bad", "http://a b", "sqlite:////dev/null/x.db"])
    def test_an_address_that_is_none(
        self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.chdir(tmp_path)
        callback = started(tracker_of(address, "invalid"))
        wait_until(lambda: caplog.messages)
        report(callback, 1)
        callback.after_controller_finish(BAD)
        begins = [m.partition(f"tracking.uri {address}: ")[2][:21] for m in caplog.messages]
        assert begins == ["MLflow cannot be told", "1 reports and the end"]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("impatient")
    def test_the_newest_reports_are_kept_and_a_password_stays_secret(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        tracker = tracker_of("http://ann:secret@127.0.0.1:1", "full")
        outbox = Outbox(tracker, tmp_path / "no such folder" / "notes", kept=3)
        for step in range(1, 6):
            outbox.put({"step": step})
        assert [r.step for r in outbox._waiting] == [3, 4, 5]
        wait_until(lambda: caplog.messages)
        assert not outbox.close("FINISHED")
        assert outbox.lost == 2
        assert any("5 reports and the end" in m for m in caplog.messages)
        assert "***@127.0.0.1" in caplog.text
        assert "secret" not in caplog.text


@pytest.fixture
def server(tmp_path: Path, uri: str) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path, uri)
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_a_server_lost_in_the_middle_gets_everything_once_it_is_back(
    server: MlflowServer, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_of(server.uri, f"lost-{how}")
    callback = started(tracker, tmp_path / "notes")
    for step in (1, 2, 3):
        report(callback, step)
    wait_until_sent(callback.outbox)
    first = run_of(tracker).info.run_id

    server.send(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    before = time.monotonic()
    for step in range(4, 501):
        report(callback, step)
    assert time.monotonic() - before < 2  # a single request takes that long now
    wait_until((tmp_path / "notes").exists)
    for step in range(501, 1001):
        report(callback, step)
    assert not server.answers()
    assert callback.outbox.lost == 0

    server.start() if how == "killed" else server.send(signal.SIGCONT)
    report(callback, 1001)
    wait_until_sent(callback.outbox)
    callback.after_controller_finish(GOOD)
    assert run_of(tracker).info.run_id == first
    assert run_of(tracker).info.status == "FINISHED"
    assert [step for step, _ in history(tracker)] == list(range(1, 1002))  # each once
    assert len((tmp_path / "notes").read_text().splitlines()) == 1
    assert [r.name for r in caplog.records if r.levelno >= logging.WARNING] == ["train.tracking"]
