"""The Delta write protocol: Parquet files that tasks have written become one verified commit.

`create_write_transaction` checks no file, no size and no schema, and only records an application
transaction; this module makes up for both. Every commit REPLACES the partitions it names, so that a
command that died anywhere can be run again: the second commit leaves exactly what one undisturbed
commit would have left.

Failure model: a local disk, which is fsynced here; nothing weaker.
"""

from __future__ import annotations

import json
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, RemoveAction

from infra.disk import sync
from infra.errors import CommitConflict, CommitError
from infra.lake import Lake, arrow_schema, brief
from infra.log import COMMIT_ID, TRANSACTIONS, find, make_durable
from infra.schemas import conflicts, create, misfit
from infra.tables import Table

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names that mean the same to a file system, a URL and Hive partitioning, and that vacuum does not skip."""

_READERS = 16
"""Footers that are read at once: on a shared disk the time goes into waiting."""

_ATTEMPTS = 50
"""Times that a commit starts again because writers of other partitions came first; a handful in practice."""


@dataclass(frozen=True)
class DataFile:
    """One Parquet file as its task reports it; `path` is relative to the table's folder."""

    path: str
    size: int
    rows: int
    partition: Mapping[str, str]
    stats: str


def write_file(
    folder: str,
    table: Table,
    partition: Mapping[str, str],
    batches: Sequence[pa.Table],
    order: Sequence[int] = (),
    distinct: Sequence[str] = (),
) -> DataFile:
    """Write rows of ONE partition as a new, fsynced Parquet file and report it; nothing is committed.

    The folders that lead to it are synced by the commit: each once, not once per file.
    Names are random, so a retried or speculative task never touches another attempt's file; `order` stands in
    front, so that readers, which go by path, see the rows in the same order after every rebuild. `distinct` names
    lists of numbers of which most differ; with some, the file has no dictionaries and is written faster. Raises
    CommitError when the rows do not fit the table or the partition cannot be a folder's name.
    """
    directory = _directory(table, partition)
    try:
        rows = pa.concat_tables(batches).select(table.file_schema.names).cast(table.file_schema).combine_chunks()
    except (KeyError, ValueError, pa.ArrowException) as error:  # a missing column, a null, another type
        raise CommitError(
            f"table {table.name!r}, partition {dict(partition)}: {brief(error)}; check its rows"
        ) from error
    name = "-".join(["part", *(f"{n:05d}" for n in order), uuid.uuid4().hex])
    target = Path(folder) / directory / f"{name}.parquet"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as sink:
            pq.write_table(rows, sink, compression="zstd", row_group_size=1 << 18, **_encoding(distinct))
            sink.flush()
            os.fsync(sink.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        raise CommitError(
            f"table {table.name!r}, file {target}: cannot be written ({brief(error)}); nothing was committed: make "
            "room or mend the disk, and run the command again"
        ) from error
    path, stats = target.relative_to(folder).as_posix(), json.dumps({"numRecords": rows.num_rows})
    return DataFile(path, target.stat().st_size, rows.num_rows, dict(partition), stats)


def _encoding(distinct: Sequence[str]) -> dict[str, Any]:
    """Parquet encodings for tables with `distinct` lists: bytes of equal weight side by side, which compress well.

    No dictionaries, not of the users either: measured, they take time and save no room.
    """
    if not distinct:
        return {}
    return {
        "use_dictionary": False,
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in distinct},
    }


def commit(
    lake: Lake,
    table: Table,
    files: Sequence[DataFile],
    *,
    replace: Mapping[str, Sequence[str]],
    metadata: Mapping[str, Any],
    renew: bool = False,
) -> int:
    """Replace the partitions named by `replace` by `files`, in one commit; returns its version.

    `replace` maps a partition column to values, e.g. {"arrival": ["2026-01-03"]}, the table's first partition
    column among them; every file must lie inside it. Each value of that column has an application transaction
    of its own, so that of two writers of one value, new or not, one fails; writers of other values both land.
    With `renew`, a table whose columns cannot evolve into the declared ones starts anew with these in the same
    commit: its other partitions, which hold the old ones, leave it (pinned versions stay as they are).

    Raises CommitError when a file is not what its report says (nothing is committed then), and
    CommitConflict when another writer came first.
    """
    _check_replace(table, replace)
    renew = renew and bool(conflicts(lake, table))
    delta = lake.open(table.name) if renew else create(lake, table)
    stored = table.schema if renew else arrow_schema(delta)
    expected = pa.schema([f for f in stored if f.name not in table.partition_by])
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(lambda file: _verify(lake, table, expected, file, replace), files))
    known = [path for path, _ in lake.data_files(delta, table.name, replace)]
    _refuse_known(table, files, known, lake.path(table.name))
    first = table.partition_by[0]
    app_ids = [f"{table.name}:{first}={value}" for value in replace[first]]
    return _land(lake, table, delta, files, replace, app_ids, metadata, renew)


