"""One model on data from elsewhere, in a workspace of its own: trained once, evaluated as often as asked. No maths.

What is finished stands in the workspace's ledger and is not done again; a run that was killed goes on.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.cluster import RaySettings, cluster
from infra.config import apply_override, read_yaml
from infra.errors import UsageError
from infra.lake import Lake
from infra.ledger import Ledger, Published, key_of
from infra.lock import WorkspaceLock
from pipelines.progress import Progress
from pipelines.recipe import RankingModelRun, SequenceModelRun
from train.settings import decisive

if TYPE_CHECKING:
    import pyarrow as pa

Outputs = tuple[dict[str, Any], dict[str, Any]]
"""What a unit left, and its report."""


@dataclass(frozen=True)
class Replication:
    """What came out: the summary (`--json`), and everything that the evaluation measured."""

    summary: dict[str, Any]
    metrics: dict[str, float]
    users: dict[str, NDArray[Any]]
    """By set, in the order of the data."""
    per_user: dict[str, NDArray[np.float64]]
    """By "set/metric", aligned with them."""


@dataclass(frozen=True)
class Workbench:
    """A workspace that is at one model."""

    model: str
    date: str
    """As of when the data are, or what stands for it."""
    run: SequenceModelRun | RankingModelRun
    workspace: Path
    ledger: Ledger
    progress: Progress

    @property
    def lake(self) -> Lake:
        """The workspace's tables."""
        return self.ledger.lake

    def artifact(self, trained: Published) -> Path:
        """Where the model is."""
        self.progress.note(f"evaluating {self.model}")
        return self.workspace / str(trained.outputs["artifact"])

    def trained(self, versions: Mapping[str, int], items_hash: str, vocabulary: pa.Table | None) -> Published:
        """The artifact, a function of the tables' versions, the model and how it is trained."""
        config, training = self.run.config, self.run.training

        def work(key: str) -> Outputs:
            from train.trainer import TrainRequest, fit

            request = TrainRequest(
                lake=Path(self.lake.root), versions=dict(versions), as_of=self.date, model=config, training=training,
                run_name=f"{self.model}-{key}", vocabulary_hash=items_hash, vocabulary=vocabulary,
            )  # fmt: skip
            artifact = Path("artifacts") / f"{self.model}-{key}"
            with ExitStack() as stack:
                if not config.counted:
                    self.progress.note("starting Ray")
                    stack.enter_context(cluster(RaySettings()))
                report = fit(request, self.workspace / artifact, self.workspace / "training", self._epoch)
            return {"artifact": str(artifact)}, report

        inputs = {**versions, "items_hash": items_hash}
        return self.publish(f"replicate:{self.model}", inputs, decisive(config, training), work)

    def publish(self, unit: str, inputs: Mapping[str, Any], config: Any, work: Callable[[str], Outputs]) -> Published:
        """What the ledger has under the unit's key, or what `work` makes of it."""
        key = key_of(unit, self.date, inputs, config)
        if (found := self.ledger.find(key)) is not None:
            self.progress.finish(unit, "skipped", 0.0)
            return found
        self.progress.start(unit)
        started = perf_counter()
        outputs, report = work(key)
        row = self.ledger.publish(
            unit=unit, date=self.date, inputs=inputs, config=config, outputs=outputs, report=report,
            seconds=round(perf_counter() - started, 3), run_id="replicate",
        )  # fmt: skip
        self.progress.finish(unit, "published", row.seconds)
        return row

    def _epoch(self, metrics: Mapping[str, Any]) -> None:
        """Show how far training is."""
        epochs = self.run.training.epochs
        self.progress.note(f"replicate:{self.model}: epoch {metrics.get('epoch', '?')}/{epochs}")


@contextmanager
def workbench(
    model: str, date: str, run: SequenceModelRun | RankingModelRun, workspace: Path | None, progress: Progress
) -> Iterator[Workbench]:
    """The bench, held for this process; without a workspace in a temporary folder, which is removed.

    Raises WorkspaceBusy when another command is at work in the workspace.
    """
    with ExitStack() as stack:
        if workspace is None:
            workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="logs2rec-replicate-")))
        lock = WorkspaceLock(workspace)
        stack.callback(lock.release)
        lock.hold(f"replicate {model}")
        yield Workbench(model, date, run, workspace, Ledger(Lake(workspace / "lake")), progress)


def sections(file: Path) -> Mapping[str, Any]:
    """The models of a settings file, by name."""
    found: Mapping[str, Any] = read_yaml(file)
    return found


def section(file: Path, model: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A model's section of a settings file with its overrides (`config.width=64`); UsageError where there is none."""
    known = sections(file)
    if model not in known:
        raise UsageError(f"--model {model!r}: choose one of {', '.join(known)}")
    found: dict[str, Any] = known[model]
    for override in overrides:
        apply_override(found, override)
    return found


def figure(mean: float) -> float | None:
    """JSON has no NaN, which is the mean over nobody."""
    return None if math.isnan(mean) else mean
