"""Steers a study: every cell of a plan that is not measured yet, then the page. No maths.

A cell is one model trained with one seed on some data, evaluated in one way. It is published when its folder has its
name; whatever was killed before is done again by the next run, training from its last checkpoint. Seeds are the outer
loop, so a study that is stopped early has every row once rather than one row often. Two studies may work in one
folder: a training that the other is at is passed over.

    DIR/cells/KEY        what was measured (pipelines.study_cells)
    DIR/work/TRAINING    workspace of one training: artifact, checkpoints; may be removed once its cells are there
    DIR/study.html, DIR/study.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Printed

from evaluate.publish.numerals import places
from evaluate.publish.report import write_text
from evaluate.publish.study_page import Study, column_name, render
from infra.errors import ConfigError, TrainingError, UsageError, WorkspaceBusy
from pipelines import split_categories
from pipelines.progress import Progress
from pipelines.study_cells import Cells
from pipelines.study_kinds import KINDS, Kind, Subject
from pipelines.study_plan import Cell, StudyPlan, read, resolve, selected
from pipelines.study_results import Results, as_json
from pipelines.workbench import Replication

PAGE, FIGURES = "study.html", "study.json"


@dataclass
class Outcome:
    """What a run of the command did, cell by cell ("row, seed s"), and the study as it stands."""

    measured: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    """Left to another study, which is at their training."""
    failed: dict[str, str] = field(default_factory=dict)
    """Training stopped on purpose; by cell, why."""
    page: str = ""
    study: dict[str, Any] = field(default_factory=dict)


def study(plan_file: Path, out: Path, only: Sequence[str], progress: Progress, page_only: bool = False) -> Outcome:
    """Measure what is missing of the rows in `only` (all if empty; none with `page_only`), and write the page.

    Raises ConfigError for a plan that cannot be used, UsageError for an unknown row or a folder that cannot be
    written, DataRefused for a split, before anything is done. A training that stops with a TrainingError does not stop
    the others; what it said is in the outcome.
    """
    plan = read(plan_file)
    subjects = _subjects(plan_file, plan)
    tables = resolve(plan_file, plan, subjects)
    chosen = selected(tables, list(only))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None
    cells = Cells(out)
    results = Results(plan, tables, subjects, cells)
    outcome = Outcome(page=str(out / PAGE))
    steering = _Steering(out, KINDS[plan.kind], cells, subjects, progress, outcome)
    for label, cell in _wanted(plan, results, chosen) if not page_only else ():
        if steering.measure(label, cell):
            _write(results, out)
    outcome.study = as_json(_write(results, out))
    return outcome


def _subjects(plan_file: Path, plan: StudyPlan) -> dict[str, Subject]:
    """Each, read once: a file that changes while the study goes on changes no cell."""
    for name, folder in plan.data.items():
        if not folder.is_dir():
            raise ConfigError(f"{plan_file}: data.{name}: {folder}: no such folder (seen from the working directory)")
    subjects = {name: KINDS[plan.kind].read(folder) for name, folder in plan.data.items()}
    for name, path in plan.categories.items():
        try:
            subjects[name] = split_categories.joined(subjects[name], path)
        except UsageError as error:
            raise ConfigError(f"{plan_file}: categories.{name}: {error}") from None
    return subjects


def _wanted(plan: StudyPlan, results: Results, chosen: Sequence[str]) -> Iterator[tuple[str, Cell]]:
    """Cells with what to call them, each once, seed by seed."""
    seen = set()
    for number, seed in enumerate(plan.seeds):
        for row in (row for table in results.tables for row in table.rows if row.planned in chosen):
            cell = row.cells[number]
            if cell.key not in seen:
                seen.add(cell.key)
                yield f"{cell.data}: {row.name}, seed {seed}", cell


@dataclass
class _Steering:
    out: Path
    kind: Kind
    cells: Cells
    subjects: Mapping[str, Subject]
    progress: Progress
    outcome: Outcome
    stopped: dict[str, str] = field(default_factory=dict)
    """Trainings that failed in this run, by key: their other evaluations do not try again."""

    def measure(self, label: str, cell: Cell) -> bool:
        """Whether the cell was measured now."""
        if self.cells.has(cell):
            self.outcome.skipped.append(label)
            self.progress.finish(label, "skipped", 0.0)
            return False
        started = perf_counter()
        try:
            found = self.replicated(cell)
        except WorkspaceBusy as error:
            self.outcome.busy.append(label)
            self.progress.console.print(f"{label}: left out, {error}", markup=False)
            return False
        except TrainingError as error:
            self.outcome.failed[label] = self.stopped[cell.training_key] = str(error)
            self.progress.console.print(f"{label}: failed, {error}", markup=False)
            return False
        self.cells.publish(cell, found)
        self.outcome.measured.append(label)
        self.progress.finish(label, "published", perf_counter() - started)
        return True

    def replicated(self, cell: Cell) -> Replication:
        """Trained, unless its workspace has it, and evaluated."""
        if cell.training_key in self.stopped:
            raise TrainingError(self.stopped[cell.training_key])
        workspace = self.out / "work" / cell.training_key
        return self.kind.on(cell.settings.label, self.subjects[cell.data], cell.settings, workspace, self.progress)


def _write(results: Results, out: Path) -> Study:
    found = results.study(f"Study: {', '.join(results.plan.data)}")
    write_text(out / FIGURES, json.dumps(as_json(found), indent=1, ensure_ascii=False) + "\n")
    write_text(out / PAGE, render(found))
    return found


def show(outcome: Outcome) -> None:
    """Print the tables in short, and what was done."""
    console = Console(highlight=False, soft_wrap=True)
    for table in outcome.study["tables"]:
        # Every word whole, also where there are 80 columns or no terminal.
        printed = Printed(title=escape(table["title"]), title_justify="left", box=SIMPLE_HEAD)
        for head in ("model", "seeds", *(column_name(column).replace(", ", "\n") for column in table["columns"])):
            printed.add_column(head, min_width=22 if head == "model" else max(map(len, head.split())))
        for row in table["rows"]:
            values = [row["figures"][column] for column in table["columns"]]
            shown = ["-" if v is None else _figure(v["mean"], v["deviation"]) for v in values]
            printed.add_row(escape(row["name"]), f"{row['seeds']} of {table['seeds']}", *shown)
        console.print(printed)
    console.print(
        f"{len(outcome.measured)} cells measured, {len(outcome.skipped)} were there, {len(outcome.busy)} left to "
        f"another study, {len(outcome.failed)} failed. Page: {outcome.page}",
        markup=False,
    )


def _figure(mean: float, deviation: float | None) -> str:
    decimals = places(mean)
    return f"{mean:.{decimals}f}" + ("" if deviation is None else f" ±{deviation:.{decimals}f}")
