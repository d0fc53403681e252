"""A recipe: everything that one daily run is a function of, validated before its first stage.

Paths are relative to the working directory, except `contract`, which is relative to the recipe file.
Nothing here imports torch, ray, pyspark or mlflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from evaluate.decision.gate import GatePolicy
from evaluate.settings import ImpressionSettings, RetrievalSettings, ScoringSettings, TrackingSettings
from featurize.contract import Contract
from featurize.settings import SampleSettings, SequenceSettings, VocabularySettings
from featurize.user_keys import PseudonymSettings
from infra.cluster import RaySettings
from infra.config import Settings, load
from infra.errors import ConfigError
from infra.spark import SparkSettings
from train.configs import ModelConfig, RankingConfig, SequenceConfig
from train.settings import TrainingSettings, sharding_problem
from train.space import SearchSettings, described, put


class _ModelRun(Settings):
    """One model and how it is trained."""

    name: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Its name in this recipe; the architecture's if left out."""
    config: ModelConfig
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings | None = None
    """Which of its settings to choose by validation, and from what; null = as they stand."""

    @model_validator(mode="after")
    def _a_table_it_can_share(self) -> Self:
        if problem := sharding_problem(self.config, self.training):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _a_search_it_can_have(self) -> Self:
        if self.search is None:
            return self
        if self.config.counted:
            raise ValueError(f"search: {self.config.model} has nothing to search; leave it out")
        if self.search.parallel > 1 and self.training.min_workers != self.training.max_workers:
            raise ValueError(
                f"search.parallel {self.search.parallel}: the trials would take each other's room; give "
                f"training.workers as one number"
            )
        for values in (*self.search.corners(), *self.search.drawn()):
            tried = self.with_values(values)
            if (first := self.search.epochs_first) is not None and first >= tried.training.epochs:
                raise ValueError(f"search.epochs_first {first} is not below training.epochs {tried.training.epochs}")
        return self

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """The run with other values of some settings, and no search; ValueError names what it does not accept."""
        sections = put({"config": self.config.model_dump(), "training": self.training.model_dump()}, values)
        try:
            return type(self).model_validate({"name": self.name, **sections})
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(str(part) for part in wrong["loc"])
            told = ["search.space", described(values), *([place] if place else []), wrong["msg"]]
            raise ValueError(": ".join(told)) from None

    @property
    def tried(self) -> list[Self]:
        """Every run that may be what is published: itself, or one for each trial of its search."""
        return [self.with_values(values) for values in self.search.drawn()] if self.search else [self]

    @property
    def label(self) -> str:
        """The name to show."""
        return self.name or self.config.model


class SequenceModelRun(_ModelRun):
    """One sequence model and how it is trained."""

    config: SequenceConfig

    @model_validator(mode="after")
    def _an_epoch_for_every_stage(self) -> SequenceModelRun:
        stages = getattr(self.config, "stage_count", 1)
        if self.training.epochs < stages:
            raise ValueError(
                f"training.epochs {self.training.epochs} is less than the model's {stages} stages; raise it"
            )
        if self.config.counted and self.training.start == "champion":
            raise ValueError(f"training.start: {self.config.model} is counted and continues nothing; leave it at fresh")
        return self


class RankingModelRun(_ModelRun):
    """One ranking model and how it is trained."""

    config: RankingConfig


class RetrievalGate(GatePolicy):
    """The gate of the retrieval champion."""

    metric: str = "history_removed/ndcg_at_20"
    """Candidate set and metric."""


class RankingGate(GatePolicy):
    """The gate of the ranking champion."""

    metric: Literal["uauc"] = "uauc"
    """Per-user AUC: the ranking figure that exists for every user."""
    floors: dict[str, float] = Field({"uauc": 0.5})
    """As of every gate; of the AUC one half is chance."""


