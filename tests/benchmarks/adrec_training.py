"""An ADRec training step beside the straightforward one: padded to 50, all logits at once, the code of a step for
every token, the optimizer's own step on top of both.

`speedup`: examples per second over the straightforward step's, steps alternating; `examples_per_second`: ours. Lengths
and catalogue as in shared/data/adrec-baby, D = 128, 512 sequences a step.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from tests.benchmarks.chunks import chunks, last_stage
from tests.benchmarks.harness import report
from tests.benchmarks.packing import BATCH, CATALOGUE, padded
from tests.benchmarks.packing import seconds as step_seconds
from tests.train.models import straightforward
from train.configs import ADRecConfig
from train.loader import Resident, Share
from train.models.adrec import ADRec
from train.protocol import SequenceBatch
from train.settings import TrainingSettings

STEPS = 5


def straightforward_seconds(model: ADRec, optimizer: torch.optim.Optimizer, batch: SequenceBatch) -> float:
    """Of one step of plain torch."""
    generator, started = torch.Generator().manual_seed(0), time.perf_counter()
    optimizer.zero_grad()
    straightforward.loss(model, batch, generator).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    config = ADRecConfig(width=128, heads=4)
    data = chunks(BATCH * (STEPS + 1), CATALOGUE)
    stepper = last_stage(config, CATALOGUE, TrainingSettings(batch_size=BATCH, epochs=3))
    model = ADRec(config, CATALOGUE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ratios, rates = [], []
    for item in Resident(data, Share(BATCH, 0)).epoch(0):
        rows = np.arange(item.position * BATCH, (item.position + 1) * BATCH)
        ours = step_seconds(stepper, torch.Generator().manual_seed(0), item.batches[0])
        theirs = straightforward_seconds(model, optimizer, padded(data, rows))
        if item.position:
            ratios.append(theirs / ours)
            rates.append(BATCH / ours)
    report("adrec_training", {"speedup": statistics.median(ratios), "examples_per_second": statistics.median(rates)})


if __name__ == "__main__":
    main()
