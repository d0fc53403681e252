"""Exact full-catalogue evaluation of any sequence model: ranks first, everything else from them.

Two candidate sets with every figure (removing the history changes which model wins):
`all_items`, and `history_removed`, under which a target that is itself in the history is left out and
counted. Padding and unknown are never candidates; a target whose item has no training event is a miss.

Shapes: N evaluated users, B users of a batch, L padded length, H longest history, R vectors per user,
D width, V catalogue rows, K list length.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate import slices
from evaluate.list_figures import Lists, list_figures
from evaluate.metrics.accuracy import mean, summarise
from evaluate.metrics.diversity import ItemCategories
from evaluate.metrics.popularity import head, serendipity
from evaluate.settings import COMMON, RetrievalSettings
from evaluate.slices import FieldValues, Masks
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import FIRST_INDEX, UNKNOWN
from train.artifact import Loaded, load
from train.protocol import SequenceBatch
from train.ragged import Ragged
from train.ranking import MISS, target_ranks, top_k, user_vectors
from train.sequence_data import TRAINING_COLUMNS, SequenceData, shown_and_predicted

ALL, REMOVED = "all_items", "history_removed"
CANDIDATE_SETS = (ALL, REMOVED)
LISTS = "lists"
DEVIATION = "noise_deviation"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class RetrievalResult:
    """Users by candidate set, vectors under "set/metric" aligned with them, means, and the lists (N, K).

    The lists are drawn with the history removed, for everybody; 0 is an empty slot. What is measured of each list
    stands under "lists/metric". `slices` are masks over all users, `kept` says which of them a set has.
    """

    users: dict[str, NDArray[np.object_]]
    per_user: dict[str, Floats]
    metrics: dict[str, float]
    lists_NK: Ints
    slices: Masks = field(default_factory=dict)
    kept: Mapping[str, Bools] = field(default_factory=dict)

    def by_slice(self, metric: str) -> dict[str, tuple[NDArray[np.object_], Floats]]:
        """(users, values) of each slice that has any of the users of the metric's set."""
        name = metric.split("/")[0]
        inside = {label: mask_N[self.kept[name]] for label, mask_N in self.slices.items()}
        return {
            label: (self.users[name][mask], self.per_user[metric][mask]) for label, mask in inside.items() if mask.any()
        }


def evaluate_retrieval(
    artifact: Path,
    lake: Lake,
    version: int,
    as_of: str,
    settings: RetrievalSettings,
    catalogue: int,
    categories: ItemCategories | None = None,
    split: str = "test",
    fields: FieldValues | None = None,
    common: int | None = None,
) -> RetrievalResult:
    """Score the artifact on the targets of `split`; `catalogue` is today's number of item rows.

    A model trained on an older, smaller vocabulary sees items it does not know as unknown, and never
    retrieves them; one trained on a newer, larger vocabulary retrieves today's items only. With `common`, the rows of
    the smaller of two vocabularies, both are also measured where neither has an advantage, as a third candidate set:
    the history removed, those rows alone as candidates, and users whose target is among them.

    The noise of a diffusion model comes from one generator, batch after batch: the same seed and the same
    batch size give the same figures, another batch size gives other draws. All models of a comparison
    share both. Models without noise do not depend on the batch size. With several `noise_seeds` a user's value is the
    mean over them, "set/metric/noise_deviation" the standard deviation of the means, and lists are the first seed's.

    `fields`: what slices by the values of fields are made of. Raises UsageError for a ranking artifact or a split
    without targets.
    """
    loaded = load(artifact)
    if loaded.kind != "sequence":
        raise UsageError(f"{artifact}: holds a {loaded.kind} model; retrieval needs a sequence model")
    data = SequenceData.from_lake(lake, version, as_of, split, getattr(loaded.config, "max_length", None))
    if data.target_N is None or data.known_N is None:
        raise UsageError(f"split {split!r}: has no targets to rank; evaluate valid or test")
    repeated_N = _target_in_history(data.next_items, data.target_N)
    kept = {ALL: np.ones(len(data), bool), REMOVED: ~repeated_N}
    if common is not None:
        kept[COMMON] = ~repeated_N & (data.target_N < common)
    counts_V = training_counts(lake, version, as_of, catalogue)
    runs, lists_NK, seconds = [], None, 0.0
    for seed in range(settings.seed, settings.seed + (settings.noise_seeds if _has_noise(loaded) else 1)):
        started = time.perf_counter()
        ranks, drawn_NK = _score(loaded, data, data.target_N, catalogue, settings, seed, common)
        seconds += time.perf_counter() - started
        lists_NK = drawn_NK if lists_NK is None else lists_NK
        runs.append(_accuracy(ranks, data, kept, counts_V, settings))
    assert lists_NK is not None
    per_user = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
    metrics = {name: mean(value_N) for name, value_N in per_user.items()}
    if len(runs) > 1:
        metrics |= {f"{name}/{DEVIATION}": float(np.std([mean(r[name]) for r in runs], ddof=1)) for name in per_user}
    model: Any = loaded.model
    table, known = model.item_table(), loaded.catalogue
    assert known is not None
    e_VD = None if table is None else table.detach().float().numpy()
    made = Lists(lists_NK, data.next_items, catalogue, known, counts_V, e_VD, categories)
    figures, of_lists = list_figures(made)
    metrics |= {
        **figures,
        "users": float(len(data)),
        "targets_in_history": float(repeated_N.sum()),
        "targets_unseen_share": float((~data.known_N).mean()),
        "users_per_second": len(runs) * len(data) / max(seconds, 1e-9),
    }
    per_user |= {f"{LISTS}/{name}": value_N for name, value_N in of_lists.items()}
    users = {name: data.user_N[kept_N] for name, kept_N in kept.items()} | {LISTS: data.user_N}
    return RetrievalResult(users, per_user, metrics, lists_NK, _slices(data, counts_V, fields), kept)


