"""From a request to a model artifact: runs the workers on Ray Train, then saves the best weights.

Call it inside `infra.cluster.cluster(...)`. Training again with the same storage and run name resumes;
a run that had finished only writes its artifact again.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from infra.config import digest
from infra.errors import EnvironmentProblem, Logs2RecError, TrainingError
from infra.lake import Lake
from train import artifact, checkpoint, warm
from train.checkpoint import Checkpoint, TrainState
from train.configs import ModelConfig
from train.embedding_health import figures_at
from train.job import Job
from train.loop import train_worker
from train.protocol import CountedModel
from train.ranking_data import read_fields
from train.sequence_data import SequenceData, shown_and_predicted
from train.settings import TrainingSettings, decisive, sharding_problem
from train.table_shard import assemble, load_dense_state
from train.throughput import peak_memory
from train.tracking import Tracker, finish, mlflow_callback
from train.validation import validate

Progress = Callable[[dict[str, Any]], None]
RECORD = "progress.jsonl"
"""In a run's folder: rank 0's reports, one a line."""
_POLL_SECONDS = 0.2
_RESIZE_SECONDS = 20.0
"""How often an elastic run looks for more workers; Ray's own view of the cluster is up to 20 s old."""
_START_ATTEMPTS = 30
"""How often in a run the workers may fail to start, for want of room or of a node, before it is given up."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What to train on what. `run_name` has to change with configuration and versions: it names the run to resume."""

    lake: Path
    versions: dict[str, int]
    """Table -> pinned version: `sequences`, or `samples` and `fields`; goes into the lineage as it is."""
    as_of: str
    model: ModelConfig
    training: TrainingSettings
    run_name: str
    vocabulary_hash: str
    vocabulary: pa.Table | None = None
    """Columns field, index, key (train.artifact). Sequence models take the catalogue's size from '__item__'."""
    tracker: Tracker | None = None
    """Where to log the run; None = nowhere."""
    search: Mapping[str, Any] | None = None
    """What a search (train.search) chose, and how many trials it had; goes into the artifact's metrics as it is."""
    initial: Path | None = None
    """Artifact to start from (train.warm), where all workers see it; None = fresh weights."""

    @property
    def config_hash(self) -> str:
        """Of what is learnt, not of how it is carried out (train.settings.OPERATIONAL).

        Raises ArtifactError when `initial` is no artifact.
        """
        decides = {**decisive(self.model, self.training), "as_of": self.as_of, "vocabulary": self.vocabulary_hash}
        return digest(decides if self.initial is None else {**decides, "initial": self.initial_digest})

    @property
    def initial_digest(self) -> str | None:
        """SHA-256 of the weights to start from; None for fresh ones."""
        return None if self.initial is None else artifact.weights_digest(self.initial)


