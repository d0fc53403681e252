"""What a killed worker costs: one of two is killed in the middle of a run, beside the same run undisturbed.

`goodput`: what is left of the undisturbed pace with one worker killed every five minutes, 300 / (300 + seconds that
one kill cost: noticing, starting again, and the steps since the last checkpoint). Real Ray Train runs of a minute and
more, a checkpoint every 20 s.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from infra.cluster import RaySettings, cluster
from tests.benchmarks import chunks, scaling
from tests.benchmarks.harness import report
from tests.faults import dying_trainer
from train import trainer
from train.trainer import TrainRequest, fit

PERIOD = 300
BATCH = 512
STEPS = 150


def seconds(request: TrainRequest, folder: Path, fault: dict[str, object]) -> float:
    """Of one run with this fault."""
    run = folder / "runs" / request.run_name
    run.mkdir(parents=True)
    (run / "fault.json").write_text(json.dumps(fault))
    started = time.perf_counter()
    fit(request, folder / request.run_name, folder / "runs")
    assert (run / "scar").exists() == bool(fault)
    return time.perf_counter() - started


def main() -> None:
    """One line of figures."""
    trainer.train_worker = dying_trainer.train_worker
    with tempfile.TemporaryDirectory() as name, cluster(RaySettings(cpus=2)):
        folder = chunks.lake(Path(name), BATCH * STEPS, scaling.CATALOGUE)
        settings = {"epochs": 1, "max_failures": 1, "checkpoint_seconds": 20}
        undisturbed, killed = (
            scaling.request(folder, BATCH, 2, name, **settings) for name in ("undisturbed", "killed")
        )
        lost = -seconds(undisturbed, folder, {})
        lost += seconds(killed, folder, {"point": "within a step", "rank": 1, "after": STEPS // 2})
    report("goodput", {"goodput": PERIOD / (PERIOD + lost), "seconds_per_kill": lost})


if __name__ == "__main__":
    main()
