"""Tables written again under a longer chain of keys: every pseudonym, and nothing else, becomes another one.

A pseudonym under k_1 … k_m becomes that under k_1 … k_n by the keys k_m+1 … k_n alone, so no raw file is needed.
Files are rewritten one by one with Arrow: what is held is one file's rows, and files have a largest number of rows.
The outcome is one commit per table that replaces all of its partitions; what it stands for is the ledger's matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize.pseudonyms import DIGITS
from featurize.vocabularies import USER
from infra.commit import DataFile, commit, write_file
from infra.errors import AuditError
from infra.lake import Lake, arrow_schema
from infra.schemas import misfit
from infra.tables import Column, Table

_PSEUDONYM = rf"^[0-9a-f]{{{DIGITS}}}$"
_NAME = re.compile(r"part((?:-\d{5,})*)-[0-9a-f]{32}\.parquet")


@dataclass(frozen=True)
class Job:
    """How one table is written again."""

    table: str
    columns: tuple[str, ...] = ()
    """Those that hold pseudonyms."""
    sources: Mapping[str, int] = field(default_factory=dict)
    """Value of the first partition column -> version whose rows it has. Partitions of other values leave the table."""
    order: tuple[str, ...] = ()
    """Columns that a file is sorted by, as its writer does; empty where no pseudonym decides the order."""


@dataclass(frozen=True)
class Rekeyed:
    """The version that holds the table under the new keys, its rows, and the values of `sources` it has."""

    version: int
    rows: int
    kept: frozenset[str]


def write_again(lake: Lake, job: Job, rekeyed: Callable[[str], str], metadata: Mapping[str, Any]) -> Rekeyed:
    """Commit the table with `rekeyed` of every pseudonym in the place of it.

    A partition whose columns the table does not have any more (it was begun anew since) is left out. Raises
    AuditError when a value is no pseudonym; nothing is committed then.
    """
    table = _stored(lake, job.table)
    first = table.partition_by[0]
    newest = lake.version(job.table) or 0
    files, kept = _sources(lake, table, job)
    written = [_file(lake, table, path, partition, job, rekeyed) for path, partition in files]
    values = sorted({*lake.partitions(job.table, newest, first), *kept})
    if not values:
        return Rekeyed(newest, 0, frozenset())
    version = commit(lake, table, written, replace={first: values}, metadata=metadata)
    return Rekeyed(version, sum(f.rows for f in written), frozenset(kept))


def _stored(lake: Lake, name: str) -> Table:
    """The table as it is, whatever the contract of today would make of it."""
    delta = lake.open(name)
    return _table(name, arrow_schema(delta), delta.metadata().partition_columns)


def _table(name: str, schema: pa.Schema, partition_by: Sequence[str]) -> Table:
    return Table(name, "", tuple(Column(f.name, f.type, "", f.nullable) for f in schema), tuple(partition_by))


def _sources(lake: Lake, table: Table, job: Job) -> tuple[list[tuple[str, Mapping[str, str]]], set[str]]:
    """(path, partition) of the files to write again, and the values that they are of."""
    first = table.partition_by[0]
    by_version: dict[int, list[str]] = {}
    for value, version in job.sources.items():
        by_version.setdefault(version, []).append(value)
    files: list[tuple[str, Mapping[str, str]]] = []
    for version, values in sorted(by_version.items()):
        files += lake.data_files(lake.open(job.table, version), job.table, {first: values})
    odd = {p[first] for path, p in files if misfit(pq.read_schema(path), table.file_schema)}
    return [(path, p) for path, p in files if p[first] not in odd], {*job.sources} - odd


def _file(
    lake: Lake, table: Table, path: str, partition: Mapping[str, str], job: Job, rekeyed: Callable[[str], str]
) -> DataFile:
    """Its columns stay those that the file had: one that lacks a column is older than that column."""
    with pq.ParquetFile(path) as parquet:
        rows = parquet.read(use_threads=False)
    for name in job.columns:
        at = rows.column_names.index(name)
        mask = pc.equal(rows["field"], USER) if "field" in rows.column_names else None
        rows = rows.set_column(at, rows.schema.field(name), _column(rows[name], mask, rekeyed, f"{path!r}: {name}"))
    if job.order:
        rows = rows.sort_by([(name, "ascending") for name in job.order if name in rows.column_names])
    found = _NAME.fullmatch(path.rpartition("/")[2])
    order = [int(n) for n in found[1].split("-")[1:]] if found else []
    fields = [*rows.schema, *(pa.field(c, pa.string(), False) for c in table.partition_by)]
    return write_file(
        lake.path(table.name), _table(table.name, pa.schema(fields), table.partition_by), partition, [rows], order
    )


def _column(column: pa.ChunkedArray, mask: Any, rekeyed: Callable[[str], str], where: str) -> pa.ChunkedArray:
    """The column with its pseudonyms, those under `mask` only, made anew; each distinct one once."""
    chosen = (column if mask is None else column.filter(mask)).cast(pa.string())
    encoded = pa.concat_arrays(chosen.chunks or [pa.array([], pa.string())]).dictionary_encode()
    if not pc.all(pc.match_substring_regex(encoded.dictionary, _PSEUDONYM), min_count=0).as_py():
        raise AuditError(
            f"{where} holds values that are no pseudonyms; nothing was committed, the table stays as it is"
        )
    made = pa.array([rekeyed(old) for old in encoded.dictionary.to_pylist()], pa.string()).take(encoded.indices)
    if mask is None:
        return pa.chunked_array([made])
    flat = pa.concat_arrays(column.cast(pa.string()).chunks or [pa.array([], pa.string())])
    return pa.chunked_array(
        [pc.replace_with_mask(flat, pa.concat_arrays(mask.chunks or [pa.array([], pa.bool_())]), made)]
    )
