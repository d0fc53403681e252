"""What DimeRec's reverse process costs beside its own MLP: 10,000 users, D = 64, T = 32.

`ratio_to_mlp`: user vectors from histories of 20 events (lookup, interests, 32 steps with noise, the sphere) over 32
bare passes of an MLP of the same shape, which is told its input whole, guidance and step included. `ratio_of_steps`:
the same without lookup and interests. `ratio_to_part`: the steps over 32 passes of an MLP that is told x_t alone, since
the rest of the first layer is worked out once. Medians of runs in turns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.benchmarks.harness import in_turns, report
from train.configs import DimeRecConfig
from train.models.dimerec import _USERS_AT_ONCE, DimeRec
from train.protocol import SequenceBatch

USERS, EVENTS, CATALOGUE, WIDTH, STEPS = 10_000, 20, 5_000, 64, 32
REPETITIONS = 5


def mlp(wide: int, hidden: int) -> nn.Module:
    """Bare."""
    return nn.Sequential(nn.Linear(wide, hidden), nn.SiLU(), nn.Linear(hidden, WIDTH)).eval()


def passes(network: nn.Module, wide: int) -> Callable[[], None]:
    """T passes on rows that are there."""
    x = torch.randn(USERS, wide)

    def run() -> None:
        for _ in range(STEPS):
            network(x)

    return run


def main() -> None:
    """One line of figures."""
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    config = DimeRecConfig(width=WIDTH, steps=STEPS, temperature=0.1)
    model = DimeRec(config, CATALOGUE).eval()
    items_BL = torch.randint(2, CATALOGUE, (USERS, EVENTS))
    batch, whole = SequenceBatch.left_padded(items_BL), (2 + config.interests) * WIDTH
    known_BH = torch.randn(USERS, config.hidden)

    def steps() -> None:
        generator = torch.Generator().manual_seed(1)
        for known in known_BH.split(_USERS_AT_ONCE):
            model._sampled(known, None, generator)

    runs: dict[str, Callable[[], object]] = {
        "all": lambda: model.user_vectors(batch, None, torch.Generator().manual_seed(1)),
        "steps": steps,
        "mlp": passes(mlp(whole, config.hidden), whole),
        "part": passes(mlp(WIDTH, config.hidden), WIDTH),
    }
    with torch.inference_mode():
        seconds = in_turns(runs, REPETITIONS)
    figures = {
        "ratio_to_mlp": seconds["all"] / seconds["mlp"],
        "ratio_of_steps": seconds["steps"] / seconds["mlp"],
        "ratio_to_part": seconds["steps"] / seconds["part"],
        "users_per_second": USERS / seconds["all"],
    }
    report("dimerec_sampling", figures)


if __name__ == "__main__":
    main()
