"""Tables as they are stored against tables as they are declared: creation, evolution, format version.

The stored schema lives in the Delta log. A table evolves by gaining nullable columns, and only so: older
files do not hold them and read as null, and a stored nullable column that is no longer declared reads as
null in newer files. Everything else (a type, nullability, partitioning) needs the table anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError

from infra.errors import CommitConflict, CommitError, SchemaChanged
from infra.lake import FORMAT_PROPERTY, Lake, arrow_schema, brief, same_schema
from infra.log import CHECKPOINT_INTERVAL, make_durable
from infra.tables import FORMAT_VERSION, Table

_PROPERTIES: Mapping[str, str] = {
    # Logs are kept for ever until our own maintenance removes them: commit metadata is the audit trail.
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.enableExpiredLogCleanup": "false",
    "delta.checkpointInterval": str(CHECKPOINT_INTERVAL),
}
_ATTEMPTS = 10


def create(lake: Lake, table: Table) -> DeltaTable:
    """The newest version of the table, made with this project's properties unless it is there, and with the declared
    columns it lacked.

    Raises SchemaChanged when the stored columns cannot evolve into the declared ones.
    """
    if not lake.exists(table.name):
        try:
            DeltaTable.create(
                lake.path(table.name),
                schema=table.schema,
                partition_by=list(table.partition_by),
                mode="ignore",
                description=table.meaning,
                configuration={**_PROPERTIES, FORMAT_PROPERTY: str(FORMAT_VERSION)},
                # A retry would land as version 1 and put its own schema over that of whoever was first.
                commit_properties=CommitProperties(max_commit_retries=0),
                raise_if_key_not_exists=False,  # the format version is a property of ours
            )
        except DeltaError as error:
            if not lake.exists(table.name):  # else another process created it first
                raise CommitError(
                    f"table {table.name!r} cannot be created under {lake.root} ({brief(error)})"
                ) from error
    return _evolved(lake, table)


def check_schema(lake: Lake, table: Table) -> None:
    """Raise SchemaChanged when the table exists and its columns cannot evolve into the declared ones."""
    if lake.exists(table.name):
        _check(lake, table, lake.open(table.name))


def conflicts(lake: Lake, table: Table) -> list[str]:
    """Why the stored table, if there is one, cannot evolve into the declared one; empty if it can."""
    return _conflicts(lake.open(table.name), table) if lake.exists(table.name) else []


def misfit(file: pa.Schema, stored: pa.Schema) -> list[str]:
    """The columns on whose account a file's rows cannot stand in a table: unknown, of another type, or not there
    though they may not be null. `stored` is the table's schema without its partition columns."""
    known = {f.name: f for f in stored}
    odd = [f.name for f in file if f.name not in known or not same_schema(pa.schema([f]), pa.schema([known[f.name]]))]
    return [*odd, *(f.name for f in stored if f.name not in file.names and not f.nullable)]


def _evolved(lake: Lake, table: Table) -> DeltaTable:
    """Add the columns that are declared and not stored, in one commit; whoever comes second finds them there."""
    for _ in range(_ATTEMPTS):
        delta = lake.open(table.name)
        _check(lake, table, delta)
        stored = arrow_schema(delta).names
        missing = pa.schema([f for f in table.schema if f.name not in stored])
        if not missing.names:
            return delta
        try:
            delta.alter.add_columns(
                Schema.from_arrow(missing).fields, commit_properties=CommitProperties(max_commit_retries=0)
            )
        except CommitFailedError:
            continue  # somebody else committed: look again
        make_durable(lake.path(table.name), delta.version(), lake.root)
        return delta
    raise CommitConflict(f"table {table.name!r}: other writers came first {_ATTEMPTS} times; run the command again")


def _check(lake: Lake, table: Table, delta: DeltaTable) -> None:
    if found := _conflicts(delta, table):
        raise SchemaChanged(
            f"table {table.name!r} under {lake.root} was written with other columns than are now asked for: "
            f"{'; '.join(found)}\n"
            f"  stored:   {_columns(arrow_schema(delta), delta.metadata().partition_columns)}\n"
            f"  declared: {_columns(table.schema, table.partition_by)}\n"
            "run `logs2rec run --rebuild`, which reads every arrival's raw files again, or use another workspace"
        )


def _conflicts(delta: DeltaTable, table: Table) -> list[str]:
    stored, declared = arrow_schema(delta), table.schema
    by, asked = delta.metadata().partition_columns, list(table.partition_by)
    found = [f"it is partitioned by {by}, not by {asked}"] if by != asked else []
    for field in declared:
        there = stored.field(field.name) if field.name in stored.names else None
        if there is None:
            if not field.nullable:
                found.append(f"{field.name} is new and may not be null, which older rows would be")
        elif not same_schema(pa.schema([there]), pa.schema([field])):
            found.append(f"{field.name} is {there.type}, not {field.type}")
        elif there.nullable != field.nullable:
            found.append(f"{field.name} may {'' if there.nullable else 'not '}be null")
    gone = [f.name for f in stored if f.name not in declared.names and not f.nullable]
    return [*found, *(f"{name} may not be null and is no longer declared" for name in gone)]


def _columns(schema: pa.Schema, partition_by: Sequence[str]) -> str:
    names = ", ".join(f"{f.name} {f.type}{'' if f.nullable else ' not null'}" for f in schema)
    return f"{names}; partitioned by {', '.join(partition_by) or 'nothing'}"