def fit(request: TrainRequest, out: Path, storage: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train (or resume) and write the artifact to `out`; returns its metrics.

    `storage` has to be visible to all workers. `progress` receives rank 0's metrics after every epoch.
    Raises TrainingError when the cluster is too small, when a worker fails for good, or when the
    request does not fit its tables or the artifact to start from.
    """
    if request.model.counted:
        if problem := sharding_problem(request.model, request.training):
            raise TrainingError(problem)
        if request.initial is not None:
            raise TrainingError(f"{request.model.model} is counted and continues nothing: set training.start: fresh")
        return _count(request, out)
    job = job_of(request, storage)
    last = finished(job)
    if last is None:
        last = trained(job, require_resources(request.training), request.tracker, progress)
    return _publish(request, job, last, out)


def job_of(request: TrainRequest, storage: Path) -> Job:
    """What the workers of a request have to know; its run is a folder of `storage`."""
    _require_versions(request)
    run = storage.resolve() / request.run_name
    if request.initial is not None and not checkpoint.candidates(run):
        warm.require_vocabulary(request.initial, request.vocabulary)
    return Job(
        lake=str(request.lake.resolve()), versions=request.versions, as_of=request.as_of, model=request.model,
        training=request.training, catalogue=_catalogue(request), run=str(run),
        config_hash=request.config_hash, initial=None if request.initial is None else str(request.initial.resolve()),
    )  # fmt: skip


def trained(job: Job, use_gpu: bool, tracker: Tracker | None = None, progress: Progress | None = None) -> Checkpoint:
    """Train (or resume) to the final checkpoint."""
    run = Path(job.run)
    run.mkdir(parents=True, exist_ok=True)
    with _forwarded(run / RECORD, progress), _sigint_restored():
        _run_workers(job, use_gpu, tracker)
    last = finished(job)
    if last is None:
        raise TrainingError(f"run {run.name}: ended without a final checkpoint in {run}; train again")
    return last


def _run_workers(job: Job, use_gpu: bool, tracker: Tracker | None) -> None:
    """The Ray Train run; whatever goes wrong on a worker comes out as one TrainingError."""
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from train.rendezvous import FileRendezvous

    settings, run = job.training, Path(job.run)
    resources = {"CPU": settings.threads, **({"GPU": 1} if use_gpu else {})}
    notes = run / "tracking.log"
    notes.unlink(missing_ok=True)
    # Ray's record of checkpoints is not ours, and a truncated one would stop every later run of this name.
    (run / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job.to_config(),
        torch_config=FileRendezvous(folder=str(run / "rendezvous"), timeout_s=settings.timeout_seconds),
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker=resources,
            elastic_resize_monitor_interval_s=_RESIZE_SECONDS,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]  # the public alias is annotated with Ray's v1 class
            name=run.name,
            storage_path=str(run.parent),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=_START_ATTEMPTS),
            callbacks=[_recorder(run / RECORD), *([mlflow_callback(tracker, notes)] if tracker else [])],
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise TrainingError(f"run {run.name}: {_cause(error)}") from None
    except ray.exceptions.RayError as error:
        if tracker:
            finish(tracker, "FAILED")
        raise TrainingError(f"run {run.name}: Ray failed: {brief(error)}") from None
    finally:
        if notes.exists():
            _log.warning("%s", notes.read_text(encoding="utf-8").strip())


def _cause(error: Exception) -> str:
    """The message that explains a failed run: ours if a worker raised one, else the lowest rank's."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", {})
    if not failures:
        cause = getattr(error, "controller_failure", error)
        return str(cause) if isinstance(cause, Logs2RecError) else brief(cause)
    ours = {rank: e for rank, e in failures.items() if isinstance(e, Logs2RecError)}
    if ours:
        return str(ours[min(ours)])
    rank = min(failures)
    return f"worker {rank} failed: {brief(failures[rank])}"


def brief(error: BaseException) -> str:
    """Type and first and last line of a message that may carry a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines if len(lines) < 3 else [lines[0], lines[-1]]
    return f"{type(error).__name__}: {' ... '.join(shown)}"


def _recorder(path: Path) -> Any:
    """A Ray callback (it lives in Ray's controller process) that appends each report to a file.

    It also ends the run at once when a worker says itself what is wrong: a repetition would say the same.
    """
    from ray.train import UserCallback

    class Recorder(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for _, error in sorted(worker_exceptions.items()):
                if isinstance(error, Logs2RecError) and not isinstance(error, EnvironmentProblem):
                    raise error

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics[0]) + "\n")

    return Recorder()


@contextmanager
def _forwarded(path: Path, progress: Progress | None) -> Iterator[None]:
    """Call `progress` with every line that is appended to the record while the body runs."""
    if progress is None:
        yield
        return
    path.touch()
    done = threading.Event()

    def follow() -> None:
        with path.open(encoding="utf-8") as file:
            file.seek(start)
            pending = ""
            while True:
                last_look = done.wait(_POLL_SECONDS)
                *lines, pending = (pending + file.read()).split("\n")
                for line in lines:
                    progress(json.loads(line))
                if last_look:
                    return

    start = path.stat().st_size
    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _sigint_restored() -> Iterator[None]:
    """Ray Train installs its own Ctrl-C handler and leaves it there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _require_versions(request: TrainRequest) -> None:
    tables = ("samples", "fields") if request.model.kind == "ranking" else ("sequences",)
    for table in tables:
        if table not in request.versions:
            raise TrainingError(f"model {request.model.model}: no version of table {table!r} was given to train on")


def require_resources(settings: TrainingSettings, runs: int = 1) -> bool:
    """Whether to use GPUs; TrainingError now instead of runs that wait for ever for room beside each other."""
    import ray

    if not ray.is_initialized():
        raise TrainingError("no Ray connection: call fit inside infra.cluster.cluster(...)")
    have = ray.cluster_resources()
    gpus, needed = have.get("GPU", 0), runs * settings.min_workers
    use_gpu = gpus >= runs * settings.max_workers if settings.use_gpu == "auto" else settings.use_gpu
    lower = "lower training.workers" if runs == 1 else "lower search.parallel, training.workers"
    if use_gpu and gpus < needed:
        raise TrainingError(
            f"training.workers asks for {needed} GPUs, the Ray cluster has {gpus:g}: "
            f"{lower} or set training.use_gpu to false"
        )
    cpus, wanted = have.get("CPU", 0), needed * settings.threads
    if cpus < wanted:
        several = "" if runs == 1 else f"{runs} trials of "
        raise TrainingError(
            f"{several}{settings.min_workers} workers with {settings.threads} threads each need {wanted} CPUs, the Ray "
            f"cluster has {cpus:g}: {lower} or training.threads, or raise ray.cpus"
        )
    return use_gpu


def _catalogue(request: TrainRequest) -> int | None:
    """V = the largest item index + 1; None for ranking models."""
    if request.model.kind == "ranking":
        return None
    if request.vocabulary is None:
        raise TrainingError(f"model {request.model.model}: a sequence model needs the item vocabulary")
    is_item = pc.equal(request.vocabulary["field"], artifact.ITEM_FIELD)
    largest = pc.max(request.vocabulary["index"].filter(is_item)).as_py()
    if largest is None:
        raise TrainingError("the item vocabulary is empty: no item has reached the minimum count yet")
    return largest + 1


def finished(job: Job) -> Checkpoint | None:
    """The final checkpoint of this very run, if it got that far."""
    found = checkpoint.latest_valid(checkpoint.candidates(Path(job.run)))
    if found is None:
        return None
    state = found[1].body.state
    is_ours = (state.config_hash, state.input_versions) == (job.config_hash, job.versions)
    return found[1] if state.finished and is_ours else None


def _publish(request: TrainRequest, job: Job, last: Checkpoint, out: Path) -> dict[str, Any]:
    """Write the artifact from the weights of the best validation.

    A sharded table becomes whole here: this process holds it once, 4 V D bytes, and a block of 65,536 rows beside it,
    as whatever opens the artifact will.
    """
    body = last.body
    fields = () if job.model.kind == "sequence" else read_fields(Lake(job.lake), job.versions["fields"], job.as_of)
    model = artifact.build(job.model, job.catalogue, fields)
    table = None
    if last.shards:  # they hold the one tensor that the checkpoint's body lacks
        table = model.get_parameter(*(model.state_dict().keys() - body.model.keys()))
    load_dense_state(model, body.best or body.model, table)
    if table is not None:
        assemble(table, last.shards, best=body.best is not None)
    metrics = {**_metrics(body.state, job), "initial": request.initial_digest}
    if request.search is not None:
        metrics["search"] = dict(request.search)
    artifact.save(
        out, model, job.model, lineage=job.versions, vocabulary_hash=request.vocabulary_hash, metrics=metrics,
        catalogue=job.catalogue, fields=fields, vocabulary=request.vocabulary,
    )  # fmt: skip
    return metrics


def _metrics(state: TrainState, job: Job) -> dict[str, Any]:
    health = {**figures_at(state.validations, state.best_epoch), "validations": state.validations}
    return {
        "epochs": state.epoch,
        "steps": state.step,
        "examples": state.examples,
        "best_epoch": state.best_epoch,
        "valid_metric": state.best_metric,
        "seconds": state.seconds,
        "examples_per_second": state.examples / state.train_seconds,
        "workers": state.world,
        "peak_memory_bytes": state.peak_memory_bytes,
        **(health if state.validations else {}),
    }


def _count(request: TrainRequest, out: Path) -> dict[str, Any]:
    """A counted model needs no worker: one pass over all the table's training chunks, also of a lone event."""
    _require_versions(request)
    started = time.perf_counter()
    lake, version = Lake(request.lake), request.versions["sequences"]
    valid = SequenceData.from_lake(lake, version, request.as_of, "valid")
    table = lake.read("sequences", version, {"as_of": request.as_of, "split": "train"}, ["items", "is_target"])
    items, next_items = shown_and_predicted(table)
    events, catalogue = len(items.values), _catalogue(request)
    assert catalogue is not None
    if events == 0 or items.values.max() >= catalogue:
        raise TrainingError(
            f"table sequences version {version}, split 'train' as of {request.as_of}: "
            + (f"item index {items.values.max()} is beyond the vocabulary" if events else "no events to count")
        )
    model = artifact.build(request.model, catalogue, ())
    assert isinstance(model, CountedModel)
    model.fit(items, next_items)
    _, value = validate(model, valid, request.training, rank=0, world=1, device=torch.device("cpu"))
    seconds = time.perf_counter() - started
    metrics = {
        "epochs": 0, "steps": 0, "examples": events, "best_epoch": 0, "valid_metric": value,
        "seconds": seconds, "examples_per_second": events / seconds, "workers": 0,
        "peak_memory_bytes": peak_memory(torch.device("cpu")),
    }  # fmt: skip
    artifact.save(
        out, model, request.model, lineage=request.versions, vocabulary_hash=request.vocabulary_hash, metrics=metrics,
        catalogue=catalogue, vocabulary=request.vocabulary,
    )  # fmt: skip
    return metrics
