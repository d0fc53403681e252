"""The samples of a workspace, with more fields missing than its log misses: what models are compared on when a log is
complete. Training, validation and test samples lose cells alike (evaluate/missingness.py says which), as if the log had
never had them.

Shapes: N samples of a split, F fields, G numeric fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from evaluate.missingness import LEAST_DAYS, removed
from evaluate.settings import Pattern
from featurize.field_statistics import divisor
from infra.commit import commit, write_file
from infra.config import Settings
from infra.errors import DataRefused, UsageError
from infra.lake import Lake
from infra.ledger import Ledger
from infra.tables import FIELDS, Kind, Table, column_of, samples
from train.protocol import FieldSpec
from train.ragged import Ints
from train.ranking_data import RankingData, read_fields
from train.sequence_data import in_own_order

SPLITS = ("train", "valid", "test")


class Planting(Settings):
    """What is taken away."""

    rate: float = Field(0.0, ge=0, lt=1)
    """Share of the cells of all splits; 0: nothing."""
    pattern: Pattern = "at_random"
    """Which ones."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the draw; each split has its own."""


@dataclass(frozen=True)
class LoggedSamples:
    """`samples` and `fields` of a workspace as of its last run date."""

    as_of: str
    fields: pa.Table
    splits: Mapping[str, pa.Table]
    data: Mapping[str, RankingData]
    """The same rows, as models read them."""
    digest: str
    """Of what the rows hold."""

    @property
    def specs(self) -> tuple[FieldSpec, ...]:
        """In mask order."""
        return self.data["train"].fields


def read(workspace: Path) -> LoggedSamples:
    """The newest ones that the workspace's ledger names.

    Raises UsageError for a folder that is no workspace or has no samples yet, DataRefused if a split has none.
    """
    ledger = Ledger(Lake(workspace / "lake"))
    published = [row for row in ledger.rows() if row.unit == "samples"]
    if not published:
        raise UsageError(f"{workspace}: no samples are published there; run `logs2rec stage samples` in it first")
    newest = max(published, key=lambda row: (row.date, row.published_at))
    version, of_fields = newest.version("samples"), newest.version(FIELDS.name)
    specs = read_fields(ledger.lake, of_fields, newest.date)
    names = _table_of(specs).file_schema.names
    splits, data = {}, {}
    for split in SPLITS:
        table = ledger.lake.read("samples", version, {"as_of": newest.date, "split": split}, names)
        if not len(table):
            raise DataRefused(f"{workspace}: samples as of {newest.date} have no row in {split}; take another split")
        splits[split] = in_own_order(table, ["event_id", "item", "label"], []).cast(_table_of(specs).file_schema)
        data[split] = RankingData.told(splits[split], specs, version)
    fields = ledger.lake.read(FIELDS.name, of_fields, {"as_of": newest.date}, FIELDS.file_schema.names)
    fields = fields.sort_by("position").cast(FIELDS.file_schema)
    return LoggedSamples(newest.date, fields, splits, data, _digest([fields, *splits.values()]))


def write(lake: Lake, logged: LoggedSamples, planting: Planting) -> dict[str, int]:
    """Commit both tables to `lake` with the planting's cells missing; returns their versions.

    The fields' missing rates, means and deviations are those of what is left of the training samples.
    """
    table, files = _table_of(logged.specs), []
    gone = {
        split: _planted(logged.data[split], planting, number) if planting.rate else np.zeros(len(rows), np.int64)
        for number, (split, rows) in enumerate(logged.splits.items())
    }
    for split, rows in logged.splits.items():
        left = _without(rows, logged.specs, gone[split])
        files.append(write_file(lake.path(table.name), table, {"as_of": logged.as_of, "split": split}, [left]))
    described = _described(logged, gone["train"])
    of_fields = [write_file(lake.path(FIELDS.name), FIELDS, {"as_of": logged.as_of}, [described])]
    replaced = {"as_of": [logged.as_of]}
    return {
        table.name: commit(lake, table, files, replace=replaced, metadata={}),
        FIELDS.name: commit(lake, FIELDS, of_fields, replace=replaced, metadata={}),
    }


def _planted(data: RankingData, planting: Planting, number: int) -> Ints:
    if planting.pattern == "by_day" and (days := len(np.unique(data.day_N))) < LEAST_DAYS:
        raise DataRefused(
            f"planting.pattern: by_day throws a coin for a field and a day, and a split has {days} days of "
            f"{LEAST_DAYS}; take another pattern or more days"
        )
    return removed(planting.pattern, planting.rate, data, planting.seed, stream=1 + number)


def _without(rows: pa.Table, specs: tuple[FieldSpec, ...], gone_N: Ints) -> pa.Table:
    """The rows with null in the cells that are gone, and their bits in the mask."""
    for bit, spec in enumerate(specs):
        name, here_N = column_of(spec.name), pa.array((gone_N >> bit & 1) == 0)
        place = rows.schema.get_field_index(name)
        kept = rows[name].combine_chunks()
        nulls = pa.nulls(len(rows), kept.type)
        rows = rows.set_column(place, rows.schema.field(place), pc.if_else(here_N, kept, nulls))
    place = rows.schema.get_field_index("missing")
    mask = pa.array(rows["missing"].to_numpy() | gone_N, pa.int64())
    return rows.set_column(place, rows.schema.field(place), mask)


def _described(logged: LoggedSamples, gone_N: Ints) -> pa.Table:
    """`fields` of the training samples that are left."""
    data, rows = logged.data["train"], logged.fields.to_pylist()
    missing_N = data.missing_N | gone_N
    column = 0
    for bit, (spec, row) in enumerate(zip(data.fields, rows, strict=True)):
        there_N = (missing_N >> bit & 1) == 0
        row["missing_rate"] = 1 - float(there_N.mean())
        if spec.kind is Kind.NUMERIC:
            row["mean"], row["std"] = _moments(data.numeric_NG[there_N, column])
            column += 1
    return pa.Table.from_pylist(rows, schema=logged.fields.schema)


def _moments(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and deviation; 0 and 1 of nothing, deviation 1 of a constant."""
    if not len(values):
        return 0.0, 1.0
    exact = values.astype(np.float64)
    return float(exact.mean()), divisor(float(exact.std()))


def _table_of(specs: tuple[FieldSpec, ...]) -> Table:
    return samples([(spec.name, spec.kind) for spec in specs])


def _digest(tables: list[pa.Table]) -> str:
    found = hashlib.sha256()
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        found.update(sink.getvalue())
    return found.hexdigest()[:16]
