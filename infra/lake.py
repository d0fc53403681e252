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
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from infra import log
from infra.errors import DataRefused, SchemaChanged, UsageError
from infra.tables import FORMAT_VERSION

Where = Mapping[str, str | Sequence[str]]
"""Partition column -> the value, or the values of which one must hold."""

_UNSUPPORTED = {"deletionVectors": "deletion vectors", "columnMapping": "column mapping"}
_UNUSABLE_IN_ROOT = frozenset("%*?[]{}\\")
"""deltalake 1.6 decodes a '%' in a local path and fails on brackets; Spark takes the others for a pattern."""


FORMAT_PROPERTY = "logs2rec.formatVersion"
"""The Delta property that carries FORMAT_VERSION; a table without it is of version 1."""


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
        return log.is_table(self.path(table))

    def version(self, table: str) -> int | None:
        """The newest version, published or not; None without a table."""
        return self.open(table).version() if self.exists(table) else None

    def open(self, table: str, version: int | None = None) -> DeltaTable:
        """The table at `version` (newest if None).

        Raises DataRefused when the table or version is not there, when its log is damaged (an entry cut short
        included, which deltalake takes for a whole one), or when the table uses a feature
        that this project's readers and writers do not honour; SchemaChanged when it is of another format version.
        """
        try:
            delta = DeltaTable(self.path(table), version=version)
        except TableNotFoundError:
            raise DataRefused(
                f"table {table!r} does not exist under {self.root}: run the stage that writes it"
            ) from None
        except (DeltaError, OverflowError) as error:
            words = log.damage(self.path(table))
            if words or version is None:
                raise self._damaged(table, words or brief(error)) from None
            raise DataRefused(
                f"table {table!r} has no version {version} ({brief(error)}): it was vacuumed or never written; "
                "run the stage again"
            ) from None
        entry = log.entry_of(self.path(table), delta.version())
        if entry.exists() and (flaw := log.flaw(entry)):
            raise self._damaged(table, log.advice(self.path(table), delta.version(), flaw, newest=version is None))
        refuse_unsupported(delta, table)
        refuse_other_format(delta, table)
        return delta

    def _damaged(self, table: str, words: str) -> DataRefused:
        return DataRefused(f"table {table!r} under {self.root}: its log is damaged: {words}")

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
        for path, partition in self.data_files(delta, table, where):
            match = [pads.field(c) == value for c, value in partition.items()]
            guarantee = reduce(operator.and_, match) if match else None
            fragments.append(file_format.make_fragment(path, filesystem, guarantee))
        return pads.FileSystemDataset(fragments, arrow_schema(delta), file_format, filesystem)

    def files(self, table: str, version: int, where: Where | None = None) -> list[str]:
        """Absolute paths of a pinned version's data files, always in the same order."""
        return [path for path, _ in self.data_files(self.open(table, version), table, where)]

    def partitions(self, table: str, version: int, column: str) -> list[str]:
        """The distinct values of a partition column, sorted."""
        delta = self.open(table, version)
        _check_partitioned(delta, table, [column])
        return sorted({partition[column] for _, partition in self.data_files(delta, table, None)})

    def data_files(
        self, delta: DeltaTable, table: str, where: Where | None = None
    ) -> Iterator[tuple[str, Mapping[str, str]]]:
        """(absolute path, partition) of an open table's data files.

        By path: the log's own order changes when a checkpoint is written.
        """
        wanted = {c: {v} if isinstance(v, str) else set(v) for c, v in (where or {}).items()}
        _check_partitioned(delta, table, wanted)
        actions = pa.table(delta.get_add_actions())
        actions = actions.select([c for c in ("path", "partition") if c in actions.column_names])
        for column, values in wanted.items():
            held = pc.cast(pc.struct_field(actions["partition"], column), pa.string())
            actions = actions.filter(pc.is_in(held, pa.array(sorted(values), pa.string())))
        for action in sorted(actions.to_pylist(), key=operator.itemgetter("path")):
            yield f"{self.path(table)}/{unquote(action['path'])}", action.get("partition") or {}


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


def refuse_other_format(delta: DeltaTable, name: str) -> None:
    """Raise SchemaChanged for a table that another format version of this project wrote."""
    found = delta.metadata().configuration.get(FORMAT_PROPERTY, "1")
    if found == str(FORMAT_VERSION):
        return
    if found.isdecimal() and int(found) < FORMAT_VERSION:
        raise SchemaChanged(
            f"table {name!r} was written by an older logs2rec (format version {found}, this one writes "
            f"{FORMAT_VERSION}); ingest the raw files into a new workspace"
        )
    raise SchemaChanged(
        f"table {name!r} was written by a newer logs2rec (format version {found}, this one reads {FORMAT_VERSION}); "
        "upgrade logs2rec"
    )


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
