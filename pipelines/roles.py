"""The two champions of a recipe, retrieval and ranking, behind one face.

Everything after the data stages (train, evaluate, register, promote) is written once over this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from evaluate.decision.gate import GatePolicy
from featurize.contract import Contract
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import FIRST_INDEX, ITEMS
from pipelines.data import Data
from pipelines.recipe import RankingModelRun, Recipe, SequenceModelRun
from pipelines.slice_fields import side_fields, value_names

ModelRun = SequenceModelRun | RankingModelRun


@dataclass(frozen=True)
class Scores:
    """What one model did today: means by name, and per-user values of the gate's metric."""

    metrics: Mapping[str, float]
    users: NDArray[Any]
    per_user: NDArray[np.float64]
    slices: Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]]
    """(users, values) of the same metric, by name."""


@dataclass(frozen=True)
class Role:
    """One champion: its candidate, baselines and policy, and the tables it is trained and scored on."""

    name: str
    candidate: ModelRun
    baselines: tuple[ModelRun, ...]
    gate: GatePolicy
    settings: Any
    tables: tuple[str, ...]

    @property
    def models(self) -> tuple[ModelRun, ...]:
        """Baselines first, so that the candidate is trained last."""
        return (*self.baselines, self.candidate)

    def scored_on(self, data: Data) -> dict[str, object]:
        """What the figures of two models have to have in common."""
        settings = self.settings.model_dump(mode="json")
        return {**self.versions(data), "split": "test", "run date": data.day, "evaluation": settings}

    def versions(self, data: Data) -> dict[str, int]:
        """Pinned versions of the tables that training and evaluation read."""
        return {t: data.versions[t] for t in self.tables}

    def score(
        self, artifact: Path, lake: Lake, contract: Contract, data: Data, items: Sequence[str],
        common: int | None = None,
    ) -> Scores:  # fmt: skip
        """Evaluate an artifact on today's test split; `items` are today's item keys in index order, `common` the rows
        that are also compared alone (retrieval).

        Raises UsageError for a model of another vocabulary: indices would mean other items to it.
        """
        require_vocabulary(artifact, items)
        if self.name == "retrieval":
            from evaluate.retrieval import evaluate_retrieval, item_categories

            field, categories = self.settings.category_field, None
            if field is not None:
                version = data.versions["item_features"]
                arrival = _snapshot(lake, version, data.arrivals[-1])
                categories = item_categories(lake, version, arrival, field, items)
            fields = side_fields(lake, contract, data, items, self.settings.slices)
            found = evaluate_retrieval(
                artifact, lake, data.versions["sequences"], data.day, self.settings, FIRST_INDEX + len(items),
                categories, fields=fields, common=common,
            )  # fmt: skip
            metric = self.gate.metric
            return Scores(
                found.metrics, found.users[metric.split("/")[0]], found.per_user[metric], found.by_slice(metric)
            )
        from evaluate.impressions import evaluate_impressions

        version, specs = data.versions["samples"], data.versions["fields"]
        names = value_names(lake, data, self.settings.slices)
        result = evaluate_impressions(artifact, lake, version, specs, data.day, self.settings, names=names)
        return Scores(result.metrics, result.users, result.user_auc, result.slices)


def roles(recipe: Recipe) -> list[Role]:
    """The roles that the recipe asks for."""
    out = []
    if (r := recipe.retrieval) is not None:
        out.append(Role("retrieval", r.candidate, r.baselines, r.gate, r.evaluation, ("sequences", ITEMS.name)))
    if (k := recipe.ranking) is not None:
        out.append(Role("ranking", k.candidate, k.baselines, k.gate, k.evaluation, ("samples", "fields")))
    return out


def require_vocabulary(artifact: Path, items: Sequence[str]) -> None:
    """Vocabularies only grow, so the model's has to be the beginning of today's."""
    from featurize.vocabularies import hash_of
    from train.artifact import item_vocabulary

    known, count = item_vocabulary(artifact)
    today = pa.table(
        {
            "index": pa.array(range(FIRST_INDEX, FIRST_INDEX + len(items)), pa.int32()),
            "key": pa.array(items, pa.string()),
        }
    )
    if count > len(items) or hash_of(today.slice(0, count)) != known:
        raise UsageError(
            f"{artifact}: was trained on another item vocabulary than today's (hash {known}, {count} items): "
            "its indices mean other items; train it again in this workspace"
        )


def _snapshot(lake: Lake, version: int, as_of: str) -> str:
    from featurize.vocabularies import side_partition

    return side_partition(lake, "item_features", version, as_of)["arrival"]
