"""Two workers beside one, on real Ray Train runs: the same global batch, one CPU thread each, two cores.

`speedup_two_workers`: examples per second of the second epoch over those of one worker; ADRec, D = 128. Runs
alternate. The first epoch has what comes once: the rehearsal, and the first step of DistributedDataParallel.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.cluster import RaySettings, cluster
from tests.benchmarks import chunks
from tests.benchmarks.harness import report
from train.configs import ADRecConfig
from train.settings import TrainingSettings
from train.trainer import TrainRequest, fit

CATALOGUE = 20_000
BATCH = 512
STEPS = 12


def request(folder: Path, workers: int, name: str, **settings: object) -> TrainRequest:
    """ADRec's last stage over the chunks."""
    vocabulary = pa.table({"field": ["__item__"], "index": pa.array([CATALOGUE - 1], pa.int32()), "key": ["last"]})
    training = {"batch_size": BATCH, "workers": workers, "threads": 1, **settings}
    return TrainRequest(
        lake=folder, versions={"sequences": 0}, as_of=chunks.AS_OF, run_name=name,
        model=ADRecConfig(width=128, heads=4, pretrain_share=0, align_share=0),
        training=TrainingSettings.model_validate(training), vocabulary_hash="none", vocabulary=vocabulary,
    )  # fmt: skip


def examples_per_second(folder: Path, workers: int, repetition: int) -> float:
    """Of one run."""
    told: list[dict[str, Any]] = []
    run = request(folder, workers, f"run-{workers}-{repetition}", epochs=2, validate_every=2)
    fit(run, folder / run.run_name, folder / "runs", told.append)
    return float(told[-1]["examples_per_second"])


def main() -> None:
    """One line of figures."""
    with tempfile.TemporaryDirectory() as name, cluster(RaySettings(cpus=2)):
        folder = chunks.lake(Path(name), BATCH * STEPS, CATALOGUE)
        ratios = []
        for repetition in range(3):
            one, two = (examples_per_second(folder, workers, repetition) for workers in (1, 2))
            ratios.append(two / one)
    report("scaling", {"speedup_two_workers": statistics.median(ratios)})


if __name__ == "__main__":
    main()
