"""Validation during training: exact NDCG@20 for sequence models, log loss for ranking models.

Each rank scores its share of the split; the sums are reduced over the ranks.

Shapes: B batch, H history, R vectors per user, D width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX
from train.protocol import SequenceBatch, to_device
from train.randomness import seed_of
from train.ranking import ndcg_at, target_ranks
from train.ranking_data import RankingData
from train.ranks import sum_over_ranks
from train.sequence_data import SequenceData
from train.settings import TrainingSettings
from train.sharded import sharded_tables
from train.sharded_ranking import sharded_target_ranks

Data = SequenceData | RankingData
NDCG_CUTOFF = 20
METRICS = {"sequence": f"valid_ndcg_{NDCG_CUTOFF}", "ranking": "valid_log_loss"}
"""What a model of each kind is validated with."""
_VALIDATION = 3  # this file's random stream of a run's seed


def better(metric: str, value: float, than: float) -> bool:
    """Whether `value` improves on `than`: log loss falls, NDCG rises."""
    return value < than if metric.endswith("log_loss") else value > than


@torch.no_grad()
def validate(
    model: Any, data: Data, settings: TrainingSettings, rank: int, world: int, device: torch.device
) -> tuple[str, float]:
    """(name, value) over the whole split, each rank taking every `world`-th row.

    Sequence models: exact NDCG@20 over the catalogue without the user's history; users whose target is
    in their history are left out, a target unknown before the cut is a miss. Ranking models: log loss.
    With a sharded table all ranks go through as many batches, the last of which may be empty on some.
    """
    model.eval()
    size = max(1, settings.batch_size // world)
    mine = np.arange(rank, len(data), world)
    rows = -(-len(data) // world) if sharded_tables(model) else len(mine)
    generator = torch.Generator().manual_seed(seed_of(settings.seed, _VALIDATION, rank))
    own_steps = getattr(getattr(model, "config", None), "steps", None)
    steps = None if settings.validation_steps is None else min(settings.validation_steps, own_steps or 0)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, rows, size):
        rows_B = mine[start : start + size]
        batch: Any = to_device(data.batch(rows_B), device)  # type: ignore[type-var]
        if isinstance(data, SequenceData):
            value_B = _ndcg(model, data, rows_B, batch, steps, generator)
        else:
            value_B = F.binary_cross_entropy_with_logits(model.logits(batch), batch.label_B, reduction="none")
        total += torch.stack([value_B.double().sum(), total.new_tensor(len(value_B))])
    total = sum_over_ranks(total)
    if total[1] == 0:
        raise TrainingError("validation: every target is already in its user's history, nothing is left to measure")
    name = METRICS["sequence" if isinstance(data, SequenceData) else "ranking"]
    value = (total[0] / total[1]).item()
    if not math.isfinite(value):
        raise TrainingError(f"{name} is {value}: the model's scores are not finite; lower training.learning_rate")
    return name, value


def _ndcg(
    model: Any, data: SequenceData, rows_B: Any, batch: SequenceBatch, steps: int | None, generator: torch.Generator
) -> Tensor:
    assert data.target_N is not None
    assert data.known_N is not None
    device = batch.items_BL.device
    history_BH = torch.from_numpy(data.histories(rows_B)).to(device)
    target_B = torch.from_numpy(data.target_N[rows_B] * data.known_N[rows_B]).to(device)  # unknown: 0, a miss
    new_B = ~((history_BH == target_B[:, None]) & (target_B[:, None] >= FIRST_INDEX)).any(dim=1)
    u_BRD = model.user_vectors(batch, steps, generator)
    sharded = [*sharded_tables(model).values()]
    if sharded:
        rank_B = sharded_target_ranks(u_BRD, sharded[0], target_B, history_BH, candidates=model.candidates)
    else:
        rank_B = target_ranks(u_BRD, model.item_table(), target_B, history_BH)
    return ndcg_at(rank_B, NDCG_CUTOFF)[new_B]
