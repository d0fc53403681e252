"""Evaluation of any ranking model on labelled impressions: how well it separates, ranks and says what it knows, also
with more fields missing than the log misses.

Shapes: N impressions, B impressions of a batch, U users, F categorical fields, K values of a multi-valued field.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate import slices
from evaluate.metrics.accuracy import mean
from evaluate.metrics.binary import auc, auc_by_user, log_loss, uauc, user_auc
from evaluate.metrics.calibration import calibration_error, calibration_ratio
from evaluate.metrics.impression_lists import list_metrics
from evaluate.missingness import area, patterns, scenario, scenarios
from evaluate.settings import ImpressionSettings
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import UNKNOWN, Kind
from train.artifact import Loaded, load
from train.protocol import FieldSpec, RankingBatch
from train.ranking_data import RankingData

Floats = NDArray[np.float64]
BY_USER = ("auc", "uauc")
"""What has a value for each user at every rate, and an area under its curve."""


@dataclass(frozen=True)
class ImpressionResult:
    """AUC of each user that has both classes, aligned with `users`, and the figures over all impressions.

    metrics["users"] counts the users that have both classes, metrics["uauc"] is the mean of theirs. Where negatives
    were sampled, all of it is over the observed rows alone, so that no gate passes on labels nobody gave; "sampled_auc"
    and "sampled_uauc" are over all rows. What takes both classes is NaN without: of a user AUC, HR and NDCG, of all
    rows AUC and calibration. With `missingness` the same figures stand under each scenario's name ("at_random_30/auc",
    "without_price/auc"), and under the pattern's the area under AUC and UAUC from the log as it is to the highest rate
    ("at_random/auc_area").
    """

    users: NDArray[np.generic]
    user_auc: Floats
    metrics: dict[str, float]
    everybody: NDArray[np.generic]
    """All users of the observed rows."""
    per_user: dict[str, Floats]
    """By the names in `metrics`, aligned with `everybody`; NaN for a user without a value. The mean of the others is
    the metric: of "auc" as `auc_by_user` has it."""
    slices: dict[str, tuple[NDArray[np.generic], Floats]]
    """By name: the users that have both classes among the slice's observed rows, and their AUC on these."""


def evaluate_impressions(
    artifact: Path,
    lake: Lake,
    version: int,
    fields_version: int,
    as_of: str,
    settings: ImpressionSettings,
    split: str = "test",
    names: Mapping[str, Mapping[int, str]] | None = None,
) -> ImpressionResult:
    """Score the artifact on the impressions of `split`; `names`: values by index, of the fields of `settings.slices`.

    A model trained on older vocabularies sees the values it does not know as unknown. Raises UsageError
    for a sequence artifact or one with other fields.
    """
    loaded = load(artifact)
    if loaded.kind != "ranking":
        raise UsageError(f"{artifact}: holds a {loaded.kind} model; impressions need a ranking model")
    data = RankingData.from_lake(lake, version, fields_version, as_of, split)
    require_fields(artifact, loaded.fields, data.fields)
    # Users as numbers: what groups by them is measured for many scenarios, and strings are slow to compare.
    user_names, user_N = np.unique(data.user_N.astype(str), return_inverse=True)
    data = replace(data, user_N=user_N)
    started = time.perf_counter()
    probability_N = _score(loaded, data, settings)
    seconds = time.perf_counter() - started
    users, metrics, per_user = _measured(data, probability_N, settings)
    everybody, own = user_names[users].astype(object), per_user["uauc"]
    both_classes = ~np.isnan(own)  # a user with a single class has no AUC
    metrics |= {
        "impressions": float(data.observed_N.sum()),
        "users": float(both_classes.sum()),
        "positive_share": float(data.label_N[data.observed_N].mean()),
        "impressions_per_second": len(data) / max(seconds, 1e-9),
    }
    _with_less(loaded, data, settings, metrics, per_user)
    parts = {}
    for label, (users_S, auc_S) in _by_slice(data, probability_N, settings.slices, names or {}).items():
        if len(users_S):
            parts[label] = (user_names[users_S].astype(object), auc_S)
    return ImpressionResult(everybody[both_classes], own[both_classes], metrics, everybody, per_user, parts)


