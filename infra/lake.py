"""The lake: Delta tables under one root, read at pinned versions only.

What is read comes from the Delta log (files and schema), never from listing a folder, so files
that were written but not committed do not exist for a reader.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from infra.errors import CommitError, DataRefused
from infra.tables import Table

Where = Mapping[str, str | Sequence[str]]
"""Partition column -> the value, or the values of which one must hold."""

_UNSUPPORTED = {"deletionVectors": "deletion vectors", "columnMapping": "column mapping"}


class Lake:
    """Delta tables below `root`, one folder each."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, table: str) -> str:
        """The folder of a table, whether it exists yet or not."""
        return str(self.root / table)

    def exists(self, table: str) -> bool:
        """Whether the table has a Delta log."""
        return DeltaTable.is_deltatable(self.path(table))

    def version(self, table: str) -> int | None:
        """The newest version, published or not; None without a table."""
        return self.open(table).version() if self.exists(table) else None

    def open(self, table: str, version: int | None = None) -> DeltaTable:
        """The table at `version` (newest if None).

        Raises DataRefused when the table or version is not there, or when the table uses a feature
        that this project's readers and writers do not honour.
        """
        try:
            delta = DeltaTable(self.path(table), version=version)
        except TableNotFoundError:
            raise DataRefused(
                f"table {table!r} does not exist under {self.root}: run the stage that writes it"
            ) from None
        except DeltaError as error:
            raise DataRefused(
                f"table {table!r} has no version {version} ({error}): it was vacuumed or never written; run the stage again"
            ) from None
        refuse_unsupported(delta, table)
        return delta

    def read(
        self, table: str, version: int, where: Where | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of a pinned version, whole partitions selected by `where`."""
        try:
            return self.dataset(table, version, where).to_table(columns=list(columns) if columns is not None else None)
        except FileNotFoundError as error:
            raise DataRefused(
                f"table {table!r} version {version}: a data file is gone ({error}); it was vacuumed, "
                "run the stage again"
            ) from None

    def dataset(self, table: str, version: int, where: Where | None = None) -> pads.FileSystemDataset:
        """A pinned version as an Arrow dataset: files, partition values and schema from the Delta log.

        Built here and not by `to_pyarrow_dataset`, whose Python-backed file system, called from
        Arrow's threads, aborts the interpreter at exit (seen in two of three runs).
        """
        delta = self.open(table, version)
        columns = delta.metadata().partition_columns
        filesystem, root = pafs.FileSystem.from_uri(delta.table_uri)
        file_format = pads.ParquetFileFormat()
        fragments = []
        for action in pa.table(delta.get_add_actions()).to_pylist():
            values = action.get("partition") or {}
            if all(values[c] == v if isinstance(v, str) else values[c] in v for c, v in (where or {}).items()):
                match = [pads.field(c) == values[c] for c in columns]
                guarantee = reduce(operator.and_, match) if match else None
                path = f"{root.rstrip('/')}/{action['path']}"
                fragments.append(file_format.make_fragment(path, filesystem, guarantee))
        schema = pa.schema(delta.schema().to_arrow())
        return pads.FileSystemDataset(fragments, schema, file_format, filesystem)

    def files(self, table: str, version: int, where: Where | None = None) -> list[str]:
        """Locations of a pinned version's data files."""
        return self.open(table, version).file_uris(file_pruning_predicate=_filters(where))

    def partitions(self, table: str, version: int, column: str) -> list[str]:
        """The distinct values of a partition column, sorted."""
        return sorted({p[column] for p in self.open(table, version).partitions()})


def create(lake: Lake, table: Table) -> None:
    """Create the table with this project's properties unless it is there; check its schema if it is.

    Raises CommitError when the stored schema is not the declared one.
    """
    if not lake.exists(table.name):
        # Logs are kept for ever until our own maintenance removes them: commit metadata is the audit trail.
        properties = {
            "delta.logRetentionDuration": "interval 3650 days",
            "delta.enableExpiredLogCleanup": "false",
        }
        try:
            DeltaTable.create(
                lake.path(table.name),
                schema=table.schema,
                partition_by=list(table.partition_by),
                mode="ignore",
                description=table.meaning,
                configuration=properties,
            )
        except DeltaError:
            if not lake.exists(table.name):  # else another process created it first
                raise
    stored = pa.schema(lake.open(table.name).schema().to_arrow())
    if not same_schema(stored, table.schema):
        raise CommitError(
            f"table {table.name!r} under {lake.root} was written with other columns than the contract now asks for\n"
            f"  stored:   {_brief(stored)}\n  declared: {_brief(table.schema)}\n"
            "use another workspace for the changed contract"
        )


def same_schema(left: pa.Schema, right: pa.Schema) -> bool:
    """Equal names, order and types; the name of a list's element does not count.

    >>> same_schema(pa.schema([("x", pa.list_(pa.int32()))]), pa.schema([("x", pa.list_(pa.field("element", pa.int32())))]))
    True
    """
    return left.names == right.names and all(
        _plain(a) == _plain(b) for a, b in zip(left.types, right.types, strict=True)
    )


def refuse_unsupported(delta: DeltaTable, name: str) -> None:
    """Raise DataRefused for tables with deletion vectors or column mapping."""
    configuration = delta.metadata().configuration
    features = {*(delta.protocol().reader_features or ()), *(delta.protocol().writer_features or ())}
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    if configuration.get("delta.enableDeletionVectors", "false") == "true":
        features.add("deletionVectors")
    for feature, words in _UNSUPPORTED.items():
        if feature in features:
            raise DataRefused(f"table {name!r} uses {words}, which this pipeline does not read: rewrite it without")


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _brief(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in schema)


def _filters(where: Where | None) -> list[tuple[str, str, str | list[str]]] | None:
    if not where:
        return None
    return [(k, "=", v) if isinstance(v, str) else (k, "in", list(v)) for k, v in where.items()]
