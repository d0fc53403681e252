"""Fewer files for the same rows: record tables into one file, logs into checkpoints.

Only unpartitioned record tables (`runs`, `promotions`) are rewritten: each of their rows comes as a file of its
own. The partitioned tables hold one file per partition and task, and published versions of them are compared
file by file (infra.commit.astray), so a rewrite of the same rows would pass for a change of what was published.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra import log
from infra.commit import rewrite, write_file
from infra.errors import DataRefused
from infra.lake import Lake
from infra.schemas import create
from infra.tables import Table


@dataclass(frozen=True)
class Compacted:
    """Data files before and after, and the rows in them."""

    table: str
    before: int
    after: int
    rows: int


def compact(lake: Lake, table: Table) -> Compacted:
    """Rewrite a record table's files as one, in one commit that changes no row.

    Rows appended meanwhile stay; raises CommitConflict when another compaction of the table came first.
    """
    delta = create(lake, table)  # with columns that were declared since then
    old = [path for path, _ in lake.data_files(delta, table.name)]
    rows = lake.read(table.name, delta.version())
    if unknown := [name for name in rows.column_names if name not in table.schema.names]:
        raise DataRefused(
            f"table {table.name!r} has columns that this logs2rec does not know, {', '.join(unknown)}: upgrade"
        )
    if len(old) > 1:
        root = f"{lake.path(table.name)}/"
        file = write_file(lake.path(table.name), table, {}, [rows])
        rewrite(lake, table, delta, file, [path.removeprefix(root) for path in old])
    return Compacted(table.name, len(old), min(len(old), 1), rows.num_rows)


def checkpoint(lake: Lake, table: str) -> bool:
    """Make a checkpoint of a table whose last one lies more than CHECKPOINT_INTERVAL commits back.

    Tables make their own on the way; those of an older format, or whose writer was killed, may lack some.
    """
    folder = lake.path(table)
    delta = lake.open(table)
    last = max(log.checkpoints(folder), default=0)
    if delta.version() - last <= log.CHECKPOINT_INTERVAL:
        return False
    delta.create_checkpoint()
    log.make_durable(folder, delta.version(), lake.root)
    return True


def repair(lake: Lake, table: str) -> list[str]:
    """Remove checkpoints that cannot be read; every entry they sum up must be there. Returns their names.

    Raises DataRefused, and removes nothing, when an entry is missing or not whole.
    """
    folder = lake.path(table)
    bad = log.unreadable_checkpoints(folder)
    if bad:
        try:
            list(log.history(folder))
        except ValueError as error:
            raise DataRefused(
                f"table {table!r}: {bad[0].name} is unreadable and the log's entries cannot stand in for it ({error}); "
                "restore the folder _delta_log from a copy"
            ) from None
    for path in bad:
        path.unlink()
    return [path.name for path in bad]