class Retrieval(Settings):
    """The retrieval champion's candidate, what it is compared with, and what it must show."""

    candidate: SequenceModelRun
    baselines: tuple[SequenceModelRun, ...] = ()
    evaluation: RetrievalSettings = RetrievalSettings()
    gate: RetrievalGate = RetrievalGate()

    @model_validator(mode="after")
    def _consistent(self) -> Retrieval:
        _distinct(self.candidate, self.baselines, self.gate)
        measured = [f"{m}_at_{k}" for m in self.evaluation.metrics for k in self.evaluation.ks] + ["mrr"]
        known = [f"{s}/{m}" for s in ("history_removed", "all_items") for m in measured]
        if self.gate.metric not in known:
            raise ValueError(f"gate.metric {self.gate.metric!r} is not measured; choose one of {', '.join(known)}")
        known += ["catalogue_coverage", "gini", "exposure_entropy", "novelty", "head_share", "embedding_distance"]
        known += ["category_count", "intra_list_distance"] if self.evaluation.category_field is not None else []
        if odd := sorted(set(self.gate.floors) - set(known)):
            raise ValueError(f"gate.floors: {odd[0]} is not measured; choose of {', '.join(known)}")
        for run in (r for given in (self.candidate, *self.baselines) for r in given.tried):
            own = getattr(run.config, "steps", None)
            if own is not None and (self.evaluation.steps or 0) > own:
                raise ValueError(f"evaluation.steps {self.evaluation.steps} exceeds the {own} steps of {run.label}")
        return self


class Ranking(Settings):
    """The ranking champion's candidate, what it is compared with, and what it must show."""

    candidate: RankingModelRun
    baselines: tuple[RankingModelRun, ...] = ()
    evaluation: ImpressionSettings = ImpressionSettings()
    gate: RankingGate = RankingGate()

    @model_validator(mode="after")
    def _names(self) -> Ranking:
        _distinct(self.candidate, self.baselines, self.gate)
        return self


class Recipe(Settings):
    """One daily run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Registered models are called NAME.retrieval and NAME.ranking."""
    data: Path
    """Folder of the raw logs."""
    contract: Path
    """The contract that describes them, relative to this file."""
    workspace: Path
    """Folder of everything the pipeline writes: lake, artifacts, checkpoints, reports, MLflow's SQLite file."""
    spark: SparkSettings = SparkSettings()
    ray: RaySettings = RaySettings()
    tracking: TrackingSettings = TrackingSettings()
    pseudonyms: PseudonymSettings = PseudonymSettings()
    vocabularies: VocabularySettings = VocabularySettings()
    sequences: SequenceSettings = SequenceSettings()
    samples: SampleSettings = SampleSettings()
    retrieval: Retrieval | None = None
    """null: no sequence model."""
    ranking: Ranking | None = None
    """null: no ranking model."""
    scoring: ScoringSettings = ScoringSettings()

    @model_validator(mode="after")
    def _something_to_do(self) -> Recipe:
        if self.retrieval is None and self.ranking is None:
            raise ValueError("retrieval and ranking are both null; ask for at least one")
        return self


def _distinct(
    candidate: SequenceModelRun | RankingModelRun,
    baselines: Sequence[SequenceModelRun | RankingModelRun],
    gate: GatePolicy,
) -> None:
    names = [candidate.label, *(b.label for b in baselines)]
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"two models are called {', '.join(repeated)}; give each a `name` of its own")
    if unknown := sorted(set(gate.floor_baselines) - set(names[1:])):
        raise ValueError(f"gate.floor_baselines names {', '.join(unknown)}, which is no baseline here")


def open_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Contract]:
    """The recipe with its overrides, and its contract; ConfigError names file and field."""
    recipe = load(path, Recipe, overrides)
    contract = load(Path(path).parent / recipe.contract, Contract)
    _check_together(recipe, contract, path)
    return recipe, contract


def _check_together(recipe: Recipe, contract: Contract, path: str | Path) -> None:
    if recipe.ranking is not None and recipe.samples.history and "history" in {f.name for f in contract.fields}:
        raise ConfigError(
            f"{path}: samples.history: adds a field 'history', and the contract {contract.name!r} has one of that "
            "name; rename the contract's field or set samples.history: 0"
        )
    sides = [f.name for source in ("users", "items") for f in contract.fields_from(source)]
    of_samples = [f.name for f in contract.fields] + (["history"] if recipe.samples.history else [])
    for role, section, have in (
        ("retrieval", recipe.retrieval, sides),
        ("ranking", recipe.ranking, of_samples),
    ):
        asked = section.evaluation.slices if section is not None else ()
        if odd := [name for name in asked if name not in have]:
            raise ConfigError(
                f"{path}: {role}.evaluation.slices: {odd[0]!r} is no field here; there are {', '.join(have) or 'none'}"
            )
    if recipe.retrieval is not None:
        field = recipe.retrieval.evaluation.category_field
        have = [f.name for f in contract.fields_from("items")]
        if field is not None and field not in have:
            raise ConfigError(
                f"{path}: retrieval.evaluation.category_field: {field!r} is no field of the items' side file; "
                f"it has {', '.join(have) or 'none'}"
            )
