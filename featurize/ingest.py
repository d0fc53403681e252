"""Raw logs to `events`, `quarantine`, `ingested_files` and side features: one pass over the raw bytes.

Every physical row becomes an event, a duplicate or a quarantined row; the three are counted per file
and must add up before anything is committed. An arrival's output is exactly its own partitions, so a
late event adds a file to its day and rewrites nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurize import delta
from featurize.contract import Contract
from featurize.rows import RowPlan, parse_split
from featurize.sides import side_table
from featurize.sources import RawFile, columns_needed, splits
from featurize.streams import Split
from infra import tables
from infra.commit import DataFile, astray, commit, write_file
from infra.errors import AuditError, DataRefused
from infra.lake import Lake, check_schema
from infra.tables import INGESTED_FILES, QUARANTINE, Table

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

_FOREVER = 10**9  # days


@dataclass(frozen=True)
class Ingested:
    """Versions of the tables written, and the account of every arrival."""

    versions: dict[str, int]
    accounts: dict[str, dict[str, int]]
    reasons: dict[str, dict[str, int]]
    """arrival -> reason -> quarantined rows."""
    last_day: str
    seconds: float


def ingest(
    spark: SparkSession,
    lake: Lake,
    contract: Contract,
    root: Path,
    files: Sequence[RawFile],
    prior: Mapping[str, int] | None,
    metadata: dict[str, Any],
    kept: Sequence[str] = (),
) -> Ingested:
    """Ingest the arrivals that `files` belong to, on top of the `kept` ones as they are in the versions `prior`.

    Raises DataRefused when a column is missing, or when more than rules.max_bad_share of the rows are bad;
    AuditError when the rows do not add up; SchemaChanged when the contract has other log fields than the
    table. Nothing is committed then.
    """
    started = perf_counter()
    arrivals = sorted({f.arrival for f in files})
    check_schema(lake, tables.events(contract.kinds_from("log")))
    parsed = _parse(spark, RowPlan.of(contract), splits(root, files, contract.source, columns_needed(contract)))
    parsed.persist()
    known = prior["events"] if prior is not None else None
    marked = _mark_duplicates(spark, lake, contract, parsed, known, arrivals).persist()
    try:
        account = _account(marked, parsed, files)
        reasons = _reasons(parsed, arrivals)
        _refuse_if_bad(contract, account, sum(reasons.values(), Counter()))
        if prior is None:
            _refuse_absent_fields(contract, parsed)
        written = _write(lake, contract, parsed, marked)
    finally:
        marked.unpersist()
        parsed.unpersist()
    events = next(t for t in written if t.name == "events")
    _audit(account, written[events], written[QUARANTINE])
    written[INGESTED_FILES] = _file_rows(lake, files, account)
    versions = {}
    for table, new in written.items():
        back, astray_ = astray(lake, table, prior[table.name], "arrival", kept) if prior is not None else ([], [])
        replace = {"arrival": sorted({*arrivals, *astray_})}
        versions[table.name] = commit(lake, table, [*new, *back], replace=replace, metadata=metadata)
    by_arrival = {a: dict(sorted(c.items())) for a, c in reasons.items()}
    last_day = max((f.partition["ds"] for f in written[events]), default="")
    return Ingested(versions, _by_arrival(files, account), by_arrival, last_day, perf_counter() - started)


def ingest_sides(
    lake: Lake, contract: Contract, root: Path, as_of: str, metadata: dict[str, Any]
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the side files' feature fields as they are now, as of an arrival; returns versions and rows per table."""
    versions, rows = {}, {}
    for of in ("user", "item"):
        found = side_table(contract, root, of)
        if found is not None:
            table, data = found
            file = write_file(lake.path(table.name), table, {"arrival": as_of}, [data])
            versions[table.name] = commit(lake, table, [file], replace={"arrival": [as_of]}, metadata=metadata)
            rows[table.name] = data.num_rows
    return versions, rows


def _refuse_absent_fields(contract: Contract, parsed: DataFrame) -> None:
    """A log's first batch without a single record that has a field's column: misspelt, or not in this log."""
    reports = [set(json.loads(r.detail)) for r in parsed.where("lines > 0").select("detail").distinct().collect()]
    nowhere = set.intersection(*reports) if reports else set()
    if absent := [f for f in contract.fields_from("log") if f.raw_column in nowhere]:
        names = ", ".join(f"{f.name} (column {f.raw_column!r})" for f in absent)
        raise DataRefused(
            f"fields: no row of this log has the column of {names}; correct it in the contract or leave the field "
            "out; nothing was published"
        )


