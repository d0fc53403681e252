"""A training run in MLflow, told from Ray's controller. A tracking outage neither stops nor slows training.

Ray calls a callback inside the controller's loop and ends the training when it raises, so a callback here only
puts reports into an outbox. Its one daemon thread makes every call to MLflow, keeps what could not be sent, and
tries again; nobody waits for it but the end of the run, and that not for long.
"""

from __future__ import annotations

import logging
import math
import numbers
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.mlflow_store import create_database, quiet

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "logs2rec.trainingRun"
STAGE_TAG = "logs2rec.stage"

KEPT = 10_000
"""Reports that wait for a server at most; then the oldest is dropped for each new one."""

_TOGETHER = 100  # reports in one call
_PAUSES = (1.0, 30.0)  # seconds before the second attempt, doubled from one to the next up to the last
_GRACE = 5.0
_LOCAL_GRACE = 30.0  # a file does not hang, but MLflow takes 5 s and more to create its tables in a new one
_IMPORT_SECONDS = 30.0  # importing mlflow takes 3 s of a free CPU and is no server's fault

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracker:
    """Where to log what. A training with the `run_name` of an earlier one continues its MLflow run."""

    uri: str
    experiment: str
    run_name: str
    params: dict[str, Any]
    tags: dict[str, str]
    artifacts: str | None = None
    """Artifact location, should the experiment have to be created; a server decides for itself if None."""


def mlflow_callback(tracker: Tracker, notes: Path | None = None) -> Any:
    """A Ray Train callback that logs every report of rank 0 and how the run ended.

    Its warnings go to the log and, as nobody reads a controller's log, are also appended to `notes`.
    """
    # Ray's UserCallback is not told when a run begins or ends; RunConfig takes these bases just as well.
    from ray.train.v2._internal.execution.callback import ControllerCallback, ReportCallback

    class Tracking(ControllerCallback, ReportCallback):
        def __reduce__(self) -> tuple[Any, ...]:
            return mlflow_callback, (tracker, notes)  # Ray makes several copies; only one of them is started

        def after_controller_start(self, train_run_context: Any) -> None:
            self.outbox = Outbox(tracker, notes)

        def after_report(self, training_report: Any, metrics: list[dict[str, Any]]) -> None:
            self.outbox.put(metrics[0])

        def after_controller_finish(self, result: Any) -> None:
            self.outbox.close("FAILED" if result.error else "FINISHED")

        def before_controller_abort(self) -> None:
            self.outbox.close("KILLED")

    return Tracking()


def finish(tracker: Tracker, status: str) -> None:
    """Record the end of a run from the driver, for when the controller died before it could."""
    Outbox(tracker).close(status)


@dataclass(frozen=True)
class Report:
    """What MLflow gets of one report."""

    step: int
    milliseconds: int
    """When it was made, not when it was sent: that is also what lets MLflow recognize a repetition."""
    metrics: dict[str, float]
    tags: dict[str, str]


class Outbox:
    """Reports on their way to MLflow. `put` and `close` are for one thread, and raise nothing."""

    def __init__(self, tracker: Tracker, notes: Path | None = None, kept: int = KEPT) -> None:
        self.tracker, self.notes, self.kept = tracker, notes, kept
        self.lost = 0
        """Reports dropped for want of room or refused by the server."""
        self._waiting: deque[Report] = deque()
        self._sending: list[Report] = []
        self._status: str | None = None
        self._changed = threading.Condition()  # guards the three above; never held during a call to MLflow
        self._imported, self._over = threading.Event(), threading.Event()
        self._recorded = self._warned = False
        self._failure = "no answer yet"
        threading.Thread(target=self._work, name="mlflow-outbox", daemon=True).start()

    def put(self, metrics: Mapping[str, Any]) -> None:
        """Take a report; returns at once."""
        report = report_of(metrics)
        with self._changed:
            if len(self._waiting) + len(self._sending) >= self.kept:
                self.lost += 1
                if not self._waiting:
                    return
                self._waiting.popleft()
            self._waiting.append(report)
            self._changed.notify_all()

    def close(self, status: str, grace: float | None = None) -> bool:
        """Send what is left and end the run; whether all of that was done within `grace` seconds."""
        with self._changed:
            self._status = status
            self._changed.notify_all()
        if grace is None:
            grace = _LOCAL_GRACE if self.tracker.uri.startswith("sqlite:") else _GRACE
        self._imported.wait(_IMPORT_SECONDS)
        self._over.wait(grace)
        with self._changed:
            lost = self.lost + len(self._waiting) + len(self._sending)
        if lost or not self._recorded:
            what = f"{lost} reports" + ("" if self._recorded else " and the end of the run")
            self._warn(f"{what} did not get to MLflow ({self._failure})")
        return self._recorded and not lost

    # The thread.

    def _work(self) -> None:
        try:
            _import()
        except Exception as error:
            self._failed(error)
        else:
            self._imported.set()
            self._deliver()
        finally:
            self._imported.set()
            self._over.set()

    def _deliver(self) -> None:
        """Until the run is closed and all is sent, or an attempt begun after that has failed."""
        run: _Run | None = None
        pause, refusals = _PAUSES[0], 0
        while True:
            closed = self._status is not None
            try:
                run = run or _Run(self.tracker)
                while reports := self._next():
                    run.log(reports)
                    self._sent()
                    pause, refusals = _PAUSES[0], 0
                run.end(str(self._status))
                self._recorded = True
                return
            except Exception as error:
                self._failed(error)
                # A run may have been deleted, a server have come back empty: opened anew, it may take the same.
                refusals = refusals + 1 if run is not None and _is_refusal(error) else 0
                run = None
            if refusals == 2:
                refusals = 0
                if not self._sent(refused=True):
                    return
            elif not refusals:
                if closed:
                    return
                self._wait(pause)
                pause = min(2 * pause, _PAUSES[1])

    def _next(self) -> list[Report]:
        """What to send now: the failed ones again, else what has come since; nothing once the run is closed."""
        with self._changed:
            if not self._sending:
                self._changed.wait_for(lambda: self._waiting or self._status is not None)
                self._sending = [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))]
            return self._sending

    def _sent(self, refused: bool = False) -> int:
        with self._changed:
            count, self._sending = len(self._sending), []
            self.lost += count if refused else 0
        return count

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._status is not None, seconds)

    def _failed(self, error: Exception) -> None:
        self._failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if not self._warned and self._status is None:  # once it is closed, `close` says it
            self._warned = True
            self._warn(
                f"MLflow cannot be told ({self._failure}); training goes on, {self.kept} reports can wait for it"
            )

    def _warn(self, words: str) -> None:
        text = f"run {self.tracker.run_name}, tracking.uri {self.tracker.uri}: {words}"
        text = re.sub(r"//[^/@\s]*@", "//***@", text)  # no password in a log
        _log.warning("%s", text)
        if self.notes is not None:
            try:
                with self.notes.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")
            except OSError as error:
                _log.warning("%s: %s", self.notes, error)


