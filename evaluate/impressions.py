"""Evaluation of any ranking model on labelled impressions: AUC, per-user AUC, log loss.

Shapes: N impressions, B impressions of a batch, F categorical fields, K values of a multi-valued field.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.metrics.accuracy import mean
from evaluate.metrics.binary import auc, log_loss, uauc, user_auc
from evaluate.settings import ImpressionSettings
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import UNKNOWN, Kind
from train.artifact import Loaded, load
from train.protocol import FieldSpec, RankingBatch
from train.ranking_data import RankingData


@dataclass(frozen=True)
class ImpressionResult:
    """AUC of each user that has both classes, aligned with `users`, and the figures over all impressions.

    metrics["users"] counts the users that have both classes, metrics["uauc"] is the mean of theirs. Where negatives
    were sampled, all of it is over the observed rows alone, so that no gate passes on labels nobody gave; "sampled_auc"
    and "sampled_uauc" are over all rows.
    """

    users: NDArray[np.generic]
    user_auc: NDArray[np.float64]
    metrics: dict[str, float]


def evaluate_impressions(
    artifact: Path,
    lake: Lake,
    version: int,
    fields_version: int,
    as_of: str,
    settings: ImpressionSettings,
    split: str = "test",
) -> ImpressionResult:
    """Score the artifact on the impressions of `split`.

    A model trained on older vocabularies sees the values it does not know as unknown. Raises UsageError
    for a sequence artifact or one with other fields.
    """
    loaded = load(artifact)
    if loaded.kind != "ranking":
        raise UsageError(f"{artifact}: holds a {loaded.kind} model; impressions need a ranking model")
    data = RankingData.from_lake(lake, version, fields_version, as_of, split)
    _require_fields(artifact, loaded.fields, data.fields)
    started = time.perf_counter()
    probability_N = _score(loaded, data, settings)
    seconds = time.perf_counter() - started
    label_N, score_N, user_N = (a[data.observed_N] for a in (data.label_N, probability_N, data.user_N))
    users, per_user = user_auc(label_N, score_N, user_N)
    both_classes = ~np.isnan(per_user)  # a user with a single class has no AUC
    users, per_user = users[both_classes], per_user[both_classes]
    metrics = {
        "auc": auc(label_N, score_N),
        "uauc": mean(per_user),
        "log_loss": log_loss(label_N, score_N),
        "impressions": float(len(label_N)),
        "users": float(len(users)),
        "positive_share": float(label_N.mean()),
        "impressions_per_second": len(data) / max(seconds, 1e-9),
    }
    if not data.observed_N.all():
        metrics["sampled_auc"] = auc(data.label_N, probability_N)
        metrics["sampled_uauc"] = uauc(data.label_N, probability_N, data.user_N)[0]
    return ImpressionResult(users, per_user, metrics)


def _score(loaded: Loaded, data: RankingData, settings: ImpressionSettings) -> NDArray[np.float64]:
    out = []
    with torch.inference_mode():
        for start in range(0, len(data), settings.batch_size):
            batch = within(data.batch(np.arange(start, min(start + settings.batch_size, len(data)))), loaded)
            logits_B = loaded.model.logits(batch)  # type: ignore[operator]
            # In float32 all logits above 17 would tie at 1.
            out.append(torch.sigmoid(logits_B.double()))
    return torch.cat(out).numpy()


def _require_fields(artifact: Path, trained: Sequence[FieldSpec], today: Sequence[FieldSpec]) -> None:
    """Same names and kinds in the same order; sizes may differ."""
    theirs, ours = ([f"{f.name} ({f.kind})" for f in fields] for fields in (trained, today))
    if theirs != ours:
        raise UsageError(
            f"{artifact}: was trained on the fields {', '.join(theirs)}; today's samples have {', '.join(ours)}: "
            "train it again under today's contract"
        )


def within(batch: RankingBatch, loaded: Loaded) -> RankingBatch:
    """The batch with every index beyond the model's tables replaced by unknown."""
    categorical = [f.size for f in loaded.fields if f.kind is Kind.CATEGORICAL]
    multi = [f.size for f in loaded.fields if f.kind is Kind.MULTI]
    limit_F = torch.tensor(categorical, dtype=torch.int64)
    return RankingBatch(
        categorical_BF=torch.where(batch.categorical_BF < limit_F, batch.categorical_BF, UNKNOWN),
        numeric_BG=batch.numeric_BG,
        multi=tuple(torch.where(m < size, m, UNKNOWN) for m, size in zip(batch.multi, multi, strict=True)),
        missing_BN=batch.missing_BN,
        label_B=batch.label_B,
    )
