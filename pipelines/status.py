"""What is published, and which versions hold which alias."""

from __future__ import annotations

from typing import Any

from pipelines.context import Context
from pipelines.roles import roles


def status(ctx: Context) -> dict[str, Any]:
    """The newest publication of every (unit, date), the aliases, and the last promotions."""
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
    return {"published": published, "aliases": _aliases(ctx) if registered else {}, "promotions": rows}


def _aliases(ctx: Context) -> dict[str, dict[str, str | None]]:
    from evaluate.publish.registry import CHALLENGER, CHAMPION

    return {
        name: {alias: ctx.store().alias(name, alias) for alias in (CHAMPION, CHALLENGER)}
        for name in (f"{ctx.recipe.name}.{r.name}" for r in roles(ctx.recipe))
    }
