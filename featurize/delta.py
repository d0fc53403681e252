"""Delta through Spark without a Delta jar: tasks write Parquet files, the driver commits them.

Reading: the files and schema of a pinned version, from the Delta log. Writing: `mapInArrow` writes
files into the table's folder and returns one report row per file; infra.commit verifies and commits. Where
tasks need numbers and no rows, `each` hands these out.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from infra.commit import DataFile, write_file
from infra.lake import Lake, Where
from infra.tables import Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

#: Rows that a task holds before it closes a file: whole row groups, bounded memory.
ROWS_PER_FILE = 4 << 20
#: Bytes that one task of `each` reads, as Spark's own scans.
BYTES_PER_TASK = 128 << 20
T = TypeVar("T")
_REPORT = "path string, size long, rows long, partition string, stats string"


def read(spark: SparkSession, lake: Lake, table: Table, version: int | None, where: Where | None = None) -> DataFrame:
    """The rows of a pinned version; no rows when `version` is None (nothing was published yet)."""
    from pyspark.sql.pandas.types import from_arrow_schema

    schema = from_arrow_schema(table.schema)
    files = lake.files(table.name, version, where) if version is not None else []
    if not files:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).option("basePath", lake.path(table.name)).parquet(*files)


def write(frame: DataFrame, lake: Lake, table: Table) -> list[DataFile]:
    """Write the frame's rows as files of `table`; they count for nothing until they are committed.

    The frame's partitions must each be sorted by the table's partition columns first.
    """
    folder = lake.path(table.name)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for file in _write_runs(folder, table, batches, task_number()):
            partition = json.dumps(dict(file.partition))
            yield pa.RecordBatch.from_pydict(
                {
                    "path": [file.path],
                    "size": [file.size],
                    "rows": [file.rows],
                    "partition": [partition],
                    "stats": [file.stats],
                }
            )

    rows = frame.select(*table.schema.names).mapInArrow(task, _REPORT).collect()
    return [DataFile(r.path, r.size, r.rows, json.loads(r.partition), r.stats) for r in rows]


def task_number() -> int:
    """The number of the Spark task this runs in: the same rows come to the same number in every attempt."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return context.partitionId() if context is not None else 0


def each(spark: SparkSession, count: int, work: Callable[[int], Iterable[T]], size: int = 0) -> list[T]:
    """What `work` yields for 0 … count - 1; Spark hands out the numbers, no row passes through the JVM.

    Of little work (`size`: bytes to read, all together) a task takes several numbers: starting one costs more.
    """
    tasks = min(count, max(spark.sparkContext.defaultParallelism, -(-size // BYTES_PER_TASK)))

    def task(numbers: Iterable[int]) -> Iterator[T]:
        for number in numbers:
            yield from work(number)

    # Half the time of a DataFrame job that does nothing: there is no plan to make.
    return spark.sparkContext.parallelize(range(count), tasks).mapPartitions(task).collect()


def together(sized: Iterable[tuple[T, int]], most: int) -> list[list[T]]:
    """In order, as many side by side as have at most that size; a larger one stands alone.

    >>> together([("a", 2), ("b", 3), ("c", 1), ("d", 9)], 5)
    [['a', 'b'], ['c'], ['d']]
    """
    parts: list[list[T]] = []
    room = 0
    for value, size in sized:
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1].append(value)
        room -= size
    return parts


def _write_runs(folder: str, table: Table, batches: Iterator[pa.RecordBatch], number: int = 0) -> Iterator[DataFile]:
    """One file per run of rows with equal partition values, or per ROWS_PER_FILE of them."""
    held: list[pa.Table] = []
    current: tuple[str, ...] | None = None
    written = itertools.count()

    def close() -> DataFile:
        assert current is not None
        partition = dict(zip(table.partition_by, current, strict=True))
        return write_file(folder, table, partition, held, (number, next(written)))

    for batch in batches:
        rows = pa.Table.from_batches([batch])
        for values, run in _runs(rows, table.partition_by):
            if held and (values != current or sum(t.num_rows for t in held) >= ROWS_PER_FILE):
                yield close()
                held = []
            current = values
            held.append(run)
    if held:
        yield close()


def _runs(rows: pa.Table, columns: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], pa.Table]]:
    """Slices of consecutive rows with equal values in `columns`."""
    if not columns or rows.num_rows == 0:
        if rows.num_rows:
            yield (), rows
        return
    keys = [rows[c].combine_chunks() for c in columns]
    start = 0
    ends = sorted({e for key in keys for e in _run_ends(key)})
    for end in ends:
        yield tuple(str(k[start].as_py()) for k in keys), rows.slice(start, end - start)
        start = end


def _run_ends(key: pa.Array) -> list[int]:
    import pyarrow.compute as pc

    flat = key.chunk(0) if isinstance(key, pa.ChunkedArray) else key
    return list(pc.run_end_encode(flat).run_ends.to_pylist())
