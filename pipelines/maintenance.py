"""`logs2rec vacuum` and `compact`: which versions the ledger still needs, and what goes or is rewritten.

What is needed runs upwards by nature, from a registered model to the tables it was trained on; infra is only
told the versions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from infra import compaction, maintenance
from infra.ledger import REBUILT, WITHDRAWAL, Published
from infra.maintenance import Plan, Reason
from infra.tables import HISTORIES, PROMOTIONS, RUNS
from pipelines.context import Context

KEEP_DAYS = 30.0
"""Default retention: what was published within it stays, even when something newer stands in its place."""

SHOWN = 20
"""Files that are printed per table; --json lists all."""

PASSED_ON = (HISTORIES.name,)
"""Tables that nobody but the next run date's build reads; what stands in them can be made from the events again."""

REGISTRATION = "register:"
"""How the units begin whose rows stand for registered models."""


def vacuum(ctx: Context, *, apply: bool, older_than_hours: float, keep_days: float) -> dict[str, Any]:
    """Per table what may go, and with `apply` remove it; rows whose versions go are withdrawn from the ledger first.

    All tables are looked at before anything is removed. Raises DataRefused when one cannot be judged.
    """
    if apply:
        ctx.hold()
    rows = ctx.ledger.rows()
    pins = pinned(rows, datetime.now(UTC) - timedelta(days=keep_days))
    # Without a ledger there is no telling which versions somebody uses: only orphans go.
    plans = [
        maintenance.plan(ctx.lake, table, pins[table] if rows else None, older_than_hours)
        for table in maintenance.tables(ctx.lake)
    ]
    gone = _superseded(rows, plans)
    sizes = {p.table: asdict(maintenance.size(ctx.lake, p.table)) for p in plans}
    removed = {p.table: (0, 0) for p in plans}
    if apply:
        if gone:
            ctx.ledger.withdraw(gone, ctx.run_id)
        removed = {p.table: maintenance.remove(ctx.lake, p) for p in plans}
    return {
        "applied": apply,
        "tables": {p.table: {"before": sizes[p.table], **_described(p, *removed[p.table])} for p in plans},
        "withdrawn": [{"unit": r.unit, "date": r.date, "key": r.key} for r in gone],
    }


def show_vacuum(found: Mapping[str, Any]) -> None:
    """Print what goes or went, table by table."""
    for name, table in found["tables"].items():
        if table["files"]:
            kinds = ", ".join(f"{k['files']:,} {reason}" for reason, k in table["kinds"].items() if k["files"])
            of = f"of {table['before']['files']:,} data files, {table['before']['bytes']:,} bytes"
            print(f"{name}: {table['files']:,} files, {table['bytes']:,} bytes ({kinds}) {of}")
            for entry in table["list"][:SHOWN]:
                print(f"  {entry['reason']:<11} {entry['bytes']:>12,}  {entry['path']}")
            if (more := table["files"] - SHOWN) > 0:
                print(f"  and {more:,} more; --json lists all")
    for row in found["withdrawn"]:
        print(f"superseded, done again if it is asked for: {row['unit']} {row['date']}")
    total = sum(t["files"] for t in found["tables"].values())
    if found["applied"]:
        print(f"Removed {sum(t['removed_files'] for t in found['tables'].values()):,} files.")
    else:
        print("Nothing was removed; --apply removes these files." if total else "Nothing to remove.")


def compact(ctx: Context) -> dict[str, Any]:
    """Record tables into one file each, checkpoints where a log has grown long or its checkpoint is damaged."""
    ctx.hold()
    tables = maintenance.tables(ctx.lake)
    repaired = {table: compaction.repair(ctx.lake, table) for table in tables}
    records = [compaction.compact(ctx.lake, t) for t in (RUNS, PROMOTIONS) if t.name in tables]
    return {
        "records": {c.table: {"rows": c.rows, "before": c.before, "after": c.after} for c in records},
        "repaired": {table: names for table, names in repaired.items() if names},
        "checkpoints": [table for table in tables if compaction.checkpoint(ctx.lake, table)],
    }


def pinned(rows: Sequence[Published], since: datetime) -> defaultdict[str, set[int]]:
    """table -> versions that must stay readable, from what is published, oldest first.

    Those of the newest row of each unit and date, of every row published after `since` and of every
    registration, and everything they were made from, as far back as the ledger goes. Of tables that are only
    PASSED_ON those of the newest row alone, and of rows published after `since`.
    """
    newest = {(r.unit, r.date): r for r in rows}
    last = {table: r for r in rows for table, _ in _versions(r.outputs)}
    reached = {
        r.key: r
        for r in rows
        if r is newest[r.unit, r.date] or r.published_at >= since or r.unit.startswith(REGISTRATION)
    }
    by_name: defaultdict[str | tuple[str, int], list[Published]] = defaultdict(list)
    for row in rows:
        names: set[str | tuple[str, int]] = {row.key, row.stands_for, *_versions(row.outputs)}
        for name in names:
            by_name[name].append(row)
    pins: defaultdict[str, set[int]] = defaultdict(set)
    todo = list(reached.values())
    while todo:
        row = todo.pop()
        for table, version in (*_versions(row.outputs), *_used(row)):
            if table not in PASSED_ON or row.published_at >= since or row is last.get(table):
                pins[table].add(version)
        upstream_names: list[str | tuple[str, int]] = [*_used(row), *_texts(row.inputs)]
        for upstream in (r for name in upstream_names for r in by_name[name]):
            if upstream.key not in reached:
                reached[upstream.key] = upstream
                todo.append(upstream)
    return pins


def _used(row: Published) -> Iterator[tuple[str, int]]:
    """(table, version) that a row was made from; a registration says in its report what `promote` reads again."""
    yield from _versions(row.inputs)
    if row.unit.startswith(REGISTRATION):
        yield from _versions(row.report.get("data", {}))


def _versions(mapping: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _versions(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def _texts(mapping: Mapping[str, Any]) -> Iterator[str]:
    """The values that may be keys of rows; what an output was made again for is not what it was made from."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and name != REBUILT:
            yield from _texts(value)
        elif isinstance(value, str):
            yield value


def _superseded(rows: Sequence[Published], plans: Sequence[Plan]) -> list[Published]:
    """The rows that publish a version which a plan makes unreadable; a pinned one is never among them."""
    lost = {(p.table, version) for p in plans for version in p.lost}
    return [r for r in rows if r.unit != WITHDRAWAL and any(v in lost for v in _versions(r.outputs))]


def _described(plan: Plan, removed: int, freed: int) -> dict[str, Any]:
    kinds = {reason.value: dict(zip(("files", "bytes"), plan.total(reason), strict=True)) for reason in Reason}
    listed = [{"path": w.path, "bytes": w.bytes, "reason": w.reason.value} for w in plan.waste]
    return {
        "newest": plan.newest,
        "files": len(plan.waste),
        "bytes": sum(w.bytes for w in plan.waste),
        "kinds": kinds,
        "unreadable_versions": list(plan.lost),
        "list": listed,
        "removed_files": removed,
        "removed_bytes": freed,
    }
