"""The work of `histories` and `sequences` in DuckDB: what a user of one node would write by hand."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import duckdb

from infra.lake import Lake
from infra.tables import ITEMS, UNKNOWN
from tests.benchmarks.logs import SETTINGS


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """As many threads as the Spark session under test has."""
    db = duckdb.connect()
    db.execute(
        f"set threads=2; set memory_limit='8GB'; set preserve_insertion_order=false; "
        f"set temp_directory='{folder}/spill'"
    )
    return db


def run(db: duckdb.DuckDBPyConnection, lake: Lake, versions: dict[str, int], day: str, out: Path) -> None:
    """The same event and item files to train.parquet, valid.parquet and test.parquet under `out`."""
    before = (date.fromisoformat(day) - timedelta(days=1)).isoformat()
    log, items = (lake.files(t, versions[t]) for t in ("events", ITEMS.name))
    cap, size = SETTINGS.history_cap, SETTINGS.max_length + 1
    db.execute(
        f"""create or replace temp table histories as
        select "user",
          list(item order by ts, event_id) filter (ds < '{before}') past,
          list(item order by ts, event_id) filter (ds = '{before}') eve,
          list(item order by ts, event_id) filter (ds = '{day}') today,
          min(ts) filter (ds = '{before}') eve_ts, min(ts) filter (ds = '{day}') today_ts
        from (
          select e."user", e.ts, e.event_id, e.ds::varchar ds,
            coalesce(case when i.arrival <= e.arrival then i.index end, {UNKNOWN})::int item
          from read_parquet({log!r}, hive_partitioning=true) e
          left join read_parquet({items!r}, hive_partitioning=true) i on e.item = i.key
          where e.ds::varchar <= '{day}'
        ) group by "user" """
    )
    db.execute(
        f"""create or replace temp table capped as
        select "user", past[-{cap}:] past, (coalesce(past, []) || coalesce(eve, []))[-{cap}:] until, eve[1] valid,
          today[1] test, eve_ts, today_ts from histories"""
    )
    db.execute("create or replace temp table known as select distinct unnest(past) item from capped")
    db.execute(
        f"""copy (
          select "user", past[greatest(len(past) - (k + 1) * {size}, 0) + 1 : len(past) - k * {size}] items
          from (select "user", past, unnest(range((len(past) + {size - 1}) // {size})) k from capped)
          where len(past) - k * {size} > 1 order by "user", k desc
        ) to '{out}/train.parquet' (format parquet, compression zstd)"""
    )
    for split, history in (("valid", "past"), ("test", "until")):
        ts = {"valid": "eve_ts", "test": "today_ts"}[split]
        db.execute(
            f"""copy (
              select "user", {history} items, {split} target, {ts} target_ts,
                {split} <> {UNKNOWN} and {split} in (from known) target_known
              from capped where {split} is not null and len({history}) > 0 order by "user"
            ) to '{out}/{split}.parquet' (format parquet, compression zstd)"""
        )


def differing(db: duckdb.DuckDBPyConnection, lake: Lake, version: int, day: str, out: Path) -> int:
    """Rows of our table that DuckDB did not write, and the other way round."""
    count = 0
    for split in ("train", "valid", "test"):
        ours = f"read_parquet({lake.files('sequences', version, {'as_of': day, 'split': split})!r})"
        theirs = f"read_parquet('{out}/{split}.parquet')"
        columns = '"user", items' if split == "train" else '"user", items, target, target_ts, target_known'
        for a, b in ((ours, theirs), (theirs, ours)):
            (row,) = db.sql(
                f"select count(*) from (select {columns} from {a} except all select {columns} from {b})"
            ).fetchall()
            count += row[0]
    return count