def report_of(metrics: Mapping[str, Any]) -> Report:
    """Finite numbers under names that MLflow takes; of the texts only the stage."""
    numbers_only = {k: n for k, v in metrics.items() if (n := _finite(v)) is not None}
    tags = {STAGE_TAG: metrics["stage"]} if isinstance(metrics.get("stage"), str) else {}
    return Report(
        step=int(numbers_only.get("step", 0)),
        milliseconds=int(time.time() * 1000),
        metrics={plain_name(k): n for k, n in numbers_only.items()},
        tags=tags,
    )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain_name(name: str) -> str:
    """A metric's or parameter's name, altered where MLflow would refuse it.

    >>> plain_name("valid/ndcg@20"), plain_name("../a//b[0]")
    ('valid/ndcg_at_20', 'a/b_0_')
    """
    plain = re.sub(r"[^\w\-. :/]", "_", str(name).replace("@", "_at_"))
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    return "/".join(parts).removeprefix("..")[:250].strip("/") or "_"


# Calls to MLflow, on the outbox's thread only.


class _Run:
    """The open MLflow run: the one that carries the name in a tag, or a new one."""

    def __init__(self, tracker: Tracker) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        if not tracker.uri:
            raise ValueError("no address")  # MLflow would make a database in the working directory
        create_database(tracker.uri)
        self.client = MlflowClient(tracking_uri=tracker.uri)
        experiment, tags = _experiment(self.client, tracker), {RUN_TAG: tracker.run_name, **tracker.tags}
        quote = '"' if "'" in tracker.run_name else "'"
        same_name = f"tags.`{RUN_TAG}` = {quote}{tracker.run_name}{quote}"
        if found := self.client.search_runs([experiment], same_name, max_results=1):
            run = found[0]
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self.client.create_run(experiment, run_name=tracker.run_name, tags=tags)
        self.id = run.info.run_id
        # MLflow refuses another value for a parameter that it has; a resumed run may have other workers.
        params = {plain_name(k): str(v) for k, v in tracker.params.items()}
        new = [Param(k, v) for k, v in params.items() if k not in run.data.params]
        self.client.log_batch(self.id, params=new, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def log(self, reports: list[Report]) -> None:
        """Send reports. What MLflow has already is not there twice afterwards."""
        from mlflow.entities import Metric, RunTag

        metrics = [Metric(k, v, r.milliseconds, r.step) for r in reports for k, v in r.metrics.items()]
        tags = {k: v for r in reports for k, v in r.tags.items()}
        self.client.log_batch(self.id, metrics, tags=[RunTag(k, v) for k, v in tags.items()])

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.id, status)


def _experiment(client: MlflowClient, tracker: Tracker) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(tracker.experiment)
    if found is None:
        try:
            return str(client.create_experiment(tracker.experiment, artifact_location=tracker.artifacts))
        except MlflowException:
            found = client.get_experiment_by_name(tracker.experiment)  # did another process create it just now?
            if found is None:
                raise
    return str(found.experiment_id)


def _import() -> None:
    """MLflow without telemetry and chatter, and with short patience."""
    quiet()
    import mlflow  # noqa: F401

    for logger in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def _is_refusal(error: Exception) -> bool:
    """Whether a server has answered that it will not take this, ever."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.get_http_status_code() in (400, 404)
