"""How much of the machine a training step uses: its FLOPs over its time, beside a large matmul on the same device.

ADRec and SASRec at D = 128 (on a GPU also at 512) on lengths as in shared/data/adrec-baby, a catalogue of 20,000,
full cross-entropy, the engine's own step with the loader's packed batches.
"""

from __future__ import annotations

import statistics
import time

import torch

from tests.benchmarks.chunks import chunks, last_stage
from tests.benchmarks.harness import report
from train.configs import ADRecConfig, SASRecConfig
from train.loader import Resident, Share
from train.protocol import to_device
from train.settings import TrainingSettings
from train.throughput import Meter, matmul_rate, wait_for

CATALOGUE = 20_000
BATCH = 512
STEPS = 12


def share_of_matmul(config: ADRecConfig | SASRecConfig, device: torch.device, precision: str) -> float:
    """The last stage's step: FLOPs per second over those of a large matrix product, alternating the two."""
    settings = TrainingSettings(batch_size=BATCH, precision=precision, epochs=3, use_gpu=device.type == "cuda")
    stepper = last_stage(config, CATALOGUE, settings, device.type)
    generator = torch.Generator().manual_seed(0)
    loader = Resident(chunks(BATCH * (STEPS + 2), CATALOGUE), Share(BATCH, 0))
    meter, shares = Meter(device, 1.0), []
    for number, item in enumerate(loader.epoch(0)):
        batches = [to_device(batch, device) for batch in item.batches]
        if number == 0:
            meter.rehearsed(stepper.rehearse(batches[0], generator), batches[0])
        rate = matmul_rate(device, precision)
        tokens = int((batches[0].items_BL != 0).sum())
        started = time.perf_counter()
        stepper.step(batches, generator, 1e-3, (False, False))
        wait_for(device)  # for the optimizer, which a step does not do
        seconds = time.perf_counter() - started
        if number >= 2:
            shares.append(meter.flops_per_token * tokens / seconds / rate)
    return statistics.median(shares)


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    gpu = torch.cuda.is_available()
    device, precision = torch.device("cuda" if gpu else "cpu"), "bf16" if gpu else "float32"
    figures = {}
    for width in (128, 512) if gpu else (128,):
        suffix = "" if width == 128 else f"_{width}"
        figures[f"matmul_share{suffix}"] = share_of_matmul(ADRecConfig(width=width, heads=4), device, precision)
        figures[f"sasrec_matmul_share{suffix}"] = share_of_matmul(SASRecConfig(width=width, heads=4), device, precision)
    report("train_step", figures)


if __name__ == "__main__":
    main()
