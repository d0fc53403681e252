"""What a run does with its machine: examples and tokens per second, waiting for data, memory, matmul share.

The matmul share is the model's FLOPs per second over what the same device reaches on one large matrix product,
measured once at the start. FLOPs are counted by torch on one batch of each stage, per token.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from train.protocol import SequenceBatch

T = TypeVar("T")
_SIZE = {"cpu": 1024, "cuda": 8192}


def matmul_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square matrix product in the run's precision: the best of several."""
    size = _SIZE.get(device.type, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


class Meter:
    """Counts over one epoch, or what of it this attempt has seen."""

    def __init__(self, device: torch.device, rate: float) -> None:
        self.device, self.rate = device, rate
        self.tokens = self.places = self.steps = 0
        self.waited = 0.0
        self.flops_per_token = 0.0
        self.started = time.perf_counter()

    def restart(self) -> None:
        """Begin an epoch; what is known of the FLOPs stays."""
        self.tokens = self.places = self.steps = 0
        self.waited, self.started = 0.0, time.perf_counter()

    def waiting(self, source: Iterator[T]) -> Iterator[T]:
        """The same values; the time until each comes counts as waiting for data."""
        while True:
            started = time.perf_counter()
            value = next(source, None)
            self.waited += time.perf_counter() - started
            if value is None:
                return
            yield value

    def count(self, batches: list[Any]) -> None:
        """Add a step's batches, still on the CPU."""
        for batch in batches:
            real, places = _tokens(batch)
            self.tokens += real
            self.places += places
        self.steps += 1

    def rehearsed(self, flops: int, batch: Any) -> None:
        """Note what a forward and backward pass of a batch took."""
        tokens, _ = _tokens(batch)
        self.flops_per_token = flops / tokens if tokens else 0.0

    def figures(self, world: int, rows: float) -> dict[str, float]:
        """Of this rank since the epoch began; `rows` a step, tokens of all ranks, which carry about the same."""
        seconds = time.perf_counter() - self.started
        figures = {
            "examples_per_second": rows * self.steps / seconds,
            "tokens_per_second": self.tokens * world / seconds,
            "padding_efficiency": self.tokens / max(1, self.places),
            "data_wait_share": self.waited / seconds,
            "peak_memory_gb": peak_memory(self.device) / 2**30,
        }
        if self.flops_per_token:
            figures["matmul_share"] = self.flops_per_token * self.tokens / seconds / self.rate
        return figures


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that this process has held since it began, in memory; on a GPU, of the GPU's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _tokens(batch: Any) -> tuple[int, int]:
    """(events, places for them) of a sequence batch; rows of a ranking batch, which has no padding."""
    if isinstance(batch, SequenceBatch):
        return int((batch.items_BL != 0).sum()), batch.items_BL.numel()
    return len(batch.label_B), len(batch.label_B)


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
