"""A random search decided by the validation split, through Ray Tune: each trial is a run of train.trainer under a name
of its own, and the best one's finished run is the model. The test split is never read.

Configurations are drawn before the first trial, so neither timing nor a restart changes them. Searching again with the
same storage and run name trains nothing that has finished and resumes the rest.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from infra.config import parse
from infra.errors import Logs2RecError, TrainingError
from train.job import Job
from train.settings import TrainingSettings
from train.space import SearchSettings, described, put
from train.tracking import Tracker
from train.trainer import RECORD, Progress, TrainRequest, brief, finished, job_of, require_resources, trained
from train.validation import METRICS, better

_KEPT_OF = 4  # at each halving one trial of so many goes on
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What became of one configuration."""

    values: dict[str, Any]
    run: str
    state: Literal["finished", "stopped", "failed"]
    """stopped: by successive halving."""
    metric: float | None = None
    """The best validation of the last stage; of a trial that did not finish its last validation."""
    epochs: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Found:
    """The outcome of a search; `fit` of its request publishes the run that the best trial has left."""

    request: TrainRequest
    values: dict[str, Any]
    trials: list[Trial]


def search(request: TrainRequest, settings: SearchSettings, storage: Path, progress: Progress | None = None) -> Found:
    """Train `request` with each of the drawn values, and choose by validation.

    `progress` receives the epochs that trials report, with `trial` (from 1) and `trials`. Raises TrainingError when
    no trial finishes, with the first one's reason, and ConfigError for values that the model does not accept.
    """
    drawn = settings.drawn()
    requests = [_variant(request, values) for values in drawn]
    jobs = [job_of(r, storage) for r in requests]
    folder = storage.resolve() / f"{request.run_name}-tune"
    ends = _tuned(jobs, [r.tracker for r in requests], settings, folder, progress)
    trials = [_trial(values, job, ends.get(i, {})) for i, (values, job) in enumerate(zip(drawn, jobs, strict=True))]
    failed = [t for t in trials if t.state == "failed"]
    for trial in failed:
        _log.warning("trial %s failed and is not chosen: %s", described(trial.values), trial.error)
    best = chosen(trials, METRICS[request.model.kind])
    if best is None:
        why = f"the first that failed: {failed[0].error}" if failed else "all were stopped"
        raise TrainingError(f"search {request.run_name}: none of {len(trials)} trials finished; {why}")
    note = {"trials": len(trials), "values": drawn[best]}
    return Found(replace(requests[best], search=note), drawn[best], trials)


def chosen(trials: Sequence[Trial], metric: str) -> int | None:
    """The finished trial with the best metric, the first of equals; None without one.

    >>> tried = [Trial({}, "a", "finished", 0.2), Trial({}, "b", "finished", 0.3), Trial({}, "c", "stopped", 0.1)]
    >>> chosen(tried, "valid_ndcg_20"), chosen(tried, "valid_log_loss"), chosen(tried[2:], "valid_log_loss")
    (1, 0, None)
    """
    best: tuple[int, float] | None = None
    for i, trial in enumerate(trials):
        value = trial.metric
        if trial.state != "finished" or value is None or math.isnan(value):
            continue
        if best is None or better(metric, value, best[1]):
            best = i, value
    return best[0] if best else None


def _variant(request: TrainRequest, values: Mapping[str, Any]) -> TrainRequest:
    """The request with these values, under a run name that tells them apart."""
    sections = put({"config": request.model.model_dump(), "training": request.training.model_dump()}, values)
    where = f"search.space, {described(values)}"
    model = parse(sections["config"], type(request.model), f"{where}: config")
    training = parse(sections["training"], TrainingSettings, f"{where}: training")
    changed = replace(request, model=model, training=training)
    name, tracker = f"{request.run_name}-{changed.config_hash}", request.tracker
    if tracker is not None:
        tracker = replace(tracker, run_name=name, params={**tracker.params, **values})
    return replace(changed, run_name=name, tracker=tracker)


