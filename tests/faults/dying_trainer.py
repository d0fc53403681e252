"""Ray's entry of a training worker that is killed once, at the point and on the rank that `fault.json` in the run says.

The points cannot be reached from outside with any precision, so they are wrapped here, in the worker's own process.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.test_sequence_data import events
from train import checkpoint, loop, step

RECORD = "used-{rank}.jsonl"
LOSSES = "losses.jsonl"


class Fault:
    """One death: `point`, `rank`, `after` (optimizer steps or checkpoints that come before it), and its scar."""

    def __init__(self, run: Path) -> None:
        told: dict[str, Any] = json.loads((run / "fault.json").read_text()) if (run / "fault.json").exists() else {}
        self.run, self.point, self.rank, self.after = run, told.get("point"), told.get("rank"), told.get("after", 0)
        self.signal = signal.Signals(told.get("signal", signal.SIGKILL))
        self.pause = float(told.get("pause", 0.0))
        """Seconds that every step takes longer while `fault.json` exists, so that a short run can be disturbed."""
        self.seen = 0
        self.rehearsing = False

    def counted(self) -> bool:
        """Whether enough has come before; false for ever once it has happened."""
        self.seen += 1
        return self.seen > self.after and not (self.run / "scar").exists()

    def happen(self) -> None:
        """What a power cut, the kernel's memory killer or a hang does."""
        (self.run / "scar").touch()
        os.kill(os.getpid(), self.signal)


def within_a_step(fault: Fault) -> None:
    """After the ranks have told each other their counts, before the gradients are exchanged."""
    real = step.StageLoss.forward

    def forward(self: Any, batch: Any, counts: Any, generator: Any) -> Any:
        if not fault.rehearsing and fault.counted():
            fault.happen()
        return real(self, batch, counts, generator)

    def rehearse(self: Any, batch: Any, generator: Any) -> int:
        fault.rehearsing = True
        try:
            return real_rehearse(self, batch, generator)
        finally:
            fault.rehearsing = False

    real_rehearse = step.Stepper.rehearse
    step.StageLoss.forward = forward  # type: ignore[method-assign]
    step.Stepper.rehearse = rehearse  # type: ignore[method-assign]


def while_saving(fault: Fault) -> None:
    """Half of a checkpoint's file is written."""
    real = checkpoint.write_tensors
    name = "model.safetensors" if fault.rank == 0 else f"rng-{fault.rank:05d}.safetensors"

    def write_tensors(path: Path, tensors: Any) -> None:
        real(path, tensors)
        if path.name == name and path.parent.name.startswith("epoch-") and fault.counted():
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
            fault.happen()

    checkpoint.write_tensors = write_tensors


def after_saving(fault: Fault) -> None:
    """The checkpoint is complete, nobody has been told."""
    real = loop.Worker._save

    def save(self: Any) -> Path:
        path = real(self)
        if fault.counted():
            fault.happen()
        return path

    loop.Worker._save = save  # type: ignore[method-assign]


def at_a_boundary(fault: Fault) -> None:
    """An epoch has been reported, the next has not begun."""
    real = loop.Worker._epoch

    def epoch(self: Any, *arguments: Any) -> Any:
        if self.state.epoch and fault.counted():
            fault.happen()
        return real(self, *arguments)

    loop.Worker._epoch = epoch  # type: ignore[method-assign]


POINTS: dict[str, Callable[[Fault], None]] = {
    "within a step": within_a_step,
    "before the first checkpoint": within_a_step,
    "while saving": while_saving,
    "after saving": after_saving,
    "at a boundary": at_a_boundary,
}


def recorded(run: Path, rank: int, pause: float) -> None:
    """Write down what every step uses, for those who count."""
    real = loop.Worker._step

    def _step(self: Any, batches: list[Any]) -> bool:
        used = sorted(str(s) for batch in batches for s in events(batch))
        row = {"epoch": self.state.epoch, "position": self.state.position, "attempt": self.attempt, "used": used}
        with (run / RECORD.format(rank=rank)).open("a") as file:
            file.write(json.dumps(row) + "\n")
        if pause and (run / "fault.json").exists():
            time.sleep(pause)
        return real(self, batches)

    loop.Worker._step = _step  # type: ignore[method-assign]
    real_epoch = loop.Worker._epoch

    def epoch(self: Any, *arguments: Any) -> tuple[dict[str, Any], bool]:
        metrics, due = real_epoch(self, *arguments)
        with (run / LOSSES).open("a") as file:
            file.write(json.dumps([metrics["epoch"], metrics["loss"]]) + "\n")
        return metrics, due

    loop.Worker._epoch = epoch  # type: ignore[method-assign]


_WRAPPED = (
    (step.Stepper, "rehearse"), (step.StageLoss, "forward"), (checkpoint, "write_tensors"), (loop.Worker, "_save"),
    (loop.Worker, "_epoch"), (loop.Worker, "_step"),
)  # fmt: skip
_untouched = [getattr(owner, name) for owner, name in _WRAPPED]


def train_worker(config: dict[str, Any]) -> None:
    """`loop.train_worker`, disturbed. Ray may give a process a second run: what was wrapped before is undone."""
    import ray.train

    for (owner, name), real in zip(_WRAPPED, _untouched, strict=True):
        setattr(owner, name, real)
    run, rank = Path(config["run"]), ray.train.get_context().get_world_rank()
    fault = Fault(run)
    recorded(run, rank, fault.pause)
    if rank == fault.rank and fault.point:
        POINTS[fault.point](fault)
    loop.train_worker(config)
