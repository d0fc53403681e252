"""What a study may be of: sequence models on published splits, or ranking models on the samples of workspaces.

A kind says how its data are read, where the models' settings stand, how one model is measured, and what columns there
are. Nothing else of a study knows which kind it is of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluate.missingness import patterns, scenario
from pipelines import planted_samples, published_split, ranked, replicate
from pipelines.planted_samples import LoggedSamples
from pipelines.progress import Progress
from pipelines.published_split import PublishedSplit
from pipelines.ranked import AS_PLANTED, RankedModel
from pipelines.replicate import CANDIDATE_SETS, LIST_METRICS, PROBE, ReplicatedModel
from pipelines.workbench import Replication

KindName = Literal["sequences", "impressions"]
Model = ReplicatedModel | RankedModel
Subject = PublishedSplit | LoggedSamples
"""What is trained and tested on."""


@dataclass(frozen=True)
class Kind:
    """One of them."""

    sections: Path
    """The settings file whose sections are the models."""
    model: type[ReplicatedModel] | type[RankedModel]
    """A section."""
    seeds: tuple[str, ...]
    """Settings that are the plan's seed."""
    columns: tuple[str, ...]
    """What a table shows, unless it says so."""
    compared: tuple[str, ...]
    """What it tests, unless it says so."""
    shown: re.Pattern[str]
    """The columns that there are."""
    tested: re.Pattern[str]
    """Those with a value for each user."""
    selected_by: str
    """The column by which weights are selected."""
    protocol: tuple[str, ...]
    """How it is measured, in sentences for the page."""
    read: Callable[[Path], Any]
    """The subject in a folder."""
    about: Callable[[Any], str]
    """The subject in words."""
    sets: Callable[[Any, Any], set[str] | None]
    """(settings, subject): the sets ("set/metric") that are measured; None: all that `shown` knows."""
    on: Callable[[str, Any, Any, Path | None, Progress], Replication]
    """(label, subject, settings, workspace, progress): what is measured of a model."""

    def absent(self, columns: Sequence[str], settings: Model, subject: Subject) -> str | None:
        """What of the settings keeps a column from being measured, in words; None if all are."""
        measured = self.sets(settings, subject)
        for column in columns:
            if column == self.selected_by:
                continue
            cut = re.search(r"_at_([1-9][0-9]*)$", column)
            if cut and int(cut[1]) not in settings.evaluation.ks:
                return f"evaluation.ks has to hold {cut[1]}, which the table shows"
            if measured is not None and column.partition("/")[0] not in measured:
                return f"{column} is not measured on these samples; the sets are {', '.join(sorted(measured))}"
        return None


def _sample_sets(settings: RankedModel, samples: LoggedSamples) -> set[str]:
    found, asked = {AS_PLANTED, "valid"}, settings.evaluation.missingness
    if asked is None:
        return found
    tried = patterns(samples.data["test"], asked)
    found |= {*tried, *(scenario(pattern, rate) for pattern in tried for rate in asked.rates)}
    return found | ({f"without_{spec.name}" for spec in samples.specs} if asked.fields else set())


def _about_split(split: PublishedSplit) -> str:
    return f"{len(split.users):,} users, {split.items:,} items, file {split.digest}."


def _about_samples(samples: LoggedSamples) -> str:
    rows = ", ".join(f"{len(data):,} {split}" for split, data in samples.data.items())
    test = samples.data["test"]
    return (
        f"{rows} samples, {len(np.unique(test.user_N)):,} users tested, {100 * float(test.label_N.mean()):.1f} % "
        f"positive; fields {', '.join(spec.name for spec in samples.specs)}; samples {samples.digest}."
    )


_RANKED = rf"({'|'.join(CANDIDATE_SETS)})/(hr|ndcg)_at_([1-9][0-9]*)"
_VALID_NDCG = f"valid/{replicate.VALID_METRIC}"
_VALID_NAME = replicate.VALID_METRIC.replace("_at_", "@").upper()
_PATTERN = "(at_random|by_activity|by_day)"
_SCENARIO = rf"({AS_PLANTED}|{_PATTERN}_[1-9][0-9]?|without_[^/]+)"
_LISTED = "(hr|ndcg)_at_([1-9][0-9]*)"
_AREA = f"{_PATTERN}/(auc|uauc)_area"
_VALID_LOSS = f"valid/{ranked.VALID_METRIC}"
_BOTH = ("auc", "uauc")

KINDS: dict[KindName, Kind] = {
    "sequences": Kind(
        sections=replicate.SETTINGS,
        model=ReplicatedModel,
        seeds=("training.seed", "evaluation.seed"),
        columns=(*(f"{name}/{metric}_at_20" for name in CANDIDATE_SETS for metric in ("hr", "ndcg")), _VALID_NDCG),
        compared=tuple(f"{name}/ndcg_at_20" for name in CANDIDATE_SETS),
        shown=re.compile(rf"{_RANKED}|lists/({'|'.join(LIST_METRICS)})|table/{PROBE}|{_VALID_NDCG}"),
        tested=re.compile(rf"{_RANKED}|lists/(category_count|intra_list_distance)"),
        selected_by=_VALID_NDCG,
        protocol=(
            "Published leave-one-out splits, in their order: the last item of each user is tested, the one before it "
            "validated, the rest trained on.",
            "Every item of the catalogue is ranked, padding never; two sets of candidates: all items, and all but "
            "those of the user's history, where a target that is itself in the history leaves its user out.",
            f"Weights are selected on the validation items alone, by {_VALID_NAME} with the history removed, in "
            "training.validation_steps reverse steps; the test items decide nothing.",
        ),
        read=published_split.read,
        about=_about_split,
        sets=lambda settings, split: None,
        on=replicate.on_split,
    ),
    "impressions": Kind(
        sections=ranked.SETTINGS,
        model=RankedModel,
        seeds=("training.seed", "planting.seed", "evaluation.missingness.seed"),
        columns=(*(f"{AS_PLANTED}/{metric}" for metric in (*_BOTH, "log_loss")), _VALID_LOSS),
        compared=tuple(f"{AS_PLANTED}/{metric}" for metric in _BOTH),
        shown=re.compile(
            rf"{_SCENARIO}/(auc|uauc|log_loss|calibration_error|calibration_ratio|{_LISTED})|{_AREA}|{_VALID_LOSS}"
        ),
        tested=re.compile(rf"{AS_PLANTED}/{_LISTED}|{_SCENARIO}/(auc|uauc)|{_AREA}"),
        selected_by=_VALID_LOSS,
        protocol=(
            "Labelled samples of a workspace, in its splits. What `planting` takes away is missing in training, "
            "validation and test alike (as planted); what a scenario removes, in percent of the cells, is missing in "
            "the test samples alone.",
            "AUC is that of all test samples, UAUC the mean over users with both labels. An area is a curve's mean "
            "height from the samples as planted to the highest rate. An AUC is compared by its users' shares in it "
            "(DeLong's components, summed within users).",
            "Weights are selected on the validation samples alone, by log loss; the test samples decide nothing.",
        ),
        read=planted_samples.read,
        about=_about_samples,
        sets=_sample_sets,
        on=ranked.on_samples,
    ),
}  # fmt: skip
