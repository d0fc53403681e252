"""Draws the sketches of many columns on many days: one pass for the deciles, one for all counts.

A day's values are also counted in the bins of the day before, so that the two can be compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from featurize.sketch import TOP_VALUES, Sketch, bin_counts, numeric_bins, value_counts
from infra.tables import Kind

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_DECILES = [i / 10 for i in range(1, 10)]
_ACCURACY = 10_000  # deciles may be off by one row in 10,000; they only place the bins, all counts are exact
_TALLY = "source string, label string, column string, part string, key string, n long"
_VALUE, _OWN, _REFERENCE, _ROWS = "value", "own", "reference", "rows"

Place = tuple[str, str, str]
"""(source, label, column); the label is the day, or the day of a side file's snapshot."""


@dataclass(frozen=True)
class Source:
    """Rows to sketch: `frame` has the columns and `arrival`, whose values are `labels`, oldest first."""

    name: str
    frame: DataFrame
    columns: Mapping[str, Kind]
    labels: Sequence[str]

    def places(self) -> Iterator[tuple[Place, Kind]]:
        """Every sketch to draw."""
        for label in self.labels:
            for column, kind in self.columns.items():
                yield (self.name, label, column), kind

    def before(self, place: Place) -> Place | None:
        """The same column on the label before; None for the first."""
        position = list(self.labels).index(place[1])
        return (place[0], self.labels[position - 1], place[2]) if position else None


@dataclass(frozen=True)
class Drawn:
    """A day's sketch; the day it is compared with, and this day's counts in that one's bins."""

    sketch: Sketch
    reference: Sketch | None = None
    current: tuple[int, ...] | None = None


def draw(
    spark: SparkSession, sources: Sequence[Source], stored: Mapping[tuple[str, str], Sketch]
) -> dict[Place, Drawn]:
    """The sketch of every (source, label, column), counted also in the bins of the label before.

    `stored` holds, by (source, column), the sketches that the first label of each source is compared with.
    """
    kinds = {place: kind for s in sources for place, kind in s.places()}
    before = {place: s.before(place) for s in sources for place, _ in s.places()}
    numeric = {p: n for s in sources for p, n in _numeric(s).items()}

    def reference_edges(place: Place) -> list[float] | None:
        earlier = before[place]
        if earlier is not None:
            return numeric[earlier].edges if earlier in numeric else []
        old = stored.get((place[0], place[2]))
        return list(old.edges) if old is not None and old.kind == kinds[place] else None

    edges = {p: numeric[p].edges if p in numeric else [] for p, k in kinds.items() if k is Kind.NUMERIC}
    references = {p: bins for p in edges if (bins := reference_edges(p)) is not None}
    parts = [s.frame.mapInArrow(_counter(s.name, dict(s.columns), edges, references), _TALLY) for s in sources]
    if not parts:
        return {}
    names = ("source", "label", "column", "part", "key")
    tally = reduce(lambda a, b: a.unionByName(b), parts).groupBy(*names).agg({"n": "sum"})
    tally = tally.withColumnRenamed("sum(n)", "n").persist()
    try:
        found = _gather(tally)
        sketches = {p: _sketch(p, k, found, numeric.get(p)) for p, k in kinds.items()}
        olds = {p: sketches[b] if (b := before[p]) is not None else stored.get((p[0], p[2])) for p in kinds}
        wanted = [(*p, v) for p, old in olds.items() if old is not None for v, _ in old.values]
        known = _counts_of(spark, tally, wanted)
    finally:
        tally.unpersist()
    return {p: _drawn(p, sketches[p], olds[p], found, known) for p in kinds}


@dataclass(frozen=True)
class _Numeric:
    edges: list[float]
    mean: float | None
    std: float | None


def _numeric(source: Source) -> dict[Place, _Numeric]:
    """Edges and moments of the numeric columns, per label."""
    from pyspark.sql import functions as F

    columns = [c for c, k in source.columns.items() if k is Kind.NUMERIC]
    if not columns:
        return {}
    figures = {
        "low": F.min,
        "high": F.max,
        "mean": F.avg,
        "std": F.stddev_pop,
        "deciles": lambda c: F.percentile_approx(c, _DECILES, _ACCURACY),
    }
    rows = source.frame.groupBy("arrival").agg(
        *(F.struct(*(of(F.col(c)).alias(name) for name, of in figures.items())).alias(c) for c in columns)
    )
    out = {}
    for row in rows.collect():
        for column in columns:
            f = row[column]
            edges = sorted({f.low, *(f.deciles or ()), f.high} - {None})
            out[source.name, row.arrival, column] = _Numeric(edges, _rounded(f["mean"]), _rounded(f["std"]))
    return out


def _rounded(value: float | None) -> float | None:
    """Without the last digits, which depend on the order in which a sum was taken."""
    return None if value is None else float(f"{value:.12g}")