def _write(lake: Lake, contract: Contract, parsed: DataFrame, marked: DataFrame) -> dict[Table, list[DataFile]]:
    """The files of events and quarantine."""
    events = tables.events(contract.kinds_from("log"))
    refused = parsed.where("reason is not null").repartition(1).sortWithinPartitions("arrival", "file", "position")
    return {events: delta.write(_event_rows(marked), lake, events), QUARANTINE: delta.write(refused, lake, QUARANTINE)}


def _reasons(parsed: DataFrame, arrivals: Sequence[str]) -> dict[str, Counter[str]]:
    reasons: dict[str, Counter[str]] = {a: Counter() for a in arrivals}
    for r in parsed.where("reason is not null").groupBy("arrival", "reason").count().collect():
        reasons[r.arrival][r.reason] += r["count"]
    return reasons


def _parse(spark: SparkSession, plan: RowPlan, shares: Sequence[Split]) -> DataFrame:
    """Rows of every split; small splits share a task, large ones have their own."""
    from pyspark.sql.pandas.types import from_arrow_schema

    columns = [f.name for f in dataclasses.fields(Split)]

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for row in batch.to_pylist():
                yield from parse_split(plan, Split(**{**row, "columns": tuple(row["columns"])}))

    rows = [tuple(getattr(s, c) if c != "columns" else list(s.columns) for c in columns) for s in shares]
    schema = "location string, file string, arrival string, start long, end long, columns array<string>"
    parallelism = max(1, min(len(rows), 4 * spark.sparkContext.defaultParallelism))
    frame = spark.createDataFrame(spark.sparkContext.parallelize(rows, parallelism), schema)
    return frame.mapInArrow(task, from_arrow_schema(plan.schema))


def _mark_duplicates(
    spark: SparkSession, lake: Lake, contract: Contract, parsed: DataFrame, prior: int | None, arrivals: Sequence[str]
) -> DataFrame:
    """Valid rows with `duplicate`, which does not depend on how arrivals are batched.

    Rows of one event id are taken in the order of (arrival, file, position); a row is a duplicate when an
    event kept before it lies within reach: anywhere in an undated log, at most W + 1 event days away in a
    dated one (the rows of one arrival are never farther apart).
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    reach = contract.rules.window_days + 1 if contract.dated else _FOREVER
    rows = parsed.where("reason is null and lines is null").withColumn("known", F.lit(False))
    if prior is not None and contract.dated:
        known = _known_events(spark, lake, contract, prior, arrivals[0]).withColumn("known", F.lit(True))
        rows = rows.unionByName(known, allowMissingColumns=True)
    by_day = Window.partitionBy("event_id", "ds").orderBy("arrival", "file", "position")
    rows = rows.withColumn("day", F.unix_date(F.col("ds").cast("date"))).repartition("event_id")
    rows = rows.withColumn("copy", F.row_number().over(by_day))
    # The lowest row of each day decides for the others, so that a list holds one entry per day at most.
    lowest = F.when(F.col("copy") == 1, F.struct("arrival", "file", "position", "day"))
    rows = rows.withColumn("days", F.sort_array(F.collect_list(lowest).over(Window.partitionBy("event_id"))))
    kept = F.aggregate("days", F.array().cast("array<int>"), lambda kept, row: _with_day(kept, row["day"], reach))
    alone = F.size("days") == 1
    duplicate = (F.col("copy") > 1) | F.when(alone, False).otherwise(~F.array_contains(kept, F.col("day")))
    return rows.withColumn("duplicate", duplicate).where("not known").drop("known", "day", "copy", "days")


def _with_day(kept: Column, day: Column, reach: int) -> Column:
    """The days of an event id's kept events, `day` added unless one of them lies within reach."""
    from pyspark.sql import functions as F

    near = F.exists(kept, lambda other: F.abs(other - day) <= reach)
    return F.when(near, kept).otherwise(F.concat(kept, F.array(day)))


