"""What exact retrieval costs beside the product that it cannot do without: 10,000 users, 100,000 items, D = 128.

`rank_ratio_to_matmul`, `topk_ratio_to_matmul` (K = 20; 50 seen items of each user removed, integer-valued vectors, so
that ties abound): over the bare matrix product of the same users and items in the same pieces, in turns.
`peak_memory_slope`: bytes that the peak grows by per item of catalogue beyond the table, 100,000 to 400,000.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch

from tests.benchmarks.harness import in_turns, report
from train.ranking import SCORES_AT_ONCE, target_ranks, top_k

USERS, ITEMS, WIDTH, SEEN, K = 10_000, 100_000, 128, 50, 20


def problem(users: int, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(u_B1D, e_VD, target_B, history_BH)."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randint(-3, 4, (users, 1, WIDTH), generator=generator, dtype=torch.float32)
    e = torch.randint(-3, 4, (items, WIDTH), generator=generator, dtype=torch.float32)
    target = torch.randint(2, items, (users,), generator=generator)
    return u, e, target, torch.randint(2, items, (users, SEEN), generator=generator)


def peak(items: int) -> int:
    """Bytes that a process of its own held at most while it ranked and listed 2,000 users."""
    call = f"from tests.benchmarks.retrieval import measure; measure({items})"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout))


def measure(items: int) -> None:
    """Print the peak, less the table."""
    u, e, target, seen = problem(2_000, items)
    with torch.inference_mode():
        target_ranks(u, e, target, seen)
        top_k(u, e, K, seen)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - e.nbytes)


def main() -> None:
    """One line of figures."""
    u, e, target, seen = problem(USERS, ITEMS)
    step = SCORES_AT_ONCE // ITEMS

    def matmul() -> None:
        room = torch.empty(step, ITEMS)
        for start in range(0, USERS, step):
            rows = u[start : start + step, 0]
            torch.mm(rows, e.T, out=room[: len(rows)])

    with torch.inference_mode():
        runs = {
            "matmul": matmul,
            "rank": lambda: target_ranks(u, e, target, seen),
            "topk": lambda: top_k(u, e, K, seen),
        }
        times = in_turns(runs, 5)
    report(
        "retrieval",
        {
            "matmul_seconds": times["matmul"],
            "rank_ratio_to_matmul": times["rank"] / times["matmul"],
            "topk_ratio_to_matmul": times["topk"] / times["matmul"],
            "peak_memory_slope": (peak(400_000) - peak(100_000)) / 300_000,
        },
    )


if __name__ == "__main__":
    main()
