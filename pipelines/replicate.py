"""Steers a replication: one model, trained and evaluated on a published leave-one-out split. No maths.

The same tables, loader, loop and evaluation as in any run; only where the rows come from is another matter. What is
finished stands in the workspace's ledger and is not done again; a run that was killed goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluate.settings import RetrievalSettings
from featurize.vocabularies import hash_of
from infra.config import Settings, parse
from infra.ledger import Published
from infra.tables import FIRST_INDEX, SEQUENCES
from pipelines import published_split, split_categories
from pipelines.progress import Progress
from pipelines.published_split import AS_OF, PublishedSplit
from pipelines.recipe import SequenceModelRun
from pipelines.workbench import Outputs, Replication, Workbench, figure, section, workbench
from train.settings import TrainingSettings

if TYPE_CHECKING:
    from evaluate.metrics.diversity import ItemCategories
    from evaluate.retrieval import RetrievalResult

SETTINGS = Path(__file__).resolve().parent / "recipes" / "replicate.yaml"
CANDIDATE_SETS = ("all_items", "history_removed")
LIST_METRICS = ("category_count", "intra_list_distance", "catalogue_coverage", "gini", "exposure_entropy")
"""Of lists of evaluation.list_length items, the history removed; the first two where categories are given."""
PROBE = "linear_probe"
"""Of the item table, where categories are given (evaluate/linear_probe.py)."""
VALID_METRIC = "ndcg_at_20"
"""What the loop selects by: NDCG@20 on the validation items, with the history removed."""


class Fit(Settings):
    """What of `training` follows from the size of the split, where it is not given."""

    batch_events: int = Field(ge=1)
    """Events to predict in a batch, about: training.batch_size = this over those of an average training row."""

    def fitted(self, training: TrainingSettings, rows: int, events: int) -> TrainingSettings:
        """`training` for so many training rows with so many events to predict.

        >>> Fit(batch_events=100).fitted(TrainingSettings(seed=1), rows=40, events=400).batch_size
        10
        """
        if "batch_size" in training.model_fields_set:
            return training
        workers = training.workers if rows >= training.max_workers else rows
        batch_size = min(rows, max(training.max_workers, round(self.batch_events * rows / max(1, events))))
        return training.model_copy(update={"batch_size": batch_size, "workers": workers})


class ReplicatedModel(SequenceModelRun):
    """A section of recipes/replicate.yaml: one model, how it is trained, and how it is scored."""

    evaluation: RetrievalSettings = RetrievalSettings()
    fit: Fit | None = None
    """Null: `training` as it stands."""

    def seeded(self, seed: int) -> ReplicatedModel:
        """With this seed (a valid one) of training, and of the noise at inference."""
        training, evaluation = (part.model_copy(update={"seed": seed}) for part in (self.training, self.evaluation))
        return self.model_copy(update={"training": training, "evaluation": evaluation})

    def for_split(self, split: PublishedSplit) -> ReplicatedModel:
        """With the training that `fit` comes to on this split."""
        if self.fit is None:
            return self
        rows, events = split.training_size(getattr(self.config, "max_length", None))
        return self.model_copy(update={"training": self.fit.fitted(self.training, rows, events)})

    @model_validator(mode="after")
    def _one_fresh_run(self) -> ReplicatedModel:
        given = {
            "name": self.name, "search": self.search, "evaluation.category_field": self.evaluation.category_field,
            "training.start": None if self.training.start == "fresh" else self.training.start,
        }  # fmt: skip
        if senseless := [setting for setting, value in given.items() if value is not None]:
            raise ValueError(f"{senseless[0]}: a replication is one fresh run on bare sequences; leave it out")
        own = getattr(self.config, "steps", None)
        if own is not None and (self.evaluation.steps or 0) > own:
            raise ValueError(f"evaluation.steps {self.evaluation.steps} exceeds the model's {own} steps")
        return self


def settings_of(model: str, overrides: Sequence[str] = (), seed: int | None = None) -> ReplicatedModel:
    """The section of a model with its overrides (`config.width=64`); `seed` is that of training and evaluation.

    Raises UsageError for a model without a section, ConfigError naming each wrong setting.
    """
    seeds = [] if seed is None else [f"{place}.seed={seed}" for place in ("training", "evaluation")]
    found = section(SETTINGS, model, [*overrides, *seeds])
    return parse(found, ReplicatedModel, where=f"{SETTINGS.name}: {model}")


def replicate(
    model: str,
    data: Path,
    settings: ReplicatedModel,
    workspace: Path | None,
    progress: Progress,
    categories: Path | None = None,
) -> Replication:
    """Train the model on the split in `data` unless `workspace` has it, and evaluate it on the test items.

    `categories`: a file with those of the items (pipelines.split_categories), for what is measured of lists.

    Without a workspace everything is made in a temporary folder, which is removed. Raises DataRefused for a split
    that cannot be used, TrainingError and EnvironmentProblem as training does, WorkspaceBusy when another command is
    at work in the workspace.
    """
    split = published_split.read(data)
    if categories is not None:
        split = split_categories.joined(split, categories)
    found = on_split(model, split, settings, workspace, progress)
    return replace(found, summary={"model": model, "data": str(data), **found.summary})


def on_split(
    model: str, split: PublishedSplit, settings: ReplicatedModel, workspace: Path | None, progress: Progress
) -> Replication:
    """As `replicate`, on a split that was read before; the summary names neither it nor the model.

    The workspace's artifact is a function of the split, the model and how it is trained: another evaluation in the
    same workspace finds it there and trains nothing.
    """
    settings = settings.for_split(split)
    with workbench(model, AS_OF, settings, workspace, progress) as bench:
        work = _Work(bench, settings, split)
        version = work.written().version(SEQUENCES.name)
        trained = work.trained(version)
        found = work.evaluated(version, trained)
    summary = _summary(settings, split, trained.report, found)
    order = {name: split.in_file_order(users) for name, users in found.users.items()}
    users = {name: users[order[name]] for name, users in found.users.items()}
    per_user = {name: values[order[name.partition("/")[0]]] for name, values in found.per_user.items()}
    return Replication(summary, found.metrics, users, per_user)


@dataclass(frozen=True)
class _Work:
    bench: Workbench
    settings: ReplicatedModel
    split: PublishedSplit

    def written(self) -> Published:
        """The split as a table, cut for this model."""
        length: int | None = getattr(self.settings.config, "max_length", None)
        inputs, config = {"split": self.split.digest}, {"max_length": length}

        def work(key: str) -> Outputs:
            version = published_split.write(self.bench.lake, self.split, length)
            return {SEQUENCES.name: version}, {"users": len(self.split.users), "items": self.split.items}

        return self.bench.publish("replicate:split", inputs, config, work)

    def trained(self, version: int) -> Published:
        """The artifact."""
        import pyarrow as pa

        from train.artifact import ITEM_FIELD

        vocabulary = self.split.vocabulary()
        field = pa.array([ITEM_FIELD] * len(vocabulary), pa.string())
        return self.bench.trained(
            {SEQUENCES.name: version}, hash_of(vocabulary), vocabulary.add_column(0, "field", field)
        )

    def evaluated(self, version: int, trained: Published) -> RetrievalResult:
        """Every time anew: it is what is asked for, and how long it takes is part of the answer."""
        from evaluate.retrieval import evaluate_retrieval

        artifact = self.bench.artifact(trained)
        catalogue = FIRST_INDEX + self.split.items
        settings, categories = self.settings.evaluation, self.split.categories
        found = evaluate_retrieval(artifact, self.bench.lake, version, AS_OF, settings, catalogue, categories)
        if categories is not None and not self.settings.config.counted:
            found.metrics[PROBE] = _probed(artifact, categories)
        return found


def _losses(entry: Mapping[str, float]) -> dict[str, float]:
    """Of a validation: its epoch, and the epoch's mean training loss, whole and by its terms without their weights."""
    return {name: value for name, value in entry.items() if name == "epoch" or name.startswith("loss")}