def _known_events(spark: SparkSession, lake: Lake, contract: Contract, prior: int, first: str) -> DataFrame:
    """Ids of the events that the arrivals from `first` on may repeat.

    Their rows lie W days before it at the earliest, events within reach of those W + 1 days before that,
    and these arrived a day before their date at the earliest.
    """
    earliest = date.fromisoformat(first) - timedelta(days=2 * contract.rules.window_days + 2)
    arrivals = [a for a in lake.partitions("events", prior, "arrival") if earliest.isoformat() <= a < first]
    known = delta.read(spark, lake, tables.events(contract.kinds_from("log")), prior, {"arrival": arrivals})
    return known.select("arrival", "file", "position", "ds", "event_id")


def _event_rows(marked: DataFrame) -> DataFrame:
    """Events as they are written: one shuffle to their partition, in total order within it."""
    return (
        marked.where("not duplicate")
        .repartition("arrival", "ds")
        .sortWithinPartitions("arrival", "ds", "user", "ts", "event_id")
    )


def _account(marked: DataFrame, parsed: DataFrame, files: Sequence[RawFile]) -> dict[str, Counter[str]]:
    """Per file: rows (as its tasks counted them while reading), events, duplicates, quarantined, late."""
    account: dict[str, Counter[str]] = {f.path: Counter() for f in files}
    for r in parsed.where("lines is not null").groupBy("file").agg({"lines": "sum"}).collect():
        account[r.file]["rows"] = r["sum(lines)"]
    for r in parsed.where("reason is not null").groupBy("file").count().collect():
        account[r.file]["quarantined"] = r["count"]
    for r in (
        marked.selectExpr("file", "duplicate", "not duplicate and ds < arrival and arrival <> 'undated' as late")
        .groupBy("file", "duplicate", "late")
        .count()
        .collect()
    ):
        account[r.file]["duplicates" if r.duplicate else "events"] += r["count"]
        account[r.file]["late"] += r["count"] if r.late else 0
    return account


def _refuse_if_bad(contract: Contract, account: dict[str, Counter[str]], reasons: Counter[str]) -> None:
    total, bad = sum(c["rows"] for c in account.values()), reasons.total()
    if total == 0:
        raise DataRefused(
            f"the batch holds no row in {len(account)} file(s): {', '.join(sorted(account)[:3])}; nothing was published"
        )
    if bad > contract.rules.max_bad_share * total:
        worst = max(account, key=lambda f: account[f]["quarantined"])
        raise DataRefused(
            f"{bad} of {total} rows are bad ({bad / total:.1%}; "
            f"rules.max_bad_share is {contract.rules.max_bad_share:.0%}): "
            f"{', '.join(f'{r} {n}' for r, n in reasons.most_common(4))}; most in {worst}; nothing was published"
        )


def _audit(account: dict[str, Counter[str]], events: Sequence[DataFile], quarantine: Sequence[DataFile]) -> None:
    """Rows in = events + duplicates + quarantine per file, and the files written hold just as many."""
    for file, c in account.items():
        if c["rows"] != c["events"] + c["duplicates"] + c["quarantined"]:
            raise AuditError(f"{file}: {c['rows']} rows, but {dict(c)} do not add up; nothing was published")
    for name, written, key in (("events", events, "events"), ("quarantine", quarantine, "quarantined")):
        counted, stored = sum(c[key] for c in account.values()), sum(f.rows for f in written)
        if counted != stored:
            raise AuditError(f"{name}: {counted} rows counted, {stored} written; nothing was published")


def _file_rows(lake: Lake, files: Sequence[RawFile], account: dict[str, Counter[str]]) -> list[DataFile]:
    out = []
    for arrival in sorted({f.arrival for f in files}):
        rows = [
            {
                **dataclasses.asdict(f),
                **{k: account[f.path][k] for k in ("rows", "events", "duplicates", "quarantined", "late")},
            }
            for f in files
            if f.arrival == arrival
        ]
        out.append(
            write_file(
                lake.path(INGESTED_FILES.name),
                INGESTED_FILES,
                {"arrival": arrival},
                [pa.Table.from_pylist(rows, schema=INGESTED_FILES.schema)],
            )
        )
    return out


def _by_arrival(files: Sequence[RawFile], account: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    out: dict[str, Counter[str]] = {}
    for file in files:
        out.setdefault(file.arrival, Counter()).update(account[file.path])
    keys = ("rows", "events", "duplicates", "quarantined", "late")
    return {arrival: {k: c[k] for k in keys} for arrival, c in sorted(out.items())}
