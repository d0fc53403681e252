"""What packing saves: training steps on packed rows beside the same sequences padded to 50, as published code does.

`speedup`: examples per second over those with padding, the same ADRec (D = 128), catalogue and engine, steps
alternating. `padding_efficiency`: events over places in the packed batches. Lengths as in shared/data/adrec-baby.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from tests.benchmarks.chunks import LONGEST, chunks, last_stage
from tests.benchmarks.harness import report
from train.configs import ADRecConfig
from train.loader import Resident, Share
from train.protocol import SequenceBatch
from train.settings import TrainingSettings
from train.step import Stepper

CATALOGUE = 4_733
"""Of adrec-baby, with padding and unknown."""
BATCH = 512
STEPS = 6


def padded(data: object, rows: np.ndarray) -> SequenceBatch:
    """The rows left-padded to 50, whatever the longest of them."""
    shown = data.items.left_padded(rows, LONGEST + 1)  # type: ignore[attr-defined]
    wide = np.zeros((len(rows), LONGEST + 1), np.int64)
    wide[:, -shown.shape[1] :] = shown
    items_BL, next_BL = torch.from_numpy(wide[:, :-1].copy()), torch.from_numpy(wide[:, 1:])
    return SequenceBatch.left_padded(items_BL, next_BL * (items_BL != 0))


def seconds(stepper: Stepper, generator: torch.Generator, batch: SequenceBatch) -> float:
    """Of one step."""
    started = time.perf_counter()
    stepper.step([batch], generator, 1e-3, (False, False))
    return time.perf_counter() - started


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    data = chunks(BATCH * (STEPS + 1), CATALOGUE)
    settings = TrainingSettings(batch_size=BATCH, epochs=3)
    packed, plain = (
        (last_stage(ADRecConfig(width=128, heads=4), CATALOGUE, settings), torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    ratios, efficiency = [], []
    for item in Resident(data, Share(BATCH, 0)).epoch(0):
        (batch,) = item.batches
        rows = np.arange(item.position * BATCH, (item.position + 1) * BATCH)
        fast, slow = seconds(*packed, batch), seconds(*plain, padded(data, rows))
        if item.position:
            ratios.append(slow / fast)
            efficiency.append(float((batch.items_BL != 0).float().mean()))
    report("packing", {"speedup": statistics.median(ratios), "padding_efficiency": statistics.fmean(efficiency)})


if __name__ == "__main__":
    main()
