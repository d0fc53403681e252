"""What Spark counts, against Python's own counting of the same rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from featurize.sketch import TOP_VALUES, Sketch
from featurize.sketch_job import Drawn, Source, draw
from infra.tables import Kind

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = {"word": Kind.CATEGORICAL, "number": Kind.NUMERIC, "tags": Kind.MULTI}
DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


def day_rows(day: int) -> list[dict[str, Any]]:
    """Words of a long tail that moves from day to day, numbers with ties and gaps, lists; a tenth is missing."""
    dice = random.Random(day)

    def maybe(value: Any) -> Any:
        return None if dice.random() < 0.1 else value

    return [
        {
            "arrival": DAYS[day],
            "word": maybe(f"w{int(dice.expovariate(0.05)) + 3 * day}"),
            "number": maybe(dice.choice([0.0, 0.0, dice.gauss(day, 5), float(dice.randrange(9))])),
            "tags": maybe([f"t{dice.randrange(30 + day)}" for _ in range(dice.randrange(4))]),
        }
        for _ in range(700)
    ]


ROWS = {DAYS[d]: day_rows(d) for d in range(3)}


def frame(spark: SparkSession, days: list[str]) -> DataFrame:
    rows = [r for d in days for r in ROWS[d]]
    return spark.createDataFrame(rows, "arrival string, word string, number double, tags array<string>").repartition(3)


def occurrences(day: str, column: str) -> Counter[str]:
    values = [r[column] for r in ROWS[day] if r[column] is not None]
    return Counter(values if column == "word" else [v for row in values for v in row or [""]])


@pytest.fixture(scope="module")
def drawn(spark: SparkSession) -> dict[tuple[str, str, str], Drawn]:
    return draw(spark, [Source("events", frame(spark, DAYS), COLUMNS, DAYS)], {})


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize("column", ["word", "tags"])
def test_the_most_frequent_values(drawn: dict[tuple[str, str, str], Drawn], day: str, column: str) -> None:
    expected = occurrences(day, column)
    top = sorted(expected.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_VALUES]
    sketch = drawn["events", day, column].sketch
    assert list(sketch.values) == top
    assert sketch.other == expected.total() - sum(n for _, n in top) > 0
    assert sketch.distinct == len(expected)
    assert sketch.missing == sum(r[column] is None for r in ROWS[day])
    assert sketch.rows == 700


@pytest.mark.parametrize("day", DAYS)
def test_numbers_are_counted_between_deciles(drawn: dict[tuple[str, str, str], Drawn], day: str) -> None:
    values = np.array([r["number"] for r in ROWS[day] if r["number"] is not None])
    sketch = drawn["events", day, "number"].sketch
    deciles = np.quantile(values, np.arange(1, 10) / 10, method="inverted_cdf")
    assert list(sketch.edges) == sorted({values.min(), *deciles, values.max()})
    bounds = [*sketch.edges, np.inf]
    between = [int(((low < values) & (values <= high)).sum()) for low, high in pairwise(bounds)]
    assert list(sketch.counts) == [0, int((values == values.min()).sum()), *between]
    assert sum(sketch.tally) == 700
    assert sketch.mean == pytest.approx(values.mean())
    assert sketch.std == pytest.approx(values.std())


def test_a_day_is_counted_in_the_bins_of_the_one_before(drawn: dict[tuple[str, str, str], Drawn]) -> None:
    for before, day in pairwise(DAYS):
        for column in ("word", "tags"):
            d = drawn["events", day, column]
            assert d.reference == drawn["events", before, column].sketch
            now = occurrences(day, column)
            named = [now[v] for v, _ in d.reference.values]
            assert d.current == (*named, now.total() - sum(named), d.sketch.missing)
        number = drawn["events", day, "number"]
        assert number.reference is not None
        edges = number.reference.edges
        values = [r["number"] for r in ROWS[day] if r["number"] is not None]
        inside = [sum(low < v <= high for v in values) for low, high in pairwise(edges)]
        below, above = sum(v < edges[0] for v in values), sum(v > edges[-1] for v in values)
        at = sum(v == edges[0] for v in values)
        assert number.current == (below, at, *inside, above, number.sketch.missing)
    assert drawn["events", DAYS[0], "word"].reference is None


def test_day_by_day_equals_all_at_once(spark: SparkSession, drawn: dict[tuple[str, str, str], Drawn]) -> None:
    stored: dict[tuple[str, str], Sketch] = {}
    for day in DAYS:
        alone = draw(spark, [Source("events", frame(spark, [day]), COLUMNS, [day])], stored)
        assert alone == {place: d for place, d in drawn.items() if place[1] == day}
        stored = {(s, c): d.sketch for (s, _, c), d in alone.items()}


def test_a_day_without_rows_and_a_column_without_values(spark: SparkSession) -> None:
    nothing = spark.createDataFrame([("d2", None, None, None)], frame(spark, []).schema)
    found = draw(spark, [Source("events", nothing, COLUMNS, ["d1", "d2"])], {})
    for column, kind in COLUMNS.items():
        assert (found["events", "d1", column].sketch.rows, found["events", "d1", column].sketch.missing) == (0, 0)
        sketch = found["events", "d2", column].sketch
        assert (sketch.kind, sketch.rows, sketch.missing, sum(sketch.tally)) == (kind.value, 1, 1, 1)


def test_a_field_of_another_kind_is_not_compared(spark: SparkSession) -> None:
    stored = {("events", "number"): Sketch("categorical", 5, 0, 1, (("a", 5),))}
    found = draw(spark, [Source("events", frame(spark, DAYS[:1]), {"number": Kind.NUMERIC}, DAYS[:1])], stored)
    assert found["events", DAYS[0], "number"].current is None


def test_executors_need_no_pydantic() -> None:
    look = (
        "import sys, json, featurize.sketch_job, featurize.first_seen\n"
        "print(json.dumps([m for m in ('pydantic', 'torch', 'ray', 'mlflow', 'yaml') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []
