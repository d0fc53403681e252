"""The Delta write protocol: Parquet files that tasks have written become one verified commit.

`create_write_transaction` checks no file, no size and no schema, and records an application
transaction without enforcing it across retries; this module makes up for both (design.md, "Writing
Delta"). Every commit REPLACES the partitions it names, so that a command that died anywhere can be
run again: the second commit leaves exactly what one undisturbed commit would have left.

Failure model: object stores with conditional put, or a local disk, which is fsynced here.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.transaction import AddAction, RemoveAction

from infra.errors import CommitConflict, CommitError
from infra.lake import Lake, create, same_schema
from infra.tables import Table

COMMIT_ID = "logs2rec.commitId"
"""Metadata key that tells our own commit from another's after a lost answer."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file as its task reports it; `path` is relative to the table's folder."""

    path: str
    size: int
    rows: int
    partition: Mapping[str, str]
    stats: str


def write_file(folder: str, table: Table, partition: Mapping[str, str], batches: Sequence[pa.Table]) -> DataFile:
    """Write rows of ONE partition as a new, fsynced Parquet file and report it; nothing is committed.

    Names are random, so a retried or speculative task never touches another attempt's file.
    """
    directory = "/".join(f"{c}={partition[c]}" for c in table.partition_by)
    relative = str(PurePosixPath(directory) / f"part-{uuid.uuid4().hex}.parquet")
    target = Path(folder) / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = pa.concat_tables(batches).select(table.file_schema.names).cast(table.file_schema).combine_chunks()
    with open(target, "wb") as sink:
        pq.write_table(rows, sink, compression="zstd", row_group_size=1 << 18)
        sink.flush()
        os.fsync(sink.fileno())
    _fsync_folder(target.parent)
    stats = json.dumps({"numRecords": rows.num_rows})
    return DataFile(relative, target.stat().st_size, rows.num_rows, dict(partition), stats)


def commit(
    lake: Lake,
    table: Table,
    files: Sequence[DataFile],
    *,
    replace: Mapping[str, Sequence[str]],
    metadata: Mapping[str, Any],
) -> int:
    """Replace the partitions named by `replace` by `files`, in one commit; returns its version.

    `replace` maps a partition column to values, e.g. {"arrival": ["2026-01-03"]}; every file must lie inside
    it. Each of those partitions has an application transaction of its own, so that of two writers of the
    same partition, new or not, one fails.

    Raises CommitError when a file is not what its report says (nothing is committed then), and
    CommitConflict when another writer came first.
    """
    create(lake, table)
    for file in files:
        _verify(lake, table, file, replace)
    delta = lake.open(table.name)
    transactions = {}
    for app_id in (f"{table.name}:{column}={value}" for column, values in replace.items() for value in values):
        transactions[app_id] = (delta.transaction_version(app_id) or 0) + 1
    commit_id = uuid.uuid4().hex
    try:
        _transact(delta, table, files, replace, transactions, {**metadata, COMMIT_ID: commit_id})
    except Exception as error:
        # An error does not mean "not committed": the answer may have been lost. The log knows.
        version = _find(lake.open(table.name), commit_id)
        if version is None:
            raise _explain(lake, table, transactions, error) from error
    else:
        version = _find(lake.open(table.name), commit_id)
        if version is None:
            raise CommitError(f"table {table.name!r}: the commit returned but is not in the log; run the command again")
    _fsync_log(lake, table, version)
    return version


def append_rows(lake: Lake, table: Table, rows: Sequence[Mapping[str, Any]], *, app_id: str) -> bool:
    """Append a few rows to an unpartitioned table of records, once per `app_id`.

    Returns False, and writes nothing, when that `app_id` has been committed before.
    """
    create(lake, table)
    delta = lake.open(table.name)
    if delta.transaction_version(app_id) is not None:
        return False
    data = pa.Table.from_pylist([dict(r) for r in rows], schema=table.schema)
    file = write_file(lake.path(table.name), table, {}, [data])
    commit_id = uuid.uuid4().hex
    try:
        _transact(delta, table, [file], None, {app_id: 1}, {COMMIT_ID: commit_id})
    except Exception as error:
        fresh = lake.open(table.name)
        if _find(fresh, commit_id) is None:
            if fresh.transaction_version(app_id) is not None:
                return False
            raise _explain(lake, table, {app_id: 1}, error) from error
    version = _find(lake.open(table.name), commit_id)
    if version is not None:
        _fsync_log(lake, table, version)
    return True


def _transact(
    delta: DeltaTable,
    table: Table,
    files: Sequence[DataFile],
    replace: Mapping[str, Sequence[str]] | None,
    transactions: Mapping[str, int],
    metadata: Mapping[str, Any],
) -> None:
    actions: list[AddAction | RemoveAction] = [
        AddAction(
            f.path,
            f.size,
            dict(f.partition),
            int(os.path.getmtime(Path(delta.table_uri.removeprefix("file://")) / f.path) * 1000),
            True,
            f.stats,
        )
        for f in files
    ]
    filters = None if replace is None else [(c, "in", list(v)) for c, v in replace.items()]
    delta.create_write_transaction(
        actions,
        mode="append" if replace is None else "overwrite",
        schema=Schema.from_arrow(table.schema),
        partition_by=list(table.partition_by),
        partition_filters=filters or None,
        commit_properties=CommitProperties(
            custom_metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()},
            app_transactions=[Transaction(app_id, number) for app_id, number in transactions.items()],
        ),
    )


def _verify(lake: Lake, table: Table, file: DataFile, replace: Mapping[str, Sequence[str]]) -> None:
    """The file exists inside the table, has the reported size, rows and schema, and the right partition."""

    def refuse(why: str) -> CommitError:
        return CommitError(f"table {table.name!r}, file {file.path!r}: {why}; nothing was committed")

    parts = PurePosixPath(file.path).parts
    if PurePosixPath(file.path).is_absolute() or ".." in parts or any(p.startswith(("_", ".")) for p in parts):
        raise refuse("data files lie inside the table and no name starts with '_' or '.'")
    if set(file.partition) != set(table.partition_by):
        raise refuse(f"its partition {dict(file.partition)} does not name {table.partition_by}")
    for column, values in replace.items():
        if file.partition[column] not in values:
            raise refuse(f"its partition {column}={file.partition[column]} is outside the replaced {list(values)}")
    path = Path(lake.path(table.name)) / file.path
    if not path.is_file():
        raise refuse("it is not there")
    if path.stat().st_size != file.size:
        raise refuse(f"it has {path.stat().st_size} bytes, its task reported {file.size}")
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise refuse(f"it is not a complete Parquet file ({error})") from None
    if footer.num_rows != file.rows:
        raise refuse(f"its footer counts {footer.num_rows} rows, its task reported {file.rows}")
    if not same_schema(footer.schema.to_arrow_schema(), table.file_schema):
        raise refuse(f"its columns are {footer.schema.to_arrow_schema().names}, not those declared")


def _find(delta: DeltaTable, commit_id: str) -> int | None:
    """The version that carries `commit_id`: ours is among the last few unless a crowd committed since."""
    for limit in (20, None):
        for entry in delta.history(limit):
            if entry.get(COMMIT_ID) == commit_id:
                return int(entry["version"])
    return None


def _explain(lake: Lake, table: Table, transactions: Mapping[str, int], error: Exception) -> CommitError:
    fresh = lake.open(table.name)
    taken = [a for a, number in transactions.items() if (fresh.transaction_version(a) or 0) >= number]
    if taken or "oncurrent" in str(error):
        what = ", ".join(taken) or table.name
        return CommitConflict(f"table {table.name!r}: another writer committed {what} first; run the command again")
    return CommitError(f"table {table.name!r}: the commit failed ({error}); nothing was published, run again")


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fsync_log(lake: Lake, table: Table, version: int) -> None:
    """Local commits are not fsynced by deltalake: a power cut could lose an acknowledged one."""
    log = Path(lake.path(table.name)) / "_delta_log"
    with open(log / f"{version:020d}.json", "rb") as entry:
        os.fsync(entry.fileno())
    _fsync_folder(log)
