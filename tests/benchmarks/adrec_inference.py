"""What reading the history once saves at inference: ADRec's user vectors beside the straightforward method, T = 32.

Straightforward: every position through the denoiser at every step, as published code does (tests.train.models
.straightforward). `speedup`: dense histories of 50 events. `speedup_real_lengths`: lengths as in shared/data/adrec-baby
beside the same histories padded to 50. `max_abs_difference`: of the vectors, over both. `step_over_token`: what one
more reverse step costs, with its noise and all, over a token's share of one pass of the denoiser through dense
histories; `step_over_lone_token`: over a token that reads no history.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tests.benchmarks.chunks import LONGEST, chunks
from tests.benchmarks.harness import report, seconds
from tests.train.models import straightforward
from train.configs import ADRecConfig
from train.models.adrec import ADRec
from train.protocol import SequenceBatch

CATALOGUE = 4_733
"""Of adrec-baby, with padding and unknown."""
USERS = 512
REPETITIONS = 2


def dense(users: int) -> SequenceBatch:
    """Histories of 50 events each."""
    items_BL = torch.randint(2, CATALOGUE, (users, LONGEST), generator=torch.Generator().manual_seed(1))
    return SequenceBatch.left_padded(items_BL)


def as_in_logs(users: int) -> SequenceBatch:
    """Histories as long as in adrec-baby, padded to 50."""
    data = chunks(users, CATALOGUE)
    items_BL = torch.zeros(users, LONGEST, dtype=torch.int64)
    for row in range(users):
        items = torch.from_numpy(data.items.values[data.items.offsets[row] : data.items.offsets[row + 1]].copy())
        items_BL[row, -min(len(items), LONGEST) :] = items[-LONGEST:]
    return SequenceBatch.left_padded(items_BL)


def beside(model: ADRec, batch: SequenceBatch) -> tuple[float, float]:
    """(ratio of times, largest difference), the two methods alternating."""

    def timed(method: Callable[..., Tensor], *before: ADRec) -> tuple[float, Tensor]:
        started = time.perf_counter()
        u_B1D = method(*before, batch, None, torch.Generator().manual_seed(2))
        return time.perf_counter() - started, u_B1D

    ratios, difference = [], 0.0
    for repetition in range(REPETITIONS + 1):
        ours, own_B1D = timed(model.user_vectors)
        theirs, other_B1D = timed(straightforward.user_vectors, model)
        difference = max(difference, (own_B1D - other_B1D).abs().max().item())
        if repetition:
            ratios.append(theirs / ours)
    return statistics.median(ratios), difference


def step_over_token(model: ADRec, batch: SequenceBatch) -> tuple[float, float]:
    """(time of 32 steps - time of 2) / 30, over (a 50th of the denoiser's pass over 50 tokens, one of 1 token)."""

    def spent(steps: int) -> float:
        return seconds(lambda: model.user_vectors(batch, steps, torch.Generator().manual_seed(2)), REPETITIONS)

    def share(shown: SequenceBatch) -> float:
        visible, x_BLD = model._visible(shown), model.items(shown.items_BL)
        return seconds(lambda: model.adm(x_BLD, visible), 5 * REPETITIONS) / shown.items_BL.shape[1]

    step = (spent(32) - spent(2)) / 30
    return step / share(batch), step / share(SequenceBatch.left_padded(batch.items_BL[:, -1:]))


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    config = ADRecConfig(width=128, heads=4, noise_scale=1.0, denoiser_start="random")
    model = straightforward.stir(ADRec(config, CATALOGUE), 0.02).eval()
    with torch.inference_mode():
        speedup, difference = beside(model, dense(USERS))
        real, other = beside(model, as_in_logs(USERS))
        of_pass, alone = step_over_token(model, dense(USERS))
    figures = {
        "speedup": speedup,
        "speedup_real_lengths": real,
        "max_abs_difference": max(difference, other),
        "step_over_token": of_pass,
        "step_over_lone_token": alone,
    }
    report("adrec_inference", figures)


if __name__ == "__main__":
    main()
