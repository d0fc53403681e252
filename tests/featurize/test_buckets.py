"""featurize/buckets.py: Spark's hash in numpy, and buckets that a table was written with."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from featurize import buckets
from infra.errors import CommitError, DataRefused
from infra.lake import Lake
from infra.tables import HISTORIES
from tests.conftest import put

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def history(ds: str) -> dict[str, Any]:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    values = {"user": "u", "items": [2], "ts": [at], "is_target": None, "first_target": None, "first_target_ts": None}
    return {"ds": ds, "kind": "tail", "bucket": "0", **values}


@pytest.mark.parametrize("value", ["md5(user)", None])
def test_another_function_is_refused(lake: Lake, value: str | None) -> None:
    buckets.ensure(lake, HISTORIES, 2)
    buckets.ensure(lake, HISTORIES, 2)
    table = lake.open(HISTORIES.name)
    stored = {**table.metadata().configuration}
    assert (stored[buckets.FUNCTION_KEY], stored[buckets.COUNT_KEY]) == (buckets.FUNCTION, "2")
    if value is None:
        bare = Lake(lake.root / "bare")
        version = put(bare, HISTORIES, [history("2024-01-01")])
        assert version == 1
        with pytest.raises(CommitError, match="does not say how it is bucketed"):
            buckets.ensure(bare, HISTORIES, 2)
    else:
        table.alter.set_table_properties({buckets.FUNCTION_KEY: value}, raise_if_not_exists=False)
        with pytest.raises(DataRefused, match="bucketed by md5"):
            buckets.ensure(lake, HISTORIES, 2)


def test_the_bucket_is_where_spark_sends_the_user(spark: SparkSession) -> None:
    rng = random.Random(1)
    alphabet = "aB1 é\u0301😀\x00ÿ"
    users = ["", "a", "abc", "abcd", "x" * 4096, *("".join(rng.choices(alphabet, k=n)) for n in range(200))]
    rows = spark.createDataFrame([(u,) for u in users], "user string").selectExpr("user", "pmod(hash(user), 7) b")
    expected = {r.user: r.b for r in rows.collect()}
    array = pa.array(["", *users]).slice(1)  # an array that does not begin at the start of its buffers
    assert dict(zip(users, buckets.bucket_of(array, 7).tolist(), strict=True)) == expected
