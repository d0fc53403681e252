"""What is said of the fields of `samples`: statistics over training rows, missing counts per day, the audit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurize.point_in_time import LEAKS
from featurize.vocabularies import FIRST_INDEX
from infra.errors import AuditError
from infra.tables import FIELDS, MISSING_RATES, Kind, column_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_LIMITS = np.finfo(np.float32)
"""Models compute with 32 bits."""


@dataclass(frozen=True)
class Described:
    """Rows of `fields` and `missing_rates`, and the number of rows by (split, label source)."""

    fields: pa.Table
    missing_rates: pa.Table
    rows: Mapping[tuple[str, str], int]


def describe(frame: DataFrame, kinds: Sequence[tuple[str, Kind]], sizes: Mapping[str, int], day: str) -> Described:
    """Count and measure the rows of `samples` (with `leaks`); reads the frame twice, so let it be cached.

    Raises AuditError when a row shows something of its event's own future.
    """
    from pyspark.sql import functions as F

    by = [F.date_format("ts", "yyyy-MM-dd").alias("ds"), F.col("split"), F.col("label_source")]
    bits = [F.sum((F.col("missing").bitwiseAND(1 << i) != 0).cast("long")).alias(f"m{i}") for i in range(len(kinds))]
    leaks = [F.sum((F.col("leaks").bitwiseAND(bit) != 0).cast("long")).alias(f"leak{bit}") for bit in LEAKS]
    counts = [r.asDict() for r in frame.groupBy(*by).agg(F.count("*").alias("n"), *bits, *leaks).collect()]
    _audit(counts)
    rows: Counter[tuple[str, str]] = Counter()
    missing: Counter[int] = Counter()
    for count in counts:
        rows[count["split"], count["label_source"]] += count["n"]
        if count["split"] == "train":
            missing.update({i: count[f"m{i}"] for i in range(len(kinds))})
    trained = sum(n for (split, _), n in rows.items() if split == "train")
    shares = [missing[i] / max(trained, 1) for i in range(len(kinds))]
    fields = _fields(kinds, sizes, shares, _moments(frame, kinds), day)
    return Described(fields, _missing_rates(counts, kinds, day), rows)


def _audit(counts: Sequence[Mapping[str, Any]]) -> None:
    found = {LEAKS[bit]: sum(c[f"leak{bit}"] for c in counts) for bit in LEAKS}
    if seen := [f"{n} rows show {what}" for what, n in found.items() if n]:
        raise AuditError(f"samples: {'; '.join(seen)}; nothing was published: report it, this is a fault of the build")


def _missing_rates(counts: Sequence[Mapping[str, Any]], kinds: Sequence[tuple[str, Kind]], day: str) -> pa.Table:
    observed: dict[str, Counter[str]] = {}
    for count in counts:
        if count["label_source"] == "observed":
            of_day = observed.setdefault(count["ds"], Counter())
            of_day.update({"n": count["n"], **{f"m{i}": count[f"m{i}"] for i in range(len(kinds))}})
    rows = [
        {"as_of": day, "ds": ds, "field": name, "rows": observed[ds]["n"], "missing": observed[ds][f"m{i}"]}
        for ds in sorted(observed)
        for i, (name, _) in enumerate(kinds)
    ]
    return pa.Table.from_pylist(rows, schema=MISSING_RATES.schema)


def _moments(frame: DataFrame, kinds: Sequence[tuple[str, Kind]]) -> dict[str, tuple[float, float]]:
    """Numeric field -> (mean, standard deviation) over the training rows where it is there. What no 32 bits hold, which
    the loader takes for missing, is left out (missing rates count cells without a value alone).

    Measured per partition and merged in the partitions' order: sums of floats depend on it, and the same
    input shall give the same figures.
    """
    from pyspark.sql import functions as F

    numeric = [name for name, kind in kinds if kind is Kind.NUMERIC]
    if not numeric:
        return {}
    measures = []
    for name in numeric:
        column = F.when(F.abs(column_of(name)) <= float(_LIMITS.max), F.col(column_of(name)))
        # The average of equal numbers is not always that number, and a constant field shall have deviation 0.
        mean = F.when(F.min(column) == F.max(column), F.min(column)).otherwise(F.avg(column))
        measures += [F.count(column).alias(f"n_{name}"), mean.alias(f"mean_{name}")]
        measures += [F.var_pop(column).alias(f"var_{name}")]
    parts = frame.where("split = 'train'").groupBy(F.spark_partition_id().alias("part")).agg(*measures).collect()
    ordered = sorted((p.asDict() for p in parts), key=lambda p: int(p["part"]))
    out = {}
    for name in numeric:
        out[name] = merge([(p[f"n_{name}"], p[f"mean_{name}"], p[f"var_{name}"]) for p in ordered if p[f"n_{name}"]])
    return out


def merge(parts: Sequence[tuple[int, float, float]]) -> tuple[float, float]:
    """(mean, standard deviation) of the union of parts given by (count, mean, variance), as Chan et al. (1979).

    >>> merge([(2, 1.0, 1.0), (1, 4.0, 0.0)])
    (2.0, 1.632993161855452)
    """
    count, mean, squares = 0, 0.0, 0.0
    for n, mean_n, variance_n in parts:
        count += n
        apart = mean_n - mean
        mean += apart * (n / count)
        squares += variance_n * n + apart * apart * n * (count - n) / count
    return mean, math.sqrt(squares / count) if count and squares < math.inf else squares


def divisor(std: float) -> float:
    """The deviation that a field's numbers are divided by: 1 for a constant, or what 32 bits take for one.

    >>> divisor(2.5), divisor(0.0), divisor(1e-50)
    (2.5, 1.0, 1.0)
    """
    return std if std >= _LIMITS.tiny else 1.0


def _fields(
    kinds: Sequence[tuple[str, Kind]],
    sizes: Mapping[str, int],
    missing: Sequence[float],
    moments: Mapping[str, tuple[float, float]],
    day: str,
) -> pa.Table:
    rows = []
    for position, (name, kind) in enumerate(kinds):
        mean, std = moments.get(name, (0.0, 1.0))
        rows.append(
            {
                "as_of": day,
                "position": position,
                "name": name,
                "kind": kind.value,
                "size": 0 if kind is Kind.NUMERIC else sizes.get(name, FIRST_INDEX),
                "mean": mean,
                "std": divisor(std),
                "missing_rate": missing[position],
            }
        )
    return pa.Table.from_pylist(rows, schema=FIELDS.schema)