def _tuned(
    jobs: Sequence[Job],
    trackers: Sequence[Tracker | None],
    settings: SearchSettings,
    folder: Path,
    progress: Progress | None,
) -> dict[int, dict[str, Any]]:
    """Train what is not finished; returns how each trial ended in this search."""
    # Halving compares with what had finished before a restart too: those trials tell their story again.
    todo = [i for i, job in enumerate(jobs) if settings.epochs_first or finished(job) is None]
    if not todo:
        return {}
    import ray
    from ray import tune

    shutil.rmtree(folder, ignore_errors=True)  # of a search that was killed
    use_gpu = require_resources(jobs[0].training, min(settings.parallel, len(todo)))
    # A byte of memory, not a share of a CPU: the trial's workers may ask for all CPUs there are.
    room = tune.PlacementGroupFactory([{"memory": 1}])
    tuner = tune.Tuner(
        tune.with_resources(_trainable(jobs, trackers, use_gpu), room),
        param_space={"trial": tune.grid_search(todo)},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=settings.parallel,
            scheduler=_halving(jobs, settings.epochs_first) if settings.epochs_first else None,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[_forwarder(progress, len(jobs))] if progress else [],
        ),
    )
    try:
        grid = tuner.fit()
        results = [grid[i] for i in range(len(grid))]
        return {r.config["trial"]: _end(r) for r in results if r.config}
    except (ray.exceptions.RayError, tune.TuneError) as error:
        raise TrainingError(f"search {folder.name}: Ray failed: {brief(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Tune's own record; ours are the runs


def _trainable(jobs: Sequence[Job], trackers: Sequence[Tracker | None], use_gpu: bool) -> Callable[[Any], Any]:
    """What Tune calls for a trial, in a process of its own."""

    def trial(config: Mapping[str, int]) -> dict[str, Any]:
        from ray import tune

        job, tracker = jobs[config["trial"]], trackers[config["trial"]]
        metric = METRICS[job.model.kind]

        def tell(metrics: Mapping[str, Any]) -> None:
            if metric in metrics:
                tune.report({"epoch": metrics["epoch"], metric: metrics[metric]})

        for metrics in _validations(job):
            tell(metrics)
        try:
            if finished(job) is None:
                trained(job, use_gpu, tracker, tell)
        except Logs2RecError as error:
            return {"state": "failed", "error": str(error)}
        return {"state": "finished"}

    return trial


def _end(result: Any) -> dict[str, Any]:
    """How a trial ended: in its own words, or stopped, or dead before it could say."""
    if result.error is not None:
        return {"state": "failed", "error": brief(result.error)}
    return {"state": "stopped", **{k: v for k, v in (result.metrics or {}).items() if k in ("state", "error")}}


def _halving(jobs: Sequence[Job], first: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler

    metric, longest = METRICS[jobs[0].model.kind], max(job.training.epochs for job in jobs)
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode="max" if better(metric, 1.0, 0.0) else "min",
        max_t=longest,
        grace_period=min(first, longest),
        reduction_factor=_KEPT_OF,
        stop_last_trials=False,
    )


def _forwarder(progress: Progress, count: int) -> Any:
    """A Tune callback (it lives in this process) that says which trial is in which epoch."""
    from ray import tune

    class Forwarder(tune.Callback):
        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune keeps a copy in a file, and nobody reads it

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if "epoch" in result:
                progress({"trial": trial.config["trial"] + 1, "trials": count, "epoch": result["epoch"]})

    return Forwarder()


def _trial(values: dict[str, Any], job: Job, end: Mapping[str, Any]) -> Trial:
    """The row of a trial. Without an `end` it had finished before."""
    run, state = Path(job.run).name, end.get("state", "finished")
    if state == "finished" and (final := finished(job)) is not None:
        return Trial(values, run, state, final.body.state.best_metric, final.body.state.epoch)
    last: dict[str, Any] = next(reversed(_validations(job)), {})
    metric, epochs = last.get(METRICS[job.model.kind]), last.get("epoch", 0)
    if state == "stopped":
        return Trial(values, run, state, metric, epochs)
    return Trial(values, run, "failed", metric, epochs, end.get("error", "its final checkpoint is gone"))


def _validations(job: Job) -> list[dict[str, Any]]:
    """What a run has reported of its validations so far; a line that a kill cut short is left out."""
    path = Path(job.run) / RECORD
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [m for m in found if METRICS[job.model.kind] in m]
