"""Exact full-catalogue evaluation of any sequence model: ranks first, everything else from them.

Two candidate sets with every figure (removing the history changes which model wins):
`all_items`, and `history_removed`, under which a target that is itself in the history is left out and
counted. Padding and unknown are never candidates; a target whose item has no training event is a miss.

Shapes: N evaluated users, B users of a batch, L padded length, H longest history, R vectors per user,
D width, V catalogue rows, K list length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.metrics.accuracy import mean, summarise
from evaluate.metrics.diversity import (
    ItemCategories,
    catalogue_coverage,
    category_count,
    exposure_entropy,
    gini,
    intra_list_distance,
)
from evaluate.settings import RetrievalSettings
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import FIRST_INDEX, UNKNOWN
from train.artifact import Loaded, load
from train.protocol import SequenceBatch
from train.ragged import Ragged
from train.ranking import MISS, target_ranks, top_k, user_vectors
from train.sequence_data import SequenceData

CANDIDATE_SETS = ("all_items", "history_removed")
LISTS = "lists"


@dataclass(frozen=True)
class RetrievalResult:
    """Users by candidate set, vectors under "set/metric" aligned with them, means, and the lists (N, K).

    The lists are drawn with the history removed, for everybody; 0 is an empty slot. What is measured of each list,
    given categories, stands under "lists/metric".
    """

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
    retrieves them; one trained on a newer, larger vocabulary retrieves today's items only.

    The noise of a diffusion model comes from one generator, batch after batch: the same seed and the same
    batch size give the same figures, another batch size gives other draws. All models of a comparison
    share both. Models without noise do not depend on the batch size.

    Raises UsageError for a ranking artifact or a split without targets.
    """
    loaded = load(artifact)
    if loaded.kind != "sequence":
        raise UsageError(f"{artifact}: holds a {loaded.kind} model; retrieval needs a sequence model")
    data = SequenceData.from_lake(lake, version, as_of, split, getattr(loaded.config, "max_length", None))
    if data.target_N is None or data.known_N is None:
        raise UsageError(f"split {split!r}: has no targets to rank; evaluate valid or test")
    started = time.perf_counter()
    ranks, lists_NK = _score(loaded, data, data.target_N, catalogue, settings)
    seconds = time.perf_counter() - started
    for ranks_N in ranks.values():
        ranks_N[~data.known_N] = MISS
    repeated_N = _target_in_history(data.next_items, data.target_N)
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
        "exposure_entropy": exposure_entropy(lists_NK, catalogue - FIRST_INDEX),
        "users": float(len(data)),
        "targets_in_history": float(repeated_N.sum()),
        "targets_unseen_share": float((~data.known_N).mean()),
        "users_per_second": len(data) / max(seconds, 1e-9),
    }
    if categories is not None:
        users[LISTS] = data.user_N
        for name, measure in {"category_count": category_count, "intra_list_distance": intra_list_distance}.items():
            per_user[f"{LISTS}/{name}"] = measure(lists_NK, categories).astype(np.float64)
            metrics[name] = mean(per_user[f"{LISTS}/{name}"])
    return RetrievalResult(users, per_user, metrics, lists_NK)


def _score(
    loaded: Loaded, data: SequenceData, target_N: NDArray[np.int64], catalogue: int, settings: RetrievalSettings
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """(ranks (N,) per candidate set, lists (N, K) with the history removed)."""
    generator = torch.Generator().manual_seed(settings.seed)
    ranks: dict[str, list[torch.Tensor]] = {name: [] for name in CANDIDATE_SETS}
    lists = []
    with torch.inference_mode():
        model: Any = loaded.model
        if hasattr(model, "diffusion"):
            model.diffusion.stop_after = settings.stop_after
        own_VD, known = model.item_table(), loaded.catalogue
        assert known is not None
        e_VD = None if own_VD is None else own_VD[:catalogue]
        for start in range(0, len(data), settings.batch_size):
            rows_B = np.arange(start, min(start + settings.batch_size, len(data)))
            batch = within(data.batch(rows_B), known)
            u_BRD = user_vectors(model, batch, settings.steps, generator, settings.draws)
            u_BRD = u_BRD[..., :catalogue] if e_VD is None else u_BRD  # without a table they are the scores
            target_B = torch.from_numpy(target_N[rows_B])
            history_BH = torch.from_numpy(data.histories(rows_B))
            ranks["all_items"].append(target_ranks(u_BRD, e_VD, target_B))
            ranks["history_removed"].append(target_ranks(u_BRD, e_VD, target_B, history_BH))
            lists.append(top_k(u_BRD, e_VD, settings.list_length, history_BH)[0])
    return {name: torch.cat(parts).numpy() for name, parts in ranks.items()}, torch.cat(lists).numpy()


def within(batch: SequenceBatch, catalogue: int) -> SequenceBatch:
    """The batch with every item beyond the model's table replaced by unknown."""
    items_BL = batch.items_BL
    return replace(batch, items_BL=torch.where(items_BL < catalogue, items_BL, UNKNOWN))


def _target_in_history(items: Ragged, target_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,): the target stands in the user's whole history. Two unknown items are not the same item."""
    owner = np.repeat(np.arange(len(target_N)), items.lengths)
    found_N = np.zeros(len(target_N), bool)
    found_N[owner[items.values == target_N[owner]]] = True
    return found_N & (target_N >= FIRST_INDEX)


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