def _by_slice(
    data: RankingData, probability_N: Floats, fields: Sequence[str], names: Mapping[str, Mapping[int, str]]
) -> dict[str, tuple[NDArray[np.generic], Floats]]:
    """(users, AUC) of each slice of the observed rows; users with one class there are left out."""
    label_N, score_N, user_N = (a[data.observed_N] for a in (data.label_N, probability_N, data.user_N))
    count_U = np.bincount(user_N) if len(user_N) else np.zeros(0, np.int64)
    masks = {label: mask_U[user_N] for label, mask_U in slices.by_activity(count_U).items()}
    for name in fields:
        values = [v for v, told in zip(data.values(name, names.get(name, {})), data.observed_N, strict=True) if told]
        masks |= slices.by_values(name, values)
    found = {}
    for label, mask_N in masks.items():
        users, auc_U = user_auc(label_N[mask_N], score_N[mask_N], user_N[mask_N])
        found[label] = (users[~np.isnan(auc_U)], auc_U[~np.isnan(auc_U)])
    return found


def _measured(
    data: RankingData, probability_N: Floats, settings: ImpressionSettings
) -> tuple[NDArray[np.generic], dict[str, float], dict[str, Floats]]:
    """(users, figures, values per user) of the observed rows."""
    label_N, score_N, user_N = (a[data.observed_N] for a in (data.label_N, probability_N, data.user_N))
    everybody, own_U = user_auc(label_N, score_N, user_N)
    lists = list_metrics(label_N, score_N, user_N, settings.ks, settings.metrics)[1]
    per_user = {
        "auc": auc_by_user(label_N, score_N, user_N)[1],
        "uauc": own_U,
        # Of a user without a negative every list is perfect, whatever the model.
        **{name: np.where(np.isnan(own_U), np.nan, value_U) for name, value_U in lists.items()},
    }
    both = 0 < label_N.sum() < len(label_N)
    metrics = {
        **{name: mean(value_U[~np.isnan(value_U)]) for name, value_U in per_user.items()},
        "auc": auc(label_N, score_N),  # to the last bit, which the mean is not
        "log_loss": log_loss(label_N, score_N),
        "calibration_ratio": calibration_ratio(label_N, score_N) if both else float("nan"),
        "calibration_error": calibration_error(label_N, score_N) if both else float("nan"),
    }
    if not data.observed_N.all():
        metrics["sampled_auc"] = auc(data.label_N, probability_N)
        metrics["sampled_uauc"] = uauc(data.label_N, probability_N, data.user_N)[0]
    return everybody, metrics, per_user


def _with_less(
    loaded: Loaded,
    data: RankingData,
    settings: ImpressionSettings,
    metrics: dict[str, float],
    per_user: dict[str, Floats],
) -> None:
    """Adds every scenario's figures, and the areas."""
    asked = settings.missingness
    if asked is None:
        return
    for name, missing_N in scenarios(data, asked):
        less = replace(data, missing_N=missing_N)
        _, figures, values = _measured(less, _score(loaded, less, settings), settings)
        metrics |= {f"{name}/{metric}": figure for metric, figure in figures.items()}
        per_user |= {f"{name}/{metric}": values[metric] for metric in BY_USER}
    rates = np.array([0.0, *asked.rates])
    for pattern in patterns(data, asked):
        for metric in BY_USER:
            names = [metric, *(f"{scenario(pattern, rate)}/{metric}" for rate in asked.rates)]
            metrics[f"{pattern}/{metric}_area"] = float(area(rates, np.array([metrics[name] for name in names])))
            per_user[f"{pattern}/{metric}_area"] = area(rates, np.stack([per_user[name] for name in names]))


def _score(loaded: Loaded, data: RankingData, settings: ImpressionSettings) -> Floats:
    out = []
    with torch.inference_mode():
        for start in range(0, len(data), settings.batch_size):
            batch = within(data.batch(np.arange(start, min(start + settings.batch_size, len(data)))), loaded)
            logits_B = loaded.model.logits(batch)  # type: ignore[operator]
            # In float32 all logits above 17 would tie at 1.
            out.append(torch.sigmoid(logits_B.double()))
    found: Floats = torch.cat(out).numpy()
    return found


def require_fields(artifact: Path, trained: Sequence[FieldSpec], today: Sequence[FieldSpec]) -> None:
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
