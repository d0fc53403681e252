"""From measured cells to what a study says: the tables of its page and of study.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from evaluate.decision.repeated import Comparison, Spread, compare, spread
from evaluate.decision.significance import holm
from evaluate.publish.study_page import Contrast, Study, StudyRow, StudyTable, unit
from pipelines.study_cells import Cells
from pipelines.study_kinds import KINDS, Subject
from pipelines.study_plan import Row, StudyPlan, Table
from pipelines.study_plots import plots


class Results:
    """Reads cells once, and compares the same two rows once, however often the page is written."""

    def __init__(self, plan: StudyPlan, tables: Sequence[Table], subjects: Mapping[str, Subject], cells: Cells):
        self.plan, self.tables, self.subjects, self.cells = plan, tables, subjects, cells
        self.kind = KINDS[plan.kind]
        self._read: dict[str, dict[str, Any]] = {}
        self._compared: dict[tuple[str, ...], Comparison] = {}

    def study(self, title: str) -> Study:
        """What the page shows, of the cells that are there now."""
        tables = [self._table(table) for table in self.tables]
        plan = self.plan.model_dump(mode="json", exclude={"data", "categories"})  # folders are this machine's
        plan["data"] = {name: subject.digest for name, subject in self.subjects.items()}
        plan["categories"] = {
            name: getattr(self.subjects[name], "categories_digest", None) for name in self.plan.categories
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        drawn = plots(self.tables, self.measured)
        return Study(title, now, [*self.kind.protocol, *self._circumstances()], tables, plan, drawn)

    def measured(self, row: Row) -> list[dict[str, Any]]:
        """The cell.json of each seed that was run, in the order of the plan's seeds."""
        found = []
        for cell in row.cells:
            if cell.key not in self._read and (read := self.cells.read(cell)) is not None:
                self._read[cell.key] = read
            if cell.key in self._read:
                found.append(self._read[cell.key])
        return found

    def _circumstances(self) -> list[str]:
        cells = [cell for table in self.tables for row in table.rows for cell in self.measured(row)]
        if not cells:
            return ["Nothing was measured yet."]
        dates = sorted(cell["date"][:10] for cell in cells)
        cores = sorted({str(cell["cores"]) for cell in cells})
        workers = sorted({str(cell["figures"]["training"]["workers"]) for cell in cells} - {"0"})  # 0: counted models
        codes = sorted({cell["code"] for cell in cells})
        return [
            f"Measured from {dates[0]} to {dates[-1]} on {' or '.join(cores)} CPU cores, training workers: "
            f"{' or '.join(workers) or 'none'}; code {', '.join(codes)}. What else ran then is not known.",
        ]

    def _table(self, table: Table) -> StudyTable:
        about = f"{table.data}: {self.kind.about(self.subjects[table.data])}"
        rows = [self._row(row, table.columns) for row in table.rows]
        contrasts = self._contrasts(table)
        return StudyTable(table.title, about, len(self.plan.seeds), table.columns, rows, contrasts)

    def _row(self, row: Row, columns: Sequence[str]) -> StudyRow:
        figures = [cell["figures"] for cell in self.measured(row)]
        shown: dict[str, Spread | None] = {}
        for column in columns:
            name, metric = column.split("/")
            # Weights are selected once, by how the trained row is read while it is trained.
            once = column == self.kind.selected_by and row.name != row.planned
            told = [] if once else [f.get(name, {}).get(metric) for f in figures]
            shown[column] = spread([unit(column) * v for v in told]) if None not in told else None
        return StudyRow(
            row.name, len(figures), shown, spread([f["train_seconds"] for f in figures]),
            spread([f["users"] / f["score_seconds"] for f in figures]),
            max((f["peak_memory_bytes"] / 2**30 for f in figures), default=None),
            spread([f["embedding_health"]["kl_gaussian"] for f in figures if f.get("embedding_health")]),
        )  # fmt: skip

    def _contrasts(self, table: Table) -> list[Contrast]:
        by_name = {row.name: row for row in table.rows}
        found = []
        for row in table.rows:
            for other in (by_name[name] for name in row.against):
                for column in table.compare:
                    comparison = self._compare(row, other, column)
                    same = row.planned == other.planned
                    found.append(Contrast(row.name, other.name, column, same, comparison, None))
        tested = [n for n, c in enumerate(found) if c.comparison is not None and not math.isnan(c.comparison.p)]
        adjusted = holm([found[n].comparison.p for n in tested])  # type: ignore[union-attr]
        for n, p in zip(tested, adjusted, strict=True):
            found[n] = replace(found[n], adjusted_p=p)
        return found

    def _compare(self, row: Row, other: Row, metric: str) -> Comparison | None:
        """Over the seeds that both have; None if there is none."""
        pairs = [(a, b) for a, b in zip(row.cells, other.cells, strict=True) if self.cells.has(a) and self.cells.has(b)]
        if not pairs:
            return None
        firsts, seconds = zip(*pairs, strict=True)
        key = (metric, *(c.key for c in (*firsts, *seconds)))
        if key not in self._compared:
            values_SB = unit(metric) * self.cells.per_user([*firsts, *seconds], metric)
            self._compared[key] = compare(values_SB[: len(pairs)], values_SB[len(pairs) :])
        return self._compared[key]


def as_json(study: Study) -> dict[str, Any]:
    """The page's figures; null for NaN, which JSON has not."""
    content = asdict(study)
    for table, shown in zip(content["tables"], study.tables, strict=True):
        for entry, contrast in zip(table["contrasts"], shown.contrasts, strict=True):
            entry["verdict"] = contrast.verdict
    found: dict[str, Any] = _finite(content)
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
