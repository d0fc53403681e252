"""The plan of a study: which models are trained on which data, and what is compared with what.

A row is a section of recipes/replicate.yaml (sequences) or recipes/ranked.yaml (impressions) with its own settings,
trained once per seed. `inference` names further rows, of the same trained models, that are only evaluated otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, field_validator, model_validator

from infra.config import Settings, assign, digest, load, parse, read_yaml
from infra.errors import ConfigError, UsageError
from pipelines.replicate import LIST_METRICS, PROBE
from pipelines.study_kinds import KINDS, KindName, Model, Subject
from train.settings import OPERATIONAL

Name = Annotated[str, Field(min_length=1)]
Column = Annotated[str, Field(min_length=1)]
"""A figure as "set/metric"."""
_LATER = tuple(f"lists/{name}" for name in LIST_METRICS)
_LATER_SETTINGS = ("draws", "stop_after", "metrics", "noise_seeds", "slices")
_BY_CATEGORY = ("lists/category_count", "lists/intra_list_distance", f"table/{PROBE}")


class PlannedRow(Settings):
    """One model of a table."""

    name: Name
    """What the page calls it; unique in its table."""
    model: Name
    """Its section of recipes/replicate.yaml, or of recipes/ranked.yaml."""
    set: dict[str, JsonValue] = Field({})
    """Values that differ from the section's, by dotted name: {config.width: 64}."""
    inference: dict[Name, dict[str, JsonValue]] = Field({})
    """Further rows by name: {evaluation.steps: 0} ... of the same trained models. Each is compared with this row."""
    compare_to: tuple[Name, ...] = ()
    """Rows or inference rows of the table that this one is tested against, user by user; a single name or a list."""

    @field_validator("compare_to", mode="before")
    @classmethod
    def _a_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _inference_trains_nothing(self) -> PlannedRow:
        for name, values in self.inference.items():
            if wrong := [key for key in values if not key.startswith("evaluation.")]:
                raise ValueError(f"inference.{name}: {wrong[0]} decides the training; only evaluation.* can differ")
        return self