def astray(
    lake: Lake, table: Table, version: int, column: str, values: Sequence[str]
) -> tuple[list[DataFile], list[str]]:
    """The partitions among `values` that the newest version holds otherwise than `version`, and their files then.

    A commit on behalf of `version` (the published state) puts them back: since then somebody committed the
    same partitions for another contract, or died before publishing.
    """
    now, then = (_files_by(lake, table, v, column) for v in (lake.version(table.name), version))
    moved = [v for v in values if {f.path for f in now.get(v, [])} != {f.path for f in then.get(v, [])}]
    return [f for v in moved for f in then.get(v, [])], moved


def _files_by(lake: Lake, table: Table, version: int | None, column: str) -> dict[str, list[DataFile]]:
    out: dict[str, list[DataFile]] = {}
    for a in pa.table(lake.open(table.name, version).get_add_actions()).to_pylist():
        stats = json.dumps({"numRecords": a["num_records"]})
        file = DataFile(a["path"], a["size_bytes"], a["num_records"], a["partition"], stats)
        out.setdefault(a["partition"][column], []).append(file)
    return out


def append_rows(lake: Lake, table: Table, rows: Sequence[Mapping[str, Any]], *, app_id: str) -> bool:
    """Append a few rows to an unpartitioned table of records, once per `app_id`.

    Returns False, and appends nothing, when that `app_id` has been committed before.
    """
    delta = create(lake, table)
    if delta.transaction_version(app_id) is not None:
        return False
    data = pa.Table.from_pylist([dict(r) for r in rows], schema=table.schema)
    file = write_file(lake.path(table.name), table, {}, [data])
    try:
        _land(lake, table, delta, [file], None, [app_id], {})
    except CommitConflict:
        if lake.open(table.name).transaction_version(app_id) is None:
            raise
        return False
    return True


def rewrite(lake: Lake, table: Table, delta: DeltaTable, file: DataFile, old: Sequence[str]) -> int:
    """Put `file` in the place of the files `old` of an open record table: the same rows, in one commit.

    Appends that come in between stay. The application transaction is what keeps a second rewrite from landing:
    deltalake lets two commits remove the same files, and both add theirs. Raises CommitConflict for the second.
    """
    expected = pa.schema([f for f in arrow_schema(delta) if f.name not in table.partition_by])
    _verify(lake, table, expected, file, {})
    return _land(lake, table, delta, [file], None, [f"{table.name}:rewrite"], {}, remove=old)


def _land(
    lake: Lake,
    table: Table,
    delta: DeltaTable,
    files: Sequence[DataFile],
    replace: Mapping[str, Sequence[str]] | None,
    app_ids: Sequence[str],
    metadata: Mapping[str, Any],
    renew: bool = False,
    remove: Sequence[str] = (),
) -> int:
    """Make the commit that follows `delta` durable; returns its version.

    deltalake fails a commit when a concurrent one removed any file, of whatever partition. As long as
    nobody else used our application ids, the same commit is tried again on the newer table.
    """
    commit_id = uuid.uuid4().hex
    base = delta.version()
    before = {a: delta.transaction_version(a) or 0 for a in app_ids}
    carried = {**metadata, COMMIT_ID: commit_id, TRANSACTIONS: str(len(app_ids))}
    folder = lake.path(table.name)
    _sync_folders(folder, table, files)
    for _ in range(_ATTEMPTS):
        failure: Exception | None = None
        try:
            _transact(lake, delta, table, files, replace, {a: n + 1 for a, n in before.items()}, carried, renew, remove)
        except Exception as error:
            failure = error
        # An error does not mean "not committed": the answer may have been lost. The log knows.
        version = find(folder, commit_id, base)
        if version is not None:
            try:
                make_durable(folder, version, lake.root)
            except OSError as error:
                raise CommitError(
                    f"table {table.name!r}: version {version} cannot be made durable ({brief(error)}); mend the disk "
                    "and run the command again"
                ) from error
            return version
        if failure is None:
            raise CommitError(f"table {table.name!r}: the commit returned but is not in the log; run the command again")
        delta = lake.open(table.name)
        if taken := [a for a, number in before.items() if (delta.transaction_version(a) or 0) != number]:
            raise CommitConflict(
                f"table {table.name!r}: another writer committed {', '.join(taken)} first; run the command again"
            ) from failure
        if not isinstance(failure, CommitFailedError):
            raise CommitError(
                f"table {table.name!r}: the commit failed ({brief(failure)}); nothing was published, run again"
            ) from failure
    raise CommitConflict(
        f"table {table.name!r}: other writers came first {_ATTEMPTS} times; run the command again"
    ) from failure


def _sync_folders(folder: str, table: Table, files: Sequence[DataFile]) -> None:
    """Flush the entries of every folder that leads to the files, up to the table's: each may be new."""
    levels = len(table.partition_by) + 1
    leading = {parent for file in files for parent in list((Path(folder) / file.path).parents)[:levels]}
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(sync, leading))
    except OSError as error:
        raise CommitError(
            f"table {table.name!r}: the folders of its new files cannot be made durable ({brief(error)}); nothing was "
            "committed: mend the disk, and run the command again"
        ) from error


