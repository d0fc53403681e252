"""Workers of a Ray Train run killed at named points, on either rank: the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.cluster import RaySettings, cluster
from infra.errors import TrainingError
from tests.faults import dying_trainer
from tests.faults.disturbance import REPETITIONS, drawn
from tests.train.tables import write_sequences
from tests.train.test_loop import CHUNKS, TARGETS, same
from tests.train.test_trainer import ADREC, SASREC, request_for, weights
from train import checkpoint, trainer
from train.trainer import TrainRequest, fit

pytestmark = pytest.mark.fault

#: 20 rows in batches of 8: three steps an epoch, a checkpoint after each.
RUN = {"epochs": 3, "workers": 2, "max_failures": 1, "checkpoint_seconds": 0.0001}
STEPS = 9
DEATHS = {
    "within a step": (3, STEPS - 1),
    "before the first checkpoint": (0, 0),
    "while saving": (0, 5),
    "after saving": (0, 5),
    "at a boundary": (0, 1),
}


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=2, object_store_mb=100)):
        yield


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lake")
    write_sequences(root, CHUNKS, TARGETS)
    return root


@pytest.fixture(scope="module")
def undisturbed(lake: Path) -> dict[str, torch.Tensor]:
    fit(request_for(lake, ADREC, "undisturbed", **RUN), lake / "undisturbed", lake / "runs")
    return weights(lake, "undisturbed")


def disturbed(lake: Path, request: TrainRequest, out: Path, monkeypatch: pytest.MonkeyPatch, **fault: object) -> Path:
    """Train with this fault; the run's folder."""
    run = lake / "runs" / request.run_name
    run.mkdir(parents=True, exist_ok=True)
    (run / "fault.json").write_text(json.dumps(fault))
    monkeypatch.setattr(trainer, "train_worker", dying_trainer.train_worker)
    fit(request, out, lake / "runs")
    return run


@pytest.mark.parametrize("repetition", range(REPETITIONS))
@pytest.mark.parametrize("point", DEATHS)
def test_a_worker_is_killed(lake, undisturbed, tmp_path, monkeypatch, point, repetition):
    chance = drawn(repetition, point)
    rank, after = (list(DEATHS).index(point) + repetition) % 2, chance.randint(*DEATHS[point])
    request = request_for(lake, ADREC, f"killed-{point.replace(' ', '-')}-{repetition}", **RUN)
    run = disturbed(lake, request, tmp_path / "model", monkeypatch, point=point, rank=rank, after=after)
    assert (run / "scar").exists(), f"rank {rank} was not killed after {after}"
    assert same(undisturbed, weights(lake, request.run_name)), f"rank {rank} killed after {after}"


def test_a_worker_hangs(lake, undisturbed, tmp_path, monkeypatch):
    """It is stopped in the middle of a step; the other rank waits for it no longer than the time-out."""
    request = request_for(lake, ADREC, "hanging", **RUN, timeout_seconds=5)
    stopped = {"point": "within a step", "rank": 1, "after": 4, "signal": signal.SIGSTOP}
    run = disturbed(lake, request, tmp_path / "model", monkeypatch, **stopped)
    assert (run / "scar").exists()
    assert same(undisturbed, weights(lake, request.run_name))


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_a_checkpoint_is_truncated(lake, undisturbed, tmp_path, monkeypatch, repetition):
    """The driver gives up; a file of the newest checkpoint is cut anywhere; the run goes on from the one before."""
    chance = drawn(repetition, "truncated")
    request = request_for(lake, ADREC, f"truncated-{repetition}", **{**RUN, "max_failures": 0})
    with pytest.raises(TrainingError, match="worker"):
        disturbed(
            lake, request, tmp_path / "model", monkeypatch, point="within a step", rank=1, after=chance.randint(3, 8)
        )
    newest, *_ = checkpoint.candidates(lake / "runs" / request.run_name)
    victim = chance.choice(sorted(p for p in newest.iterdir() if p.stat().st_size > 1))
    victim.write_bytes(victim.read_bytes()[: chance.randrange(victim.stat().st_size)])
    fit(request, tmp_path / "model", lake / "runs")
    assert same(undisturbed, weights(lake, request.run_name)), f"{victim.name} cut"


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_two_workers_then_one_then_two(lake, tmp_path, monkeypatch, repetition):
    """Every sequence exactly once per epoch, and the losses of one undisturbed worker."""
    chance = drawn(repetition, "worlds")
    one = request_for(lake, SASREC, f"one-{repetition}", **{**RUN, "workers": 1})
    undisturbed = disturbed(lake, one, tmp_path / "a", monkeypatch)
    run = lake / "runs" / f"changing-{repetition}"
    faults = [{"point": "within a step", "rank": chance.randrange(w), "after": chance.randint(2, 3)} for w in (2, 1)]
    for workers, fault in zip((2, 1, 2), [*faults, {}], strict=True):
        request = request_for(lake, SASREC, run.name, **{**RUN, "workers": workers, "max_failures": 0})
        (run / "scar").unlink(missing_ok=True)
        with pytest.raises(TrainingError) if fault else nullcontext():
            disturbed(lake, request, tmp_path / "b", monkeypatch, **fault)
    losses = [
        dict(json.loads(line) for line in (folder / dying_trainer.LOSSES).read_text().splitlines())
        for folder in (undisturbed, run)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    # What an epoch holds: every chunk, as the batches of a model that sees four events show it.
    whole = Counter(str((items[:-1], items[1:])) for items in (chunk[-5:] for chunk in CHUNKS))
    assert [Counter(rows) for rows in used(run).values()] == [whole] * 3


def steps_made(run: Path) -> list[dict[str, Any]]:
    """What every step of every rank and attempt wrote down (tests.faults.dying_trainer)."""
    return [json.loads(line) for file in run.glob("used-*.jsonl") for line in file.read_text().splitlines()]


def used(run: Path) -> dict[int, list[str]]:
    """Per epoch what its steps have used; of a step that was made twice, what counted: the last time."""
    rows = steps_made(run)
    last = {(r["epoch"], r["position"]): 0 for r in rows}
    for r in rows:
        last[r["epoch"], r["position"]] = max(last[r["epoch"], r["position"]], r["attempt"])
    epochs: dict[int, list[str]] = {}
    for r in rows:
        if r["attempt"] == last[r["epoch"], r["position"]]:
            epochs.setdefault(r["epoch"], []).extend(r["used"])
    return dict(sorted(epochs.items()))