def _counter(
    source: str,
    columns: dict[str, Kind],
    edges: Mapping[Place, list[float]],
    references: Mapping[Place, list[float]],
) -> Any:
    """The task that counts batches; plain values only travel with it."""

    def rows_of(batch: pa.Table, label: str) -> Iterator[tuple[str, str, str | None, int]]:
        yield "", _ROWS, None, batch.num_rows
        for column, kind in columns.items():
            values = batch[column].combine_chunks()
            yield column, _VALUE, None, values.null_count
            values = values.drop_null()
            if kind is not Kind.NUMERIC:
                yield from ((column, _VALUE, key, n) for key, n in value_counts(values, kind))
                continue
            numbers, place = values.to_numpy(), (source, label, column)
            for part, bins in ((_OWN, edges), (_REFERENCE, references)):
                if place in bins:
                    counts = bin_counts(numbers, bins[place])
                    yield from ((column, part, str(i), n) for i, n in enumerate(counts) if n)

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for label in pc.unique(batch.column("arrival")).to_pylist():
                mine = table.filter(pc.equal(table["arrival"], label))
                rows = [(source, label, *row) for row in rows_of(mine, label)]
                fields = (pa.string(),) * 5 + (pa.int64(),)
                arrays = [pa.array(c, t) for c, t in zip(zip(*rows, strict=True), fields, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, ["source", "label", "column", "part", "key", "n"])

    return task


@dataclass(frozen=True)
class _Found:
    """By place: counts that are no values' (by part and key), the top values, and (occurrences, distinct)."""

    plain: dict[Place, dict[tuple[str, str | None], int]]
    top: dict[Place, list[tuple[str, int]]]
    totals: dict[Place, tuple[int, int]]


def _gather(tally: DataFrame) -> _Found:
    """Everything but the values beyond the top ones, in one job."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    column = Window.partitionBy("source", "label", "column")
    value = (F.col("part") == _VALUE) & F.col("key").isNotNull()
    rest = tally.where(~value).withColumns({"total": F.lit(0), "distinct": F.lit(0)})
    top = (
        tally.where(value)
        .withColumn("total", F.sum("n").over(column))
        .withColumn("distinct", F.count("*").over(column))
        .withColumn("rank", F.row_number().over(column.orderBy(F.desc("n"), "key")))
        .where(F.col("rank") <= TOP_VALUES)
        .drop("rank")
    )
    found = _Found({}, {}, {})
    for r in rest.unionByName(top).collect():
        place = (r.source, r.label, r.column)
        if r.part == _VALUE and r.key is not None:
            found.top.setdefault(place, []).append((r.key, r.n))
            found.totals[place] = (r.total, r.distinct)
        else:
            found.plain.setdefault(place, {})[r.part, r.key] = r.n
    return found


def _sketch(place: Place, kind: Kind, found: _Found, numeric: _Numeric | None) -> Sketch:
    plain = found.plain.get(place, {})
    rows = found.plain.get((place[0], place[1], ""), {}).get((_ROWS, None), 0)
    missing = plain.get((_VALUE, None), 0)
    if kind is Kind.NUMERIC:
        edges = numeric.edges if numeric is not None else []
        counts = tuple(plain.get((_OWN, str(i)), 0) for i in range(len(numeric_bins(edges))))
        mean, std = (numeric.mean, numeric.std) if numeric is not None else (None, None)
        return Sketch(kind.value, rows, missing, edges=tuple(edges), counts=counts, mean=mean, std=std)
    top = sorted(found.top.get(place, []), key=lambda pair: (-pair[1], pair[0]))
    total, distinct = found.totals.get(place, (0, 0))
    return Sketch(kind.value, rows, missing, distinct, tuple(top), total - sum(n for _, n in top))


def _counts_of(
    spark: SparkSession, tally: DataFrame, wanted: Iterable[tuple[str, str, str, str]]
) -> dict[tuple[str, str, str, str], int]:
    """The counts of single values (source, label, column, value)."""
    from pyspark.sql import functions as F

    rows = list(wanted)
    if not rows:
        return {}
    names = ["source", "label", "column", "key"]
    asked = F.broadcast(spark.createDataFrame(rows, ", ".join(f"{n} string" for n in names)))
    found = tally.where(F.col("part") == _VALUE).join(asked, names)
    return {(r.source, r.label, r.column, r.key): r.n for r in found.collect()}


def _drawn(
    place: Place,
    sketch: Sketch,
    reference: Sketch | None,
    found: _Found,
    known: Mapping[tuple[str, str, str, str], int],
) -> Drawn:
    if reference is None or reference.kind != sketch.kind:
        return Drawn(sketch)
    if sketch.kind == Kind.NUMERIC:
        plain = found.plain.get(place, {})
        counts = [plain.get((_REFERENCE, str(i)), 0) for i in range(len(numeric_bins(reference.edges)))]
    else:
        counts = [known.get((*place, value), 0) for value, _ in reference.values]
        counts.append(found.totals.get(place, (0, 0))[0] - sum(counts))
    return Drawn(sketch, reference, (*counts, sketch.missing))