def _probed(artifact: Path, categories: ItemCategories) -> float:
    import torch

    from evaluate.linear_probe import linear_probe
    from train.artifact import load

    model: Any = load(artifact).model
    with torch.inference_mode():
        return linear_probe(model.item_table().numpy(), categories)


def _summary(
    settings: ReplicatedModel, split: PublishedSplit, report: Mapping[str, Any], found: RetrievalResult
) -> dict[str, Any]:
    from train.embedding_health import PREFIX

    metrics = found.metrics
    measured = [f"{metric}_at_{k}" for k in settings.evaluation.ks for metric in ("hr", "ndcg")]
    return {
        "seed": settings.training.seed,
        "users": len(split.users),
        "items": split.items,
        **{name: {m: figure(metrics[f"{name}/{m}"]) for m in measured} for name in CANDIDATE_SETS},
        "lists": {name: figure(metrics[name]) for name in LIST_METRICS if name in metrics},
        "table": {PROBE: figure(metrics[PROBE])} if PROBE in metrics else {},
        "train_seconds": report["seconds"],
        "score_seconds": metrics["users"] / metrics["users_per_second"],
        "peak_memory_bytes": report["peak_memory_bytes"],
        "valid": {VALID_METRIC: report["valid_metric"]},
        "best_epoch": report["best_epoch"],
        "embedding_health": {n.removeprefix(PREFIX): v for n, v in report.items() if n.startswith(PREFIX)},
        "epochs": report["epochs"],
        "losses": [_losses(entry) for entry in report.get("validations", [])],
        "config": settings.config.model_dump(mode="json"),
        "training": {**settings.training.model_dump(mode="json"), "workers": report["workers"]},  # those that trained
        "evaluation": settings.evaluation.model_dump(mode="json"),
    }


def show(summary: Mapping[str, Any]) -> None:
    """Print the table, and what it cost."""
    console = Console(highlight=False, soft_wrap=True)
    title = "{model} on {data}: {users:,} users, {items:,} items, seed {seed}".format(**summary)
    table = Table(
        "metric", *(name.replace("_", " ") for name in CANDIDATE_SETS), title=escape(title), title_justify="left"
    )
    for metric in summary[CANDIDATE_SETS[0]]:
        values = [summary[name][metric] for name in CANDIDATE_SETS]
        table.add_row(metric, *("-" if value is None else f"{value:.4f}" for value in values))
    console.print(table)
    lists = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in summary["lists"].items() if value is not None
    )
    console.print(f"Lists of {summary['evaluation']['list_length']}: {lists}", markup=False)
    for name, value in summary["table"].items():
        console.print(f"Item table: {name.replace('_', ' ')} {value:.4f}", markup=False)
    valid = ", ".join(f"{metric} {value:.4f}" for metric, value in summary["valid"].items())
    console.print(f"Validation: {valid} (epoch {summary['best_epoch']} of {summary['epochs']})", markup=False)
    peak = summary["peak_memory_bytes"] / 2**30
    console.print(
        f"Trained in {summary['train_seconds']:.1f} s, peak memory {peak:.2f} GiB; "
        f"all users scored in {summary['score_seconds']:.2f} s"
    )
