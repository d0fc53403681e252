"""The lake: Delta tables under one root, read at pinned versions only.

What is read comes from the Delta log (files and schema), never from listing a folder, so files
that were written but not committed do not exist for a reader.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from infra.errors import CommitError, DataRefused, SchemaChanged, UsageError
from infra.tables import Table

Where = Mapping[str, str | Sequence[str]]
"""Partition column -> the value, or the values of which one must hold."""

_UNSUPPORTED = {"deletionVectors": "deletion vectors", "columnMapping": "column mapping"}
_UNUSABLE_IN_ROOT = frozenset("%*?[]{}\\")
"""deltalake 1.6 decodes a '%' in a local path and fails on brackets; Spark takes the others for a pattern."""


class Lake:
    """Delta tables below `root`, one folder each.

    Raises UsageError for a root that is not a folder of this machine, or whose path deltalake or Spark
    would read as another one.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise UsageError(
                f"workspace {root}: not a folder; tables live on a disk that every worker sees under one path"
            )
        self.root = Path(root).absolute()
        if unusable := sorted(_UNUSABLE_IN_ROOT & set(str(self.root))):
            raise UsageError(f"workspace {self.root}: {' '.join(unusable)} in the path; choose another folder")

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
        except (DeltaError, OverflowError) as error:
            if version is None:
                raise DataRefused(f"table {table!r} under {self.root}: its log is damaged ({brief(error)})") from None
            raise DataRefused(
                f"table {table!r} has no version {version} ({brief(error)}): it was vacuumed or never written; "
                "run the stage again"
            ) from None
        refuse_unsupported(delta, table)
        return delta

    def read(
        self, table: str, version: int, where: Where | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of a pinned version, whole partitions selected by `where`; DataRefused when they cannot be read."""
        dataset = self.dataset(table, version, where)
        try:
            return dataset.to_table(columns=list(columns) if columns is not None else None)
        except FileNotFoundError as error:
            raise DataRefused(
                f"table {table!r} version {version}: a data file is gone ({brief(error)}); it was vacuumed, "
                "run the stage again"
            ) from None
        except (OSError, pa.ArrowInvalid) as error:
            raise DataRefused(f"table {table!r} version {version} cannot be read: {brief(error)}") from None

    def dataset(self, table: str, version: int, where: Where | None = None) -> pads.FileSystemDataset:
        """A pinned version as an Arrow dataset: files, partition values and schema from the Delta log.

        Built here and not by `to_pyarrow_dataset`, whose Python-backed file system, called from
        Arrow's threads, aborts the interpreter at exit (seen in two of three runs).
        """
        delta = self.open(table, version)
        filesystem, file_format = pafs.LocalFileSystem(), pads.ParquetFileFormat()
        fragments = []
        for path, partition in self._data_files(delta, table, where):
            match = [pads.field(c) == value for c, value in partition.items()]
            guarantee = reduce(operator.and_, match) if match else None
            fragments.append(file_format.make_fragment(path, filesystem, guarantee))
        return pads.FileSystemDataset(fragments, arrow_schema(delta), file_format, filesystem)

    def files(self, table: str, version: int, where: Where | None = None) -> list[str]:
        """Absolute paths of a pinned version's data files, always in the same order."""
        return [path for path, _ in self._data_files(self.open(table, version), table, where)]

    def partitions(self, table: str, version: int, column: str) -> list[str]:
        """The distinct values of a partition column, sorted."""
        delta = self.open(table, version)
        _check_partitioned(delta, table, [column])
        return sorted({partition[column] for _, partition in self._data_files(delta, table, None)})

    def _data_files(
        self, delta: DeltaTable, table: str, where: Where | None
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """(absolute path, partition) by path: the log's own order changes when a checkpoint is written."""
        wanted = {c: {v} if isinstance(v, str) else set(v) for c, v in (where or {}).items()}
        _check_partitioned(delta, table, wanted)
        for action in sorted(pa.table(delta.get_add_actions()).to_pylist(), key=operator.itemgetter("path")):
            partition = action.get("partition") or {}
            if all(partition[c] in values for c, values in wanted.items()):
                yield f"{self.path(table)}/{unquote(action['path'])}", partition


def create(lake: Lake, table: Table) -> None:
    """Create the table with this project's properties unless it is there; check its columns if it is.

    Raises CommitError when the stored columns (names, order, types, nullability, partitioning) are not
    the declared ones.
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
                # A retry would land as version 1 and put its own schema over that of whoever was first.
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except DeltaError as error:
            if not lake.exists(table.name):  # else another process created it first
                raise CommitError(
                    f"table {table.name!r} cannot be created under {lake.root} ({brief(error)})"
                ) from error
    check_schema(lake, table)


def check_schema(lake: Lake, table: Table) -> None:
    """Raise SchemaChanged when the table exists with other columns, nullability or partitioning than declared."""
    if not lake.exists(table.name):
        return
    delta = lake.open(table.name)
    stored, partition_by = arrow_schema(delta), delta.metadata().partition_columns
    nullability = [(f.nullable, g.nullable) for f, g in zip(stored, table.schema, strict=False)]
    if (
        not same_schema(stored, table.schema)
        or any(there != asked for there, asked in nullability)
        or partition_by != list(table.partition_by)
    ):
        raise SchemaChanged(
            f"table {table.name!r} under {lake.root} was written with other columns than the contract now asks for\n"
            f"  stored:   {_columns(stored, partition_by)}\n"
            f"  declared: {_columns(table.schema, table.partition_by)}\n"
            "use another workspace for the changed contract"
        )


def arrow_schema(delta: DeltaTable) -> pa.Schema:
    """The schema in the Delta log, as Arrow."""
    return pa.schema(delta.schema().to_arrow())


def same_schema(left: pa.Schema, right: pa.Schema) -> bool:
    """Equal names, order and types; the name of a list's element does not count.

    >>> item, element = (pa.list_(pa.field(name, pa.int32())) for name in ("item", "element"))
    >>> same_schema(pa.schema([("x", item)]), pa.schema([("x", element)]))
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


def _check_partitioned(delta: DeltaTable, table: str, columns: Iterable[str]) -> None:
    by = delta.metadata().partition_columns
    if unknown := sorted(set(columns) - set(by)):
        raise DataRefused(f"table {table!r} is partitioned by {by}, not by {', '.join(unknown)}")


def brief(error: BaseException) -> str:
    """The first line of an error: those of deltalake go on with a stack trace."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _columns(schema: pa.Schema, partition_by: Sequence[str]) -> str:
    names = ", ".join(f"{f.name} {f.type}{'' if f.nullable else ' not null'}" for f in schema)
    return f"{names}; partitioned by {', '.join(partition_by) or 'nothing'}"
