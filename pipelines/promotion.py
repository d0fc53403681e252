"""`logs2rec promote` and `rollback`: the same gate, and the way back, by hand."""

from __future__ import annotations

from typing import Any

from infra.errors import UsageError
from infra.ledger import Published
from pipelines.context import Context
from pipelines.decision import Will, data_of, decide_and_move
from pipelines.roles import Role, roles


def promote(ctx: Context, role_name: str | None, will: Will = Will()) -> list[dict[str, Any]]:  # noqa: B008
    """Ask the gate again about each role's newest registered version, on the data it was evaluated on.

    `will` says why a held one is promoted nevertheless, or that a person agrees; UsageError for an empty reason.
    """
    from evaluate.publish.registry import CHAMPION

    for option, reason in (("--force", will.force), ("--approve", will.approve)):
        if reason is not None and not reason.strip():
            raise UsageError(f"{option}: needs a reason, which the table promotions keeps")
    ctx.hold()
    out = []
    for role, registered in [(r, _newest(ctx, r)) for r in wanted_roles(ctx, role_name)]:
        evaluated = ctx.ledger.find(registered.inputs["evaluation"])
        assert evaluated is not None  # a registration is published after its evaluation
        decision = decide_and_move(ctx, data_of(registered), role, evaluated, registered, will).decision
        name, version = registered.report["name"], str(registered.outputs["version"])
        champion = ctx.store().alias(name, CHAMPION) == version
        entry = {"name": name, "version": version, "alias": "champion" if champion else "challenger"}
        out.append({**entry, "verdict": decision.verdict.value, "reasons": list(decision.reasons)})
    return out


def _newest(ctx: Context, role: Role) -> Published:
    """The newest registration of a role in the store at hand."""
    store = ctx.store().identity()
    rows = [r for r in ctx.ledger.rows() if r.unit == f"register:{role.name}" and r.inputs["store"] == store]
    if not rows:
        raise UsageError(f"{name_of(ctx, role)}: no version is registered; run `logs2rec run` first")
    return rows[-1]


def rollback(ctx: Context, role_name: str | None, reason: str) -> list[dict[str, Any]]:
    """Point `champion` back at the version that the last move replaced.

    Raises UsageError when a name has no champion or none before it; nothing is moved then.
    """
    from evaluate.publish import promotions
    from evaluate.publish.registry import CHAMPION

    ctx.hold()
    store = ctx.store()
    out = []
    moves = [(r, *_previous(ctx, r, store.alias(name_of(ctx, r), CHAMPION))) for r in wanted_roles(ctx, role_name)]
    for role, current, previous in moves:
        name = name_of(ctx, role)
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

    name = name_of(ctx, role)
    if current is None:
        raise UsageError(f"{name}: there is no champion to roll back; run `logs2rec run` first")
    taken = ("promote", "force")
    rows = [r for r in promotions.history(ctx.lake, name) if r["action"] in taken and r["to_version"] == current]
    if not rows or rows[-1]["from_version"] is None:
        raise UsageError(f"{name}: version {current} is the first champion, so there is none to go back to")
    return current, str(rows[-1]["from_version"])


def name_of(ctx: Context, role: Role) -> str:
    """The registered name of a role's versions."""
    return f"{ctx.recipe.name}.{role.name}"


def wanted_roles(ctx: Context, role_name: str | None) -> list[Role]:
    """All of the recipe, or the named one; UsageError when it has none of that name."""
    found = [r for r in roles(ctx.recipe) if role_name in (None, r.name)]
    if not found:
        raise UsageError(f"--role {role_name}: this recipe has {', '.join(r.name for r in roles(ctx.recipe))}")
    return found
