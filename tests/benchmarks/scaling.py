"""Two workers beside one, on real Ray Train runs: the same global batch, one CPU thread each, two cores.

ADRec, D = 128, lengths as in adrec-baby (about 8 events a row). `speedup_two_workers`: a global batch of 1,024 rows,
so 512 a worker; `speedup_at_512`: half of that, of which the exchange of gradients, the same for any batch, takes
twice the share. Examples per second of two workers over those of one, of each the best epoch but the first of three
runs, which alternate: anything else on the machine costs two workers more than the one that has a core to spare. The
first epoch has what comes once: the rehearsal, and the first step of DistributedDataParallel.
"""

from __future__ import annotations

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
BATCHES = {"speedup_two_workers": 1024, "speedup_at_512": 512}
STEPS, EPOCHS, REPETITIONS = 8, 4, 3


def request(folder: Path, batch: int, workers: int, name: str, **settings: object) -> TrainRequest:
    """ADRec's last stage over the chunks."""
    vocabulary = pa.table({"field": ["__item__"], "index": pa.array([CATALOGUE - 1], pa.int32()), "key": ["last"]})
    training = {"batch_size": batch, "workers": workers, "threads": 1, **settings}
    return TrainRequest(
        lake=folder, versions={"sequences": 0}, as_of=chunks.AS_OF, run_name=name,
        model=ADRecConfig(width=128, heads=4, pretrain_share=0, align_share=0),
        training=TrainingSettings.model_validate(training), vocabulary_hash="none", vocabulary=vocabulary,
    )  # fmt: skip


def examples_per_second(folder: Path, batch: int, workers: int, repetition: int) -> float:
    """Of the best epoch but the first of one run."""
    told: list[dict[str, Any]] = []
    name = f"run-{batch}-{workers}-{repetition}"
    run = request(folder, batch, workers, name, epochs=EPOCHS, validate_every=EPOCHS)
    fit(run, folder / run.run_name, folder / "runs", told.append)
    return float(max(report["examples_per_second"] for report in told[1:]))


def speedup(folder: Path, batch: int) -> float:
    """Of two workers over one."""
    chunks.lake(folder, batch * STEPS, CATALOGUE)
    best = {1: 0.0, 2: 0.0}
    for repetition in range(REPETITIONS):
        for workers in best:
            best[workers] = max(best[workers], examples_per_second(folder, batch, workers, repetition))
    return best[2] / best[1]


def main() -> None:
    """One line of figures."""
    with tempfile.TemporaryDirectory() as name, cluster(RaySettings(cpus=2)):
        figures = {figure: speedup(Path(name) / figure, batch) for figure, batch in BATCHES.items()}
    report("scaling", figures)


if __name__ == "__main__":
    main()
