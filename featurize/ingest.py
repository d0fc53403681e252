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
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurize import delta, duplicates
from featurize.contract import Contract
from featurize.pseudonyms import UserKeys
from featurize.reasons import Reason
from featurize.rows import RowPlan, parse_split
from featurize.sides import side_table
from featurize.sources import RawFile, columns_needed, refuse_changed, splits
from featurize.streams import Split
from featurize.user_keys import carried, check_key, stamp
from infra import tables
from infra.commit import DataFile, astray, commit, write_file
from infra.errors import AuditError, DataRefused
from infra.lake import Lake
from infra.schemas import check_schema, conflicts
from infra.tables import INGESTED_FILES, QUARANTINE, Table

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


_COUNTED = {
    duplicates.EVENT: "events",
    duplicates.DUPLICATE: "duplicates",
    duplicates.CONFLICT: "quarantined",
}


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
    keys: UserKeys | None = None,
    introduced: Sequence[str] = (),
    renew: bool = False,
) -> Ingested:
    """Ingest the arrivals that `files` belong to, on top of the `kept` ones as they are in the versions `prior`.

    `keys` turn the user ids of a contract with `personal: true` into pseudonyms. The batch must have the columns
    of the `introduced` fields somewhere (of all fields if it is the first). With `renew`, an events table whose
    columns cannot become the contract's starts anew with these.

    Raises DataRefused when a column is missing, when more than rules.max_bad_share of an arrival is bad, or when
    a file vanished or changed meanwhile; UsageError when the table was written under other keys; AuditError when
    the rows do not add up; SchemaChanged when the table's columns cannot become those of the contract. Nothing
    is committed then.
    """
    started = perf_counter()
    arrivals = sorted({f.arrival for f in files})
    keys = keys if contract.personal else None
    check_key(lake, keys)
    anew = renew and prior is None and bool(conflicts(lake, tables.events(contract.kinds_from("log"))))
    if not anew:
        check_schema(lake, tables.events(contract.kinds_from("log")))
    plan, shares = RowPlan.of(contract, keys), splits(root, files, contract.source, columns_needed(contract))
    parsed = _parse(spark, plan, shares).persist()
    known = prior["events"] if prior is not None else None
    marked = duplicates.mark(spark, lake, contract, parsed, known, arrivals).persist()
    try:
        account, reasons = _account(marked, parsed, files)
        _refuse_absent(plan, _wanted(contract, introduced if prior is not None else None), parsed)
        _refuse_if_bad(contract, files, account, reasons)
        refuse_changed(root, files)  # before the job that writes, and behind it: nothing is committed before
        written = _write(lake, contract, parsed, marked)
        refuse_changed(root, files)
    except Exception:  # a task that failed over and over may have found no file
        refuse_changed(root, files)
        raise
    finally:
        marked.unpersist()
        parsed.unpersist()
    events = next(t for t in written if t.name == "events")
    _audit(account, written[events], written[QUARANTINE])
    written[INGESTED_FILES] = _file_rows(lake, files, account)
    versions = {}
    stamp(lake, events, keys)
    for table, new in written.items():
        back, astray_ = astray(lake, table, prior[table.name], "arrival", kept) if prior is not None else ([], [])
        replace = {"arrival": sorted({*arrivals, *astray_})}
        versions[table.name] = commit(
            lake, table, [*new, *back], replace=replace, metadata=carried(metadata, keys), renew=anew
        )
    by_arrival = {a: dict(sorted(c.items())) for a, c in reasons.items()}
    last_day = max((f.partition["ds"] for f in written[events]), default="")
    return Ingested(versions, _by_arrival(files, account), by_arrival, last_day, perf_counter() - started)


def check_sides(contract: Contract, root: Path, keys: UserKeys | None = None) -> None:
    """Raise DataRefused when a side file cannot be read whole; writes nothing."""
    for of in ("user", "item"):
        side_table(contract, root, of, keys if contract.personal else None)


