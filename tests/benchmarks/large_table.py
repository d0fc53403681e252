"""A table of 10 million rows on two CPU ranks, against one of a million: `python -m tests.benchmarks.large_table`.

A step is a sampled softmax over shared negatives: u_B = W e[asked_B], logits ⟨u, e[answer]⟩ and ⟨u, e[negative]⟩,
each less log(K q) with q uniform. Steps of the two tables alternate, so that both meet the same machine.

Shapes: B examples of a rank, K negatives shared by all, D width.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from infra.tables import FIRST_INDEX
from tests.benchmarks.harness import report
from train.rowwise_adagrad import RowWiseAdagrad, clip_whole_gradient
from train.sharded import ShardedTable, sharded_tables

ROWS, SMALL, WIDTH, RANKS = 10_000_000, 1_000_000, 32, 2
BATCH, NEGATIVES = 256, 2048
WARM, STEPS = 10, 100


class Towers(nn.Module):
    """The loss of one step, its mean over B."""

    def __init__(self, rows: int, rank: int) -> None:
        super().__init__()
        self.items = ShardedTable(rows, WIDTH, rank, RANKS)
        self.user = nn.Linear(WIDTH, WIDTH)

    def forward(self, asked_B: Tensor, answer_B: Tensor, negative_K: Tensor) -> Tensor:
        """−log softmax of the answer among itself and the negatives."""
        e_ND = self.items(torch.cat([asked_B, answer_B, negative_K]))
        asked_BD, answer_BD, negative_KD = e_ND.split([len(asked_B), len(answer_B), len(negative_K)])
        u_BD = self.user(asked_BD)
        log_expected = math.log(len(negative_K) / (self.items.rows - FIRST_INDEX))
        own_B1 = (u_BD * answer_BD).sum(dim=1, keepdim=True)
        logits = torch.cat([own_B1, u_BD @ negative_KD.T], dim=1) - log_expected
        return F.cross_entropy(logits, torch.zeros(len(u_BD), dtype=torch.int64))


class Run:
    """A model with its optimizers and its stream of batches."""

    def __init__(self, rows: int, rank: int) -> None:
        self.model = Towers(rows, rank)
        names = list(sharded_tables(self.model))
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, names)
        self.wrapped = DistributedDataParallel(self.model)
        self.dense, self.shards = list(self.model.user.parameters()), [self.model.items.weight]
        self.optimizers = [torch.optim.AdamW(self.dense, lr=1e-3), RowWiseAdagrad(self.shards, lr=0.05)]
        self.own, self.shared = torch.Generator().manual_seed(1 + rank), torch.Generator().manual_seed(0)

    def step(self) -> float:
        """Seconds of one step."""
        rows = self.model.items.rows
        asked_B, answer_B = torch.randint(FIRST_INDEX, rows, (2, BATCH), generator=self.own)
        negative_K = torch.randint(FIRST_INDEX, rows, (NEGATIVES,), generator=self.shared)
        dist.barrier()
        started = time.perf_counter()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.wrapped(asked_B, answer_B, negative_K).backward()
        clip_whole_gradient(self.dense, self.shards, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return time.perf_counter() - started


@dataclass(frozen=True)
class Measured:
    """What a rank found."""

    peak_bytes: int
    """Beyond what the process had after steps with a table of 1,000 rows (torch loads much on first use)."""
    build_seconds: float
    step_seconds: float
    small_step_seconds: float


def measure(rank: int) -> Measured:
    """Train on the large table, then on both in turn."""
    tiny = Run(1000, rank)
    for _ in range(WARM):
        tiny.step()
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    large = Run(ROWS, rank)
    build_seconds = time.perf_counter() - started
    for _ in range(WARM):
        large.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    small = Run(SMALL, rank)
    for _ in range(WARM):
        small.step()
    times = [(large.step(), small.step()) for _ in range(STEPS)]
    large_seconds, small_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return Measured(peak, build_seconds, large_seconds, small_seconds)


def _rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(Path(folder) / "meet").as_uri(), rank=rank, world_size=RANKS)
    dist.barrier()
    measured = measure(rank)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(vars(measured)), encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(folder,), nprocs=RANKS)
        found = [Measured(**json.loads((Path(folder) / f"{r}.json").read_text("utf-8"))) for r in range(RANKS)]
    share = (ROWS * WIDTH * 4 + ROWS * 4) / RANKS
    step = max(m.step_seconds for m in found)
    report(
        "large_table",
        {
            "memory_over_share": max(m.peak_bytes for m in found) / share,
            "step_ratio": step / max(m.small_step_seconds for m in found),
            "steps_per_second": 1 / step,
            "examples_per_second": RANKS * BATCH / step,
            "megabytes_per_rank": max(m.peak_bytes for m in found) / 2**20,
            "build_seconds": max(m.build_seconds for m in found),
        },
    )


if __name__ == "__main__":
    main()
