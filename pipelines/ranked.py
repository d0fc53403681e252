"""Steers a replication of a ranking model: trained and evaluated on a workspace's samples, cells taken away or not.

The counterpart of pipelines.replicate, which has sequence models on published splits. No maths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluate.settings import ImpressionSettings, MissingnessSettings
from infra.config import parse
from infra.tables import FIELDS
from pipelines import planted_samples
from pipelines.planted_samples import LoggedSamples, Planting
from pipelines.progress import Progress
from pipelines.recipe import RankingModelRun
from pipelines.workbench import Outputs, Replication, figure, section, workbench

if TYPE_CHECKING:
    from evaluate.impressions import ImpressionResult

SETTINGS = Path(__file__).resolve().parent / "recipes" / "ranked.yaml"
AS_PLANTED = "as_planted"
"""The figures with no more removed than `planting` has taken; other sets are scenarios (evaluate/missingness.py)."""
VALID_METRIC = "log_loss"


class RankedModel(RankingModelRun):
    """A section of recipes/ranked.yaml: one model, how it is trained and scored, and on what is left of the samples."""

    evaluation: ImpressionSettings = ImpressionSettings(missingness=MissingnessSettings())
    planting: Planting = Planting()

    def seeded(self, seed: int) -> RankedModel:
        """With this seed of training, planting and, if any, scenarios."""
        training, planting = (part.model_copy(update={"seed": seed}) for part in (self.training, self.planting))
        asked = self.evaluation.missingness
        missingness = None if asked is None else asked.model_copy(update={"seed": seed})
        evaluation = self.evaluation.model_copy(update={"missingness": missingness})
        return self.model_copy(update={"training": training, "planting": planting, "evaluation": evaluation})

    @model_validator(mode="after")
    def _one_fresh_run(self) -> RankedModel:
        given = {
            "name": self.name, "search": self.search,
            "training.start": None if self.training.start == "fresh" else self.training.start,
        }  # fmt: skip
        if senseless := [setting for setting, value in given.items() if value is not None]:
            raise ValueError(f"{senseless[0]}: a replication is one fresh run; leave it out")
        return self


def settings_of(model: str, overrides: Sequence[str] = (), seed: int | None = None) -> RankedModel:
    """The section of a model with its overrides (`planting.rate=0.3`); `seed`: of training, planting and scenarios.

    Raises UsageError for a model without a section, ConfigError naming each wrong setting.
    """
    settings = parse(section(SETTINGS, model, overrides), RankedModel, where=f"{SETTINGS.name}: {model}")
    return settings if seed is None else settings.seeded(seed)


def replicate(model: str, data: Path, settings: RankedModel, workspace: Path | None, progress: Progress) -> Replication:
    """Train the model on the newest samples of the workspace in `data`, unless `workspace` has it, and evaluate it.

    Raises UsageError where there are no samples, DataRefused where a split is empty, TrainingError and
    EnvironmentProblem as training does, WorkspaceBusy when another command is at work in `workspace`.
    """
    found = on_samples(model, planted_samples.read(data), settings, workspace, progress)
    return replace(found, summary={"model": model, "data": str(data), **found.summary})


def on_samples(
    model: str, logged: LoggedSamples, settings: RankedModel, workspace: Path | None, progress: Progress
) -> Replication:
    """As `replicate`, on samples that were read before; the summary names neither them nor the model."""
    from evaluate.impressions import evaluate_impressions

    planting = settings.planting

    with workbench(model, logged.as_of, settings, workspace, progress) as bench:

        def work(key: str) -> Outputs:
            report = {"samples": {split: len(rows) for split, rows in logged.splits.items()}}
            return planted_samples.write(bench.lake, logged, planting), report

        inputs = {"samples": logged.digest}
        written = bench.publish("replicate:samples", inputs, planting.model_dump(mode="json"), work)
        versions = {name: written.version(name) for name in ("samples", FIELDS.name)}
        trained = bench.trained(versions, "", None)
        found = evaluate_impressions(
            bench.artifact(trained), bench.lake, versions["samples"], versions[FIELDS.name], logged.as_of,
            settings.evaluation,
        )  # fmt: skip
    metrics = {_full(name): value for name, value in found.metrics.items()}
    per_user = {_full(name): values for name, values in found.per_user.items()}
    users = {name.partition("/")[0]: found.everybody for name in per_user}
    return Replication(_summary(settings, logged, trained.report, found, metrics), metrics, users, per_user)


def _full(name: str) -> str:
    """A figure's name as "set/metric"."""
    return name if "/" in name else f"{AS_PLANTED}/{name}"


def _summary(
    settings: RankedModel, logged: LoggedSamples, report: Mapping[str, Any], found: ImpressionResult,
    metrics: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    sets: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        of, _, metric = name.partition("/")
        sets.setdefault(of, {})[metric] = figure(value)
    rows = len(logged.splits["test"])
    return {
        "seed": settings.training.seed,
        "users": len(found.everybody),
        "samples": {split: len(of) for split, of in logged.splits.items()},
        **sets,
        "train_seconds": report["seconds"],
        "score_seconds": rows / found.metrics["impressions_per_second"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "valid": {VALID_METRIC: report["valid_metric"]},
        "best_epoch": report["best_epoch"],
        "epochs": report["epochs"],
        "config": settings.config.model_dump(mode="json"),
        "training": {**settings.training.model_dump(mode="json"), "workers": report["workers"]},  # those that trained
        "planting": settings.planting.model_dump(mode="json"),
        "evaluation": settings.evaluation.model_dump(mode="json"),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Print a line for every set of figures, and what it cost."""
    console = Console(highlight=False, soft_wrap=True)
    planting = summary["planting"]
    taken = f"{100 * planting['rate']:g} % of cells taken, {planting['pattern']}" if planting["rate"] else "all cells"
    title = "{model} on {data}: {users:,} users, seed {seed}, ".format(**summary) + taken
    shown = ("auc", "uauc", "log_loss", "calibration_error")
    table = Table("", *(name.replace("_", " ") for name in shown), title=escape(title), title_justify="left")
    for name, figures in summary.items():
        if isinstance(figures, dict) and "auc" in figures:
            table.add_row(name, *(_shown(figures[metric]) for metric in shown))
    console.print(table)
    for name, figures in summary.items():
        if isinstance(figures, dict) and "auc_area" in figures:
            areas = _shown(figures["auc_area"]), _shown(figures["uauc_area"])
            console.print("{}: area under AUC {}, UAUC {}".format(name, *areas))
    console.print(
        f"Validation: log loss {summary['valid'][VALID_METRIC]:.4f} (epoch {summary['best_epoch']} of "
        f"{summary['epochs']}). Trained in {summary['train_seconds']:.1f} s"
    )


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
