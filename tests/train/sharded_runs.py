"""Whole runs on sharded tables, for the tests to start on real ranks (tests.train.sharded_ranks.on_ranks).

Shapes: V rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from tests.train.tables import write_sequences
from tests.train.test_loop import CHUNKS, KilledError, job
from train import loop
from train.configs import ADRecConfig, DimeRecConfig, ModelConfig, SASRecConfig
from train.embedding_health import FIGURES, PREFIX
from train.job import Job, opened
from train.loop import Worker
from train.sampled_softmax import Proposal
from train.table_shard import dense_state

TOLD = ("loss", "valid_ndcg_20", *(PREFIX + name for name in FIGURES))
"""Of each epoch of a sequence model."""
TOLD_OF_RANKING = ("loss", "valid_log_loss")
CPU = torch.device("cpu")
CATALOGUE = 10
SHAPE = {"width": 8, "blocks": 1, "heads": 1, "max_length": 4, "negatives": CATALOGUE - 2}
SASREC = SASRecConfig(**SHAPE, dropout=0, embedding_dropout=0)
NOISY = SASRecConfig(**SHAPE, dropout=0.5)
ADREC = ADRecConfig(**SHAPE, denoiser_blocks=1, steps=4, dropout=0, embedding_dropout=0)
DIMEREC = DimeRecConfig(
    width=8, max_length=4, negatives=CATALOGUE - 2, interests=2, hidden=8, steps=4, dropout=0, embedding_dropout=0,
)  # fmt: skip
#: Nine, so that the first of two ranks has two batches of four, and the second one.
TARGETS = [([2 + (i + j) % 8 for j in range(i % 4)], 2 + (i + 5) % 8, True) for i in range(9)]


def sharded_job(root: Path, model: ModelConfig = SASREC, run: str = "run", **settings) -> Job:
    """A run of four epochs of three steps."""
    if not (root / "sequences").exists():
        write_sequences(root, CHUNKS, TARGETS)
    return job(root, model, run, **{"sharded": True, **settings})


@contextmanager
def whole_catalogue() -> Iterator[None]:
    """Every item is a negative once and equally likely, which makes the sampled softmax the full one."""
    everything = patch.object(Proposal, "draw", lambda self, k, generator: torch.arange(2, CATALOGUE))
    uniform = patch.object(loop, "counted", lambda predicted, catalogue: torch.zeros(catalogue))
    with everything, uniform:
        yield


def trained(rank: int, world: int, what: Job, kill_after: int = 0) -> dict[str, Tensor]:
    """One rank's run; its shard after every epoch, losses, validations, what is left at its end."""
    told: list[dict] = []
    tables: list[Tensor] = []

    def report(metrics, path):
        told.append(metrics)
        tables.append(worker.shard.table.weight.detach().clone())
        if len(told) == kill_after:
            raise KilledError

    with opened(what, rank, world) as splits:
        worker = Worker(what, splits, rank, world, CPU)
        try:
            worker.run(report)
        except KilledError:
            assert kill_after
    left = {**dense_state(worker.model), **worker.shard.state(with_best=True)}
    names = TOLD_OF_RANKING if what.model.kind == "ranking" else TOLD
    figures = {name: torch.tensor([m[name] for m in told], dtype=torch.float64) for name in names}
    return {**left, **figures, "tables": torch.stack(tables) if tables else torch.empty(0)}


def several(rank: int, world: int, folder: Path, runs: Sequence[tuple[str, bool, Job, int]]) -> dict[str, Tensor]:
    """Runs one after the other; each as (name, over the whole catalogue, job, killed after)."""
    found = {}
    for name, whole, what, kill_after in runs:
        if whole:
            with whole_catalogue():
                answer = trained(rank, world, what, kill_after)
        else:
            answer = trained(rank, world, what, kill_after)
        found |= {f"{name}/{key}": value.clone() for key, value in answer.items()}
    return found
