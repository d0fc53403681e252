"""`logs2rec promote` and `rollback`: the same gate, and the way back, by hand."""

from __future__ import annotations

from typing import Any

from evaluate.decision.gate import Verdict
from infra.errors import UsageError
from pipelines.context import Context
from pipelines.data_stages import run_data
from pipelines.model_stages import decide_and_move, registered_versions
from pipelines.roles import Role, roles


def promote(ctx: Context, role_name: str | None) -> list[dict[str, Any]]:
    """Ask the gate again, today, about the registered version of each role; moves the alias if it says so."""
    ctx.only = "promote"
    ctx.hold()
    data = run_data(ctx)
    out = []
    for role, evaluated, registered in registered_versions(ctx, data, _roles(ctx, role_name)):
        decision = decide_and_move(ctx, data, role, evaluated, registered)
        entry = {"name": registered.report["name"], "version": registered.outputs["version"]}
        entry |= {"verdict": decision.verdict.value, "reasons": list(decision.reasons)}
        champion = decision.verdict is Verdict.PROMOTE or any("already champion" in r for r in decision.reasons)
        out.append({**entry, "alias": "champion" if champion else "challenger"})
    return out


def rollback(ctx: Context, role_name: str | None, reason: str) -> list[dict[str, Any]]:
    """Point `champion` back at the version that the last move replaced.

    Raises UsageError when a name has no champion or none before it; nothing is moved then.
    """
    from evaluate.publish import promotions
    from evaluate.publish.registry import CHAMPION, registry

    out = []
    ctx.hold()
    with registry(ctx.recipe.tracking, ctx.workspace, ctx.recipe.name) as store:
        moves = [(r, *_previous(ctx, r, store.alias(_name(ctx, r), CHAMPION))) for r in _roles(ctx, role_name)]
        for role, current, previous in moves:
            name = _name(ctx, role)
            promotions.record(
                ctx.lake,
                name=name,
                action="rollback",
                from_version=current,
                to_version=previous,
                reasons=[reason],
                run_id=ctx.run_id,
            )
            store.move_alias(name, CHAMPION, previous)
            out.append({"name": name, "from_version": current, "version": previous, "alias": CHAMPION})
    return out


def _previous(ctx: Context, role: Role, current: str | None) -> tuple[str, str]:
    """(current champion, the champion that it replaced when it was promoted)."""
    from evaluate.publish import promotions

    name = _name(ctx, role)
    if current is None:
        raise UsageError(f"{name}: there is no champion to roll back; run `logs2rec run` first")
    rows = [r for r in promotions.history(ctx.lake, name) if r["action"] == "promote" and r["to_version"] == current]
    if not rows or rows[-1]["from_version"] is None:
        raise UsageError(f"{name}: version {current} is the first champion, so there is none to go back to")
    return current, str(rows[-1]["from_version"])


def _name(ctx: Context, role: Role) -> str:
    return f"{ctx.recipe.name}.{role.name}"


def _roles(ctx: Context, role_name: str | None) -> list[Role]:
    found = [r for r in roles(ctx.recipe) if role_name in (None, r.name)]
    if not found:
        raise UsageError(f"--role {role_name}: this recipe has {', '.join(r.name for r in roles(ctx.recipe))}")
    return found