def ingest_sides(
    lake: Lake,
    contract: Contract,
    root: Path,
    as_of: str,
    metadata: dict[str, Any],
    keys: UserKeys | None = None,
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the side files' feature fields as they are now, as of an arrival; returns versions and rows per table.

    `keys` as in `ingest`: the users' file has its keys turned into the same pseudonyms.
    """
    keys = keys if contract.personal else None
    check_key(lake, keys)
    metadata = carried(metadata, keys)
    versions, rows = {}, {}
    for of in ("user", "item"):
        found = side_table(contract, root, of, keys)
        if found is not None:
            table, data = found
            file = write_file(lake.path(table.name), table, {"arrival": as_of}, [data])
            # What a side file says now stands for itself: with other columns its table starts anew.
            versions[table.name] = commit(
                lake, table, [file], replace={"arrival": [as_of]}, metadata=metadata, renew=True
            )
            rows[table.name] = data.num_rows
    return versions, rows


def _wanted(contract: Contract, introduced: Sequence[str] | None) -> dict[str, str]:
    """Raw columns that the batch must have somewhere -> what they are for; `introduced` None: it is the first."""
    fixed = {"user": contract.user, "item": contract.item, "time": contract.time.column, "type": contract.type.column}
    fixed |= {"event_id": contract.event_id, "label": contract.label.column if contract.label else None}
    wanted = {column: name for name, column in fixed.items() if column is not None}
    if introduced is None:
        wanted |= dict.fromkeys(contract.key, "key")
    fields = [f for f in contract.fields_from("log") if introduced is None or f.name in introduced]
    return {f.raw_column: f"field {f.name}" for f in fields} | wanted


def _refuse_absent(plan: RowPlan, wanted: Mapping[str, str], parsed: DataFrame) -> None:
    """A batch without a single record that has a column: misspelt, renamed, or not in this log."""
    reports = [set(json.loads(r.detail)) for r in parsed.where("lines > 0").select("detail").distinct().collect()]
    nowhere = set.intersection(*reports) if reports else set()
    if nowhere == plan.columns:  # no record at all could be read: that is what there is to say
        return
    if absent := [f"{name} (column {column!r})" for column, name in wanted.items() if column in nowhere]:
        raise DataRefused(
            f"no row of this log has the column of {', '.join(absent)}; correct it in the contract; "
            "nothing was published"
        )


def _write(lake: Lake, contract: Contract, parsed: DataFrame, marked: DataFrame) -> dict[Table, list[DataFile]]:
    """The files of events and quarantine."""
    events = tables.events(contract.kinds_from("log"))
    conflicts = duplicates.quarantined(marked, contract)
    refused = parsed.where("reason is not null").select(*conflicts.columns).unionByName(conflicts)
    refused = refused.repartition("arrival", "file").sortWithinPartitions("arrival", "file", "position")
    return {events: delta.write(_event_rows(marked), lake, events), QUARANTINE: delta.write(refused, lake, QUARANTINE)}


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


def _event_rows(marked: DataFrame) -> DataFrame:
    """Events as they are written: one shuffle to their partition, in total order within it."""
    return (
        marked.where(f"fate = '{duplicates.EVENT}'")
        .repartition("arrival", "ds")
        .sortWithinPartitions("arrival", "ds", "user", "ts", "event_id")
    )


def _account(
    marked: DataFrame, parsed: DataFrame, files: Sequence[RawFile]
) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Per file: rows (as its tasks counted them while reading), events, duplicates, quarantined, late; and the
    quarantined rows per arrival and reason."""
    account: dict[str, Counter[str]] = {f.path: Counter() for f in files}
    reasons: dict[str, Counter[str]] = {f.arrival: Counter() for f in files}
    for r in parsed.where("lines is not null").groupBy("file").agg({"lines": "sum"}).collect():
        account[r.file]["rows"] = r["sum(lines)"]
    for r in parsed.where("reason is not null").groupBy("arrival", "file", "reason").count().collect():
        account[r.file]["quarantined"] += r["count"]
        reasons[r.arrival][r.reason] += r["count"]
    late = marked.selectExpr("arrival", "file", "fate", "ds < arrival and arrival <> 'undated' as late")
    for r in late.groupBy("arrival", "file", "fate", "late").count().collect():
        account[r.file][_COUNTED[r.fate]] += r["count"]
        if r.fate == duplicates.EVENT and r.late:
            account[r.file]["late"] += r["count"]
        if r.fate == duplicates.CONFLICT:
            reasons[r.arrival][Reason.ID_CONFLICT.value] += r["count"]
    return account, reasons


def _refuse_if_bad(
    contract: Contract,
    files: Sequence[RawFile],
    account: dict[str, Counter[str]],
    reasons: dict[str, Counter[str]],
) -> None:
    """Every arrival is judged by itself, so that a day is refused together with others as it would be alone."""
    for arrival, found in sorted(reasons.items()):
        of_arrival = {f.path: account[f.path] for f in files if f.arrival == arrival}
        total, bad = sum(c["rows"] for c in of_arrival.values()), found.total()
        if total == 0:
            raise DataRefused(
                f"arrival {arrival} holds no row in {len(of_arrival)} file(s): {', '.join(sorted(of_arrival)[:3])}; "
                "restore the files or move them away; nothing was published"
            )
        if bad > contract.rules.max_bad_share * total:
            worst = max(of_arrival, key=lambda f: of_arrival[f]["quarantined"])
            raise DataRefused(
                f"arrival {arrival}: {bad} of {total} rows are bad ({bad / total:.1%}; "
                f"rules.max_bad_share is {contract.rules.max_bad_share:.0%}): "
                f"{', '.join(f'{r} {n}' for r, n in found.most_common(4))}; most in {worst}; nothing was published"
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
