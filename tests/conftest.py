"""What many tests share: one Spark session, an empty lake, rows put into tables without Spark, the real data."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from infra.commit import commit, write_file
from infra.lake import Lake
from infra.tables import Table
from tests.pipelines.commands import SPARK

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Tests run side by side: threads that spin while they wait for each other take the others' cores (84 s, not 0.6).
os.environ.setdefault("OMP_NUM_THREADS", "1")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one session of the test run; its JVM ends with it."""
    from infra.spark import SparkSettings, session

    with session(SparkSettings.model_validate(SPARK), "tests") as opened:
        yield opened


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake."""
    return Lake(tmp_path / "lake")


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """The raw MovieLens log with its side files, where it is at hand."""
    folder = REAL_DATA / "ml-100k"
    if not folder.is_dir():
        pytest.skip("MovieLens 100K is not at ../shared/data/ml-100k")
    return folder


def put(lake: Lake, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Commit rows to a partitioned table, without Spark; returns the version."""
    parts: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[tuple(row[c] for c in table.partition_by)].append(dict(row))
    files = [
        write_file(
            lake.path(table.name),
            table,
            dict(zip(table.partition_by, values, strict=True)),
            [pa.Table.from_pylist(some, schema=table.schema)],
        )
        for values, some in parts.items()
    ]
    first = table.partition_by[0]
    return commit(lake, table, files, replace={first: sorted({row[first] for row in rows})}, metadata={})