def _transact(
    lake: Lake,
    delta: DeltaTable,
    table: Table,
    files: Sequence[DataFile],
    replace: Mapping[str, Sequence[str]] | None,
    transactions: Mapping[str, int],
    metadata: Mapping[str, Any],
    renew: bool,
    remove: Sequence[str],
) -> None:
    root = Path(lake.path(table.name))
    changes = not remove  # a rewrite of the same rows changes no data
    actions: list[AddAction | RemoveAction] = [
        AddAction(f.path, f.size, dict(f.partition), (root / f.path).stat().st_mtime_ns // 1_000_000, changes, f.stats)
        for f in files
    ]
    actions += [RemoveAction(path, False, time.time_ns() // 1_000_000) for path in remove]
    delta.create_write_transaction(
        actions,
        mode="append" if replace is None else "overwrite",
        # An overwrite puts the schema given here over the stored one, columns that only that one has included.
        schema=Schema.from_arrow(table.schema) if renew else delta.schema(),
        partition_by=list(table.partition_by),
        partition_filters=None if replace is None or renew else [(c, "in", list(v)) for c, v in replace.items()],
        commit_properties=CommitProperties(
            custom_metadata={k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()},
            app_transactions=[Transaction(app_id, number) for app_id, number in transactions.items()],
        ),
    )


def _check_replace(table: Table, replace: Mapping[str, Sequence[str]]) -> None:
    """It names partitions: deltalake takes an empty filter for the whole table.

    The first partition column is always among them, so that writers whose partitions overlap share an
    application transaction.
    """
    first = table.partition_by[:1]
    if not set(first) <= set(replace) <= set(table.partition_by) or not replace:
        raise CommitError(
            f"table {table.name!r} is partitioned by {table.partition_by}: replace names {list(replace)}, not {first}"
        )
    for column, values in replace.items():
        if isinstance(values, str) or not values or not all(map(_plain, values)):
            raise CommitError(f"table {table.name!r}: replace {column}={values!r} is not a list of plain values")


def _directory(table: Table, partition: Mapping[str, str]) -> str:
    """The folder of a partition; only values that need no escaping, whoever reads the path."""
    if set(partition) != set(table.partition_by):
        raise CommitError(f"table {table.name!r}: partition {dict(partition)} does not name {table.partition_by}")
    for column, value in partition.items():
        if not _plain(value):
            raise CommitError(
                f"table {table.name!r}: partition {column}={value!r} cannot be a folder's name; "
                "use letters, digits, '-', '_' and '.', a letter or digit first"
            )
    return "/".join(f"{c}={partition[c]}" for c in table.partition_by)


def _verify(
    lake: Lake, table: Table, expected: pa.Schema, file: DataFile, replace: Mapping[str, Sequence[str]]
) -> None:
    """The file lies in its partition's folder, inside `replace`, and has the reported size and rows and columns
    that fit the `expected` ones (a nullable one may be lacking: a file put back may be older than the column)."""

    def refuse(why: str) -> CommitError:
        return CommitError(f"table {table.name!r}, file {file.path!r}: {why}; nothing was committed")

    folder, _, name = file.path.rpartition("/")
    if folder != _directory(table, file.partition) or not _plain(name):
        raise refuse(f"it does not lie in its partition's folder {_directory(table, file.partition)!r} by a plain name")
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
        schema = footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise refuse(f"it is not a complete Parquet file ({brief(error)})") from None
    if footer.num_rows != file.rows or _counted(file.stats) != file.rows:
        raise refuse(f"its footer counts {footer.num_rows} rows, its task reported {file.rows}, {file.stats}")
    if misfit(schema, expected):
        raise refuse(f"its columns are ({_types(schema)}), declared are ({_types(expected)})")
    if loose := [f.name for f in schema if f.nullable and not expected.field(f.name).nullable]:
        raise refuse(f"its columns {', '.join(loose)} may hold nulls, which the table does not allow")


def _refuse_known(table: Table, files: Sequence[DataFile], committed: Sequence[str], root: str) -> None:
    """A path that the same commit adds and removes, or adds twice, means different things to different readers."""
    seen = set(committed)
    for file in files:
        if f"{root}/{file.path}" in seen:
            raise CommitError(f"table {table.name!r}, file {file.path!r}: it is committed already; write a new file")
        seen.add(f"{root}/{file.path}")


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in schema)


def _counted(stats: str) -> Any:
    """The number of rows that readers will take from the log without opening the file."""
    try:
        return json.loads(stats)["numRecords"]
    except (ValueError, KeyError, TypeError):
        return None


def _plain(value: Any) -> bool:
    return isinstance(value, str) and _PLAIN.fullmatch(value) is not None
