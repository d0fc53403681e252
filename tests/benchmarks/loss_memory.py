"""Peak memory of the losses as the catalogue grows: `python -m tests.benchmarks.loss_memory`.

One forward and backward pass over a fixed batch, beyond the table, its gradient and its AdamW state: a process per
catalogue builds the table and the state, warms up on a small table and then resets the kernel's high-water mark.
The ratio is that of a million items to ten thousand (promise: at most 1.5). The sampled softmax's is below 1: its
logits are gone when the gradient of the table is made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from infra.tables import FIRST_INDEX
from tests.benchmarks.harness import report
from train.losses import catalogue_cross_entropy_sum
from train.sampled_softmax import Proposal, table_sampled_cross_entropy_sum

SMALL, LARGE = 10_000, 1_000_000
USERS, LENGTH, WIDTH, NEGATIVES = 64, 50, 64, 8192


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now or VmHWM at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def table_of(rows: int) -> torch.nn.Parameter:
    """Embeddings small enough for a softmax that is not one-hot."""
    return torch.nn.Parameter(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)) * 0.1)


def loss_of(name: str, rows: int) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The full or the sampled softmax of (x, table, targets), as (sum, count)."""
    if name == "full":
        return catalogue_cross_entropy_sum
    proposal, generator = Proposal(torch.ones(rows)), torch.Generator().manual_seed(0)
    return lambda x, e, t: table_sampled_cross_entropy_sum(
        x, partial(F.embedding, weight=e), t, proposal, NEGATIVES, generator
    )


def step(loss: Callable[..., tuple[Tensor, Tensor]], table: Tensor) -> None:
    """One forward and backward pass, after which only the table has a gradient."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(USERS, LENGTH, WIDTH, generator=g, requires_grad=True)
    total, count = loss(x, table, torch.randint(FIRST_INDEX, len(table), (USERS, LENGTH), generator=g))
    (total / count).backward()


def measure(name: str, rows: int) -> int:
    """Bytes of one step in this process, its gradient as far as it came to be resident left out."""
    table = table_of(rows)
    optimizer = torch.optim.AdamW([table])
    table.grad = torch.zeros_like(table)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    step(loss_of(name, 1000), table_of(1000))
    loss = loss_of(name, rows)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(loss, table)
    peak, after = resident("VmHWM"), resident("VmRSS")
    optimizer.zero_grad(set_to_none=True)
    gradient = after - resident("VmRSS")
    return peak - before - gradient


def in_a_process(name: str, rows: int) -> int:
    """`measure`, where nothing was allocated before and what is freed goes back to the system at once."""
    command = [sys.executable, "-m", "tests.benchmarks.loss_memory", "--measure", name, str(rows)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout)


def main() -> None:
    """Print the figures."""
    if "--measure" in sys.argv:
        print(measure(sys.argv[-2], int(sys.argv[-1])))
        return
    found = {(name, rows): in_a_process(name, rows) for name in ("full", "sampled") for rows in (SMALL, LARGE)}
    figures = {
        "memory_ratio": found["full", LARGE] / found["full", SMALL],
        "sampled_memory_ratio": found["sampled", LARGE] / found["sampled", SMALL],
    }
    for (name, rows), size in found.items():
        figures[f"{name}_megabytes_{rows}"] = size / 2**20
    report("loss_memory", figures)


if __name__ == "__main__":
    main()