def _has_noise(loaded: Loaded) -> bool:
    return hasattr(loaded.model, "diffusion")


def _accuracy(
    ranks: Mapping[str, Ints], data: SequenceData, kept: Mapping[str, Bools], counts_V: Ints,
    settings: RetrievalSettings,
) -> dict[str, Floats]:  # fmt: skip
    """Vectors by "set/metric" of the users of each set."""
    assert data.known_N is not None
    assert data.target_N is not None
    found: dict[str, Floats] = {}
    for name, kept_N in kept.items():
        ranks_N = np.where(data.known_N, ranks[name], MISS)[kept_N]
        vectors = summarise(ranks_N, settings.ks, settings.metrics)
        if counts_V.any():
            k = settings.list_length
            vectors[f"serendipity_at_{k}"] = serendipity(ranks_N, data.target_N[kept_N], counts_V, k)
        found |= {f"{name}/{metric}": values for metric, values in vectors.items()}
    return found


def _slices(data: SequenceData, counts_V: Ints, fields: FieldValues | None) -> Masks:
    assert data.known_N is not None
    assert data.target_N is not None
    had_T = np.concatenate([[0], np.cumsum(data.next_items.values > 0)])
    length_N = had_T[data.next_items.offsets[1:]] - had_T[data.next_items.offsets[:-1]]
    found = slices.by_history(length_N) | slices.by_activity(length_N)
    if counts_V.any():
        inside_N = data.target_N < len(counts_V)
        target_N = np.where(inside_N, data.target_N, 0)
        found |= slices.by_target(counts_V[target_N], head(counts_V)[target_N], data.known_N)
    return found if fields is None else found | fields.masks(data.user_N, data.target_N)


def training_counts(lake: Lake, version: int, as_of: str, catalogue: int) -> Ints:
    """(V,) events of each item in the training chunks, of target types; 0 for padding and unknown."""
    table = lake.read("sequences", version, {"as_of": as_of, "split": "train"}, TRAINING_COLUMNS)
    items = shown_and_predicted(table)[1].values
    counts_V = np.bincount(items[items < catalogue], minlength=catalogue).astype(np.int64)
    counts_V[:FIRST_INDEX] = 0
    return counts_V


def _score(
    loaded: Loaded, data: SequenceData, target_N: Ints, catalogue: int, settings: RetrievalSettings, seed: int,
    common: int | None,
) -> tuple[dict[str, Ints], Ints]:  # fmt: skip
    """(ranks (N,) per candidate set, lists (N, K) with the history removed)."""
    generator = torch.Generator().manual_seed(seed)
    ranks: dict[str, list[torch.Tensor]] = {name: [] for name in (*CANDIDATE_SETS, *([COMMON] if common else []))}
    lists = []
    with torch.inference_mode():
        model: Any = loaded.model
        if _has_noise(loaded):
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
            ranks[ALL].append(target_ranks(u_BRD, e_VD, target_B))
            ranks[REMOVED].append(target_ranks(u_BRD, e_VD, target_B, history_BH))
            if common:
                u_BRC, e_CD = (u_BRD[..., :common], None) if e_VD is None else (u_BRD, e_VD[:common])
                ranks[COMMON].append(target_ranks(u_BRC, e_CD, target_B, history_BH))
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
