"""Exact full-catalogue evaluation of any sequence model: ranks first, everything else from them.

Two candidate sets with every figure (removing the history changes which model wins, peers.md B1):
`all_items`, and `history_removed`, under which a target that is itself in the history is left out and
counted. Padding and unknown are never candidates; a target whose item has no training event is a miss.

Shapes: N evaluated users, B users of a batch, K list length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.metrics.accuracy import mean, summarise
from evaluate.metrics.diversity import ItemCategories, catalogue_coverage, category_count, gini
from evaluate.settings import RetrievalSettings
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import FIRST_INDEX, UNKNOWN
from train.artifact import load
from train.loader import SequenceData
from train.protocol import SequenceBatch
from train.ranking import MISS, target_ranks, top_k

CANDIDATE_SETS = ("all_items", "history_removed")


@dataclass(frozen=True)
class RetrievalResult:
    """Per-user vectors under "set/metric", their users, means, and the lists behind the diversity figures."""

    users: dict[str, NDArray[np.object_]]
    per_user: dict[str, NDArray[np.float64]]
    metrics: dict[str, float]
    lists_NK: NDArray[np.int64]


def evaluate_retrieval(
    artifact: Path,
    lake: Lake,
    version: int,
    as_of: str,
    settings: RetrievalSettings,
    catalogue: int,
    categories: ItemCategories | None = None,
    split: str = "test",
) -> RetrievalResult:
    """Score the artifact on the targets of `split`; `catalogue` is today's number of item rows.

    A model trained on an older, smaller vocabulary sees items it does not know as unknown, and never
    retrieves them. Raises UsageError for a ranking artifact.
    """
    loaded = load(artifact)
    if loaded.kind != "sequence":
        raise UsageError(f"{artifact}: holds a {loaded.kind} model; retrieval needs a sequence model")
    data = SequenceData.from_lake(lake, version, as_of, split, getattr(loaded.config, "max_length", None))
    assert data.target_N is not None
    assert data.known_N is not None
    started = time.perf_counter()
    ranks, lists_NK = _score(loaded.model, data, settings)
    seconds = time.perf_counter() - started
    for ranks_N in ranks.values():
        ranks_N[~data.known_N] = MISS
    repeated_N = _target_in_history(data)
    users, per_user, metrics = {}, {}, {}
    for name in CANDIDATE_SETS:
        kept_N = ~repeated_N if name == "history_removed" else np.ones(len(data), bool)
        users[name] = data.user_N[kept_N]
        for metric, values in summarise(ranks[name][kept_N], settings.ks).items():
            per_user[f"{name}/{metric}"] = values
            metrics[f"{name}/{metric}"] = mean(values)
    metrics |= {
        "catalogue_coverage": catalogue_coverage(lists_NK, catalogue - FIRST_INDEX),
        "gini": gini(lists_NK, catalogue - FIRST_INDEX),
        "users": float(len(data)),
        "targets_in_history": float(repeated_N.sum()),
        "targets_unseen_share": float((~data.known_N).mean()),
        "users_per_second": len(data) / max(seconds, 1e-9),
    }
    if categories is not None:
        metrics["category_count"] = mean(category_count(lists_NK, categories))
    return RetrievalResult(users, per_user, metrics, lists_NK)


def _score(
    model: torch.nn.Module, data: SequenceData, settings: RetrievalSettings
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    generator = torch.Generator().manual_seed(settings.seed)
    ranks: dict[str, list[torch.Tensor]] = {name: [] for name in CANDIDATE_SETS}
    lists = []
    with torch.inference_mode():
        e_VD = model.item_table()  # type: ignore[operator]
        for start in range(0, len(data), settings.batch_size):
            rows_B = np.arange(start, min(start + settings.batch_size, len(data)))
            batch = within(data.batch(rows_B), len(e_VD))
            u_BRD = model.user_vectors(batch, settings.steps, generator)  # type: ignore[operator]
            target_B = torch.from_numpy(data.target_N[rows_B])  # type: ignore[index]
            history_BH = torch.from_numpy(data.histories(rows_B))
            ranks["all_items"].append(target_ranks(u_BRD, e_VD, target_B))
            ranks["history_removed"].append(target_ranks(u_BRD, e_VD, target_B, history_BH))
            lists.append(top_k(u_BRD, e_VD, settings.list_length, history_BH)[0])
    return {name: torch.cat(parts).numpy() for name, parts in ranks.items()}, torch.cat(lists).numpy()


def within(batch: SequenceBatch, catalogue: int) -> SequenceBatch:
    """The batch with every item beyond the model's table replaced by unknown."""
    items_BL = batch.items_BL
    return SequenceBatch(torch.where(items_BL < catalogue, items_BL, UNKNOWN), batch.targets_BL)


def _target_in_history(data: SequenceData) -> NDArray[np.bool_]:
    assert data.target_N is not None
    owner = np.repeat(np.arange(len(data)), data.items.lengths)
    found = np.zeros(len(data), bool)
    found[owner[data.items.values == data.target_N[owner]]] = True
    return found


def item_categories(lake: Lake, version: int, arrival: str, field: str, items: Sequence[str]) -> ItemCategories:
    """Category sets by item index; `items` are the vocabulary's keys from index FIRST_INDEX on.

    Read from the items' side features at `version`; an item without a row has no category. Raises
    UsageError when the field is not there.
    """
    table = lake.read("item_features", version, {"arrival": arrival})
    column = f"f_{field}"
    if column not in table.column_names:
        have = ", ".join(c[2:] for c in table.column_names if c.startswith("f_"))
        raise UsageError(f"evaluation.category_field: the items' side file has no field {field!r}; it has {have}")
    raw = dict(zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True))
    numbers: dict[str, int] = {}
    lists: list[list[int]] = [[] for _ in range(FIRST_INDEX)]
    for key in items:
        value = raw.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        lists.append([numbers.setdefault(str(v), len(numbers)) for v in values])
    return ItemCategories.from_lists(lists)