class PlannedTable(Settings):
    """Models on one split."""

    title: Name
    data: Name
    """A name in the plan's `data`."""
    columns: tuple[Column, ...] | None = Field(None, min_length=1)
    """What is shown: "set/metric"; null: the kind's own. Of sequences a set is all_items, history_removed, lists
    (recommended), table or valid; of impressions as_planted, at_random_50, without_FIELD, at_random (area) or valid."""
    compare: tuple[Column, ...] | None = Field(None, min_length=1)
    """What rows are tested in against each other, user by user; null: the kind's own."""
    losses: bool = False
    """Whether the page shows the terms of each row's training loss, of the first seed that was run."""
    rows: tuple[PlannedRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names(self) -> PlannedTable:
        names = [name for row in self.rows for name in (row.name, *row.inference)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"rows: the name {twice[0]!r} is there twice; every row needs its own")
        for row in self.rows:
            others = set(names) - {row.name, *row.inference}
            if wrong := [name for name in row.compare_to if name not in others]:
                raise ValueError(f"rows: {row.name!r}: compare_to {wrong[0]!r} is no other row of this table")
        return self


class StudyPlan(Settings):
    """What a plan file holds."""

    kind: KindName = "sequences"
    """Of the models: on sequences of published splits, or on the labelled impressions of workspaces."""
    data: dict[Name, Path]
    """Folders of published splits (sequences.parquet), or workspaces with samples, relative to the working directory,
    by name."""
    categories: dict[Name, Path] = Field({})
    """Files of their items' categories (pipelines/split_categories.py), by the name of the data."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    """Of training and of the noise at inference; every row is trained once with each."""
    tables: tuple[PlannedTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> StudyPlan:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is there twice, and the same seed gives the same figures")
        for number, table in enumerate(self.tables):
            if table.data not in self.data:
                raise ValueError(f"tables.{number}.data: {table.data!r} is none of {', '.join(self.data)}")
            self._known(table, f"tables.{number}")
            by_category = [c for c in (*(table.columns or ()), *(table.compare or ())) if c in _BY_CATEGORY]
            if by_category and table.data not in self.categories:
                raise ValueError(f"tables.{number}: {by_category[0]} needs categories.{table.data}")
        if unknown := [name for name in self.categories if name not in self.data]:
            raise ValueError(f"categories: {unknown[0]!r} is none of {', '.join(self.data)}")
        if self.categories and self.kind != "sequences":
            raise ValueError("categories: are of lists of items, and there are none of impressions; leave it out")
        return self

    def _known(self, table: PlannedTable, where: str) -> None:
        kind = KINDS[self.kind]
        for name, columns, known in (("columns", table.columns, kind.shown), ("compare", table.compare, kind.tested)):
            if wrong := [c for c in columns or () if not known.fullmatch(c)]:
                raise ValueError(
                    f"{where}.{name}: {wrong[0]!r} is not measured of {self.kind}; pipelines/study_kinds.py has what is"
                )
        for place, row in enumerate(table.rows):
            given = {"set": row.set, **{f"inference.{name}": values for name, values in row.inference.items()}}
            for name, values in given.items():
                if wrong := [key for key in values if key in kind.seeds]:
                    where = f"{where}.rows.{place}.{name}"
                    raise ValueError(f"{where}: {wrong[0]} comes from the plan's seeds; leave it out")


def _at_their_defaults(settings: Settings, later: Iterable[str]) -> set[str]:
    """Those of the settings that came later and are as before, so that older cells keep their names without them."""
    fields = type(settings).model_fields
    return {name for name in later if name in fields and getattr(settings, name) == fields[name].default}


@dataclass(frozen=True)
class Cell:
    """One model, trained with one seed and evaluated in one way: what a figure is a function of."""

    data: str
    """Its name in the plan."""
    data_digest: str
    settings: Model
    categories_digest: str | None = None
    later: tuple[str, ...] = ()
    """Columns of its table that older cells were not measured for; they are other cells."""

    @property
    def seed(self) -> int:
        """Of training and evaluation."""
        return self.settings.training.seed

    @property
    def trained(self) -> dict[str, Any]:
        """What is learnt, not how it is carried out (train.settings.OPERATIONAL)."""
        later = _at_their_defaults(self.settings.config, self.settings.config.later)
        left_out: dict[str, Any] = {"evaluation": True, "training": OPERATIONAL, "config": later}
        return {"data": self.data_digest, **self.settings.model_dump(mode="json", exclude=left_out)}

    @property
    def parts(self) -> dict[str, Any]:
        """What decides the figures; the code is no part of it."""
        parts = {**self.trained, "evaluation": self._evaluation()}
        if self.categories_digest is not None:
            parts["categories"] = self.categories_digest
        if self.later:
            parts["columns"] = list(self.later)
        return parts

    def _evaluation(self) -> dict[str, Any]:
        settings = self.settings.evaluation
        return settings.model_dump(mode="json", exclude=_at_their_defaults(settings, _LATER_SETTINGS))

    @property
    def training_key(self) -> str:
        """The same for every evaluation of one trained model."""
        return digest(self.trained)

    @property
    def key(self) -> str:
        """The same for cells with the same figures."""
        return digest(self.parts)


@dataclass(frozen=True)
class Row:
    """A line of a table: a cell per seed of the plan."""

    name: str
    cells: tuple[Cell, ...]
    planned: str
    """The row of the plan that it belongs to."""
    against: tuple[str, ...]
    """Names of the rows that it is tested against."""


@dataclass(frozen=True)
class Table:
    """A table of the plan with its rows resolved."""

    title: str
    data: str
    columns: tuple[str, ...]
    compare: tuple[str, ...]
    losses: bool
    rows: tuple[Row, ...]


def read(path: Path) -> StudyPlan:
    """The plan in a YAML file. ConfigError names the file and each wrong field."""
    return load(path, StudyPlan)


def resolve(path: Path, plan: StudyPlan, subjects: Mapping[str, Subject]) -> list[Table]:
    """Every row with its settings; `subjects` by name. ConfigError names file, row and setting."""
    kind = KINDS[plan.kind]
    sections = read_yaml(kind.sections)
    tables = []
    for number, table in enumerate(plan.tables):
        columns, compare = table.columns or kind.columns, table.compare or kind.compared
        subject = subjects[table.data]
        rows: list[Row] = []
        for place, planned in enumerate(table.rows):
            where = f"{path}: tables.{number}.rows.{place}"
            for row in _rows(planned, sections, where, plan, table.data, subject, columns):
                if absent := kind.absent((*columns, *compare), row.cells[0].settings, subject):
                    raise ConfigError(f"{where}: {absent}")
                rows.append(row)
        tables.append(Table(table.title, table.data, columns, compare, table.losses, tuple(rows)))
    return tables


def selected(tables: list[Table], only: list[str]) -> list[str]:
    """The planned rows named in `only`, all of them if it is empty. UsageError for a name that no row has."""
    names = list(dict.fromkeys(row.planned for table in tables for row in table.rows))
    if unknown := [name for name in only if name not in names]:
        raise UsageError(f"--only {unknown[0]!r}: the plan's rows are {', '.join(names)}")
    return [name for name in names if not only or name in only]


def _rows(
    planned: PlannedRow,
    sections: Mapping[str, Any],
    where: str,
    plan: StudyPlan,
    data: str,
    subject: Subject,
    columns: Sequence[str],
) -> Iterator[Row]:
    kind = KINDS[plan.kind]
    if planned.model not in sections:
        raise ConfigError(
            f"{where}.model: {kind.sections.name} has no section {planned.model!r}; it has {', '.join(sections)}"
        )
    later = tuple(column for column in _LATER if column in columns)
    categories = getattr(subject, "categories_digest", None)
    others = {"": {}, **planned.inference}
    for name, values in others.items():
        cells = []
        for seed in plan.seeds:
            section = deepcopy(sections[planned.model])
            for key, value in {**planned.set, **values}.items():
                assign(section, key, value, where)
            settings = parse(section, kind.model, where).seeded(seed)
            cells.append(Cell(data, subject.digest, settings, categories, later))
        against = tuple(planned.inference) if not name else ()
        chosen = planned.compare_to if not name else ()
        yield Row(name or planned.name, tuple(cells), planned.name, (*chosen, *against))
