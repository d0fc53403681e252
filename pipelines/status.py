"""What is published, and which versions hold which alias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infra.ledger import Published
from pipelines import contract_versions
from pipelines.context import Context
from pipelines.roles import roles


def status(ctx: Context) -> dict[str, Any]:
    """The newest publication of every (unit, date), the contract's versions, the aliases, and the last promotions."""
    from evaluate.publish import promotions

    newest = {(r.unit, r.date): r for r in ctx.ledger.rows()}
    published = [
        {
            "unit": r.unit,
            "date": r.date,
            "outputs": dict(r.outputs),
            "inputs": dict(r.inputs),
            "config_hash": r.config_hash,
            "code_version": r.code_version,
            "run_id": r.run_id,
            "published_at": r.published_at.isoformat(timespec="seconds"),
        }
        for r in sorted(newest.values(), key=lambda r: r.published_at)
    ]
    rows = [{**p, "at": p["at"].isoformat(timespec="seconds")} for p in promotions.history(ctx.lake)]
    registered = any(unit.startswith("register:") for unit, _ in newest)
    return {
        "published": published,
        "contracts": _contracts(newest.values()),
        "aliases": (aliases := _aliases(ctx) if registered else {}),
        "moved_by_hand": _moved_by_hand(aliases, rows),
        "promotions": rows,
    }


def _contracts(newest: Iterable[Published]) -> list[dict[str, Any]]:
    """The contract's versions: what changed, and which arrivals stand under each."""
    arrivals: dict[int, list[str]] = {}
    for row in sorted((r for r in newest if r.unit == "events"), key=lambda r: r.date):
        arrivals.setdefault(int(row.report.get("contract", 0)), []).append(row.date)
    found = [(contract_versions.number_of(r), r) for r in newest if contract_versions.is_version(r)]
    return [
        {"version": n, "first_arrival": r.date, "changes": r.report["changes"], "arrivals": arrivals.get(n, [])}
        for n, r in sorted(found, key=lambda pair: pair[0])
    ]


def _moved_by_hand(
    aliases: Mapping[str, Mapping[str, str | None]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, str | None]]:
    """Names whose champion is not the one that the record says (or a command died between the two)."""
    from evaluate.publish.promotions import recorded_champion
    from evaluate.publish.registry import CHAMPION

    found = {}
    for name, of_name in aliases.items():
        recorded = recorded_champion([row for row in rows if row["name"] == name])
        if recorded != of_name[CHAMPION]:
            found[name] = {"champion": of_name[CHAMPION], "recorded": recorded}
    return found


def _aliases(ctx: Context) -> dict[str, dict[str, str | None]]:
    from evaluate.publish.registry import CHALLENGER, CHAMPION

    return {
        name: {alias: ctx.store().alias(name, alias) for alias in (CHAMPION, CHALLENGER)}
        for name in (f"{ctx.recipe.name}.{r.name}" for r in roles(ctx.recipe))
    }
