"""`logs2rec promote --to URI`: the champions of one registry into another, such as that of the machines that serve."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from infra.errors import ArtifactError, UsageError
from pipelines.context import Context
from pipelines.decision import data_of, item_keys
from pipelines.promotion import name_of, wanted_roles
from pipelines.roles import Role
from pipelines.stored_answers import questions

if TYPE_CHECKING:
    from evaluate.publish.registry import Registry, Upload

SOURCE_TAG = "logs2rec.source"


def transfer(ctx: Context, role_name: str | None, uri: str) -> list[dict[str, Any]]:
    """Register each role's champion in the registry at `uri` under the same name, ask it there in a clean process, and
    point `champion` at it last. Done twice, or after a rollback here, it makes no second version of a build.

    Raises UsageError when a name has no champion or `uri` is the registry at hand, ArtifactError when the copy does not
    answer as the artifact does; no alias is moved then.
    """
    from evaluate.publish.registry import CHAMPION, registry

    ctx.hold()
    here = ctx.store()
    champions = [
        (role, name_of(ctx, role), here.alias(name_of(ctx, role), CHAMPION)) for role in wanted_roles(ctx, role_name)
    ]
    for name in (name for _, name, version in champions if version is None):
        raise UsageError(f"{name}: there is no champion to take to {uri}; run `logs2rec run` first")
    with tempfile.TemporaryDirectory() as into:
        # All of them before the first alias moves. MLflow knows one address at a time: first all that is read here.
        taken = [_take(ctx, role, name, str(version), Path(into) / role.name) for role, name, version in champions]
        settings = ctx.recipe.tracking.model_copy(update={"uri": uri})
        with registry(settings, ctx.workspace, ctx.recipe.name) as there:
            if there.identity() == here.identity():
                raise UsageError(f"--to {uri}: is the registry that the champion is in; name another one")
            put = [
                (name, version, _put(there, name, *rest))
                for (_, name, version), rest in zip(champions, taken, strict=True)
            ]
            return [_move(ctx, there, name, str(version), new) for name, version, new in put]


def _take(
    ctx: Context, role: Role, name: str, version: str, into: Path
) -> tuple[str, Upload, pd.DataFrame, dict[str, Any]]:
    """(build, what to register, what to ask, the answer)."""
    from evaluate.publish.package import package
    from evaluate.publish.registry import BUILD_TAG, Upload

    here = ctx.store()
    artifact = here.artifact(name, version, into / "model")
    tags = here.tags(name, version) or {}
    if BUILD_TAG not in tags:
        raise UsageError(f"{name} version {version}: was not registered by logs2rec (it has no tag {BUILD_TAG})")
    build = tags.pop(BUILD_TAG)
    told = here.told(name, version, into / "run")
    packed = package(artifact, _questions(ctx, role, version))
    upload = Upload(
        artifact=artifact,
        code=packed.code,
        signature=packed.signature,
        example=packed.example,
        params=told.params,
        metrics=told.metrics,
        tags={**tags, SOURCE_TAG: f"{here.identity()} {name} {version}"},
        files=told.files,
    )
    return build, upload, packed.questions, packed.answer


def _questions(ctx: Context, role: Role, version: str) -> pd.DataFrame | None:
    """Rows of the split that the version was evaluated on; None for one that another workspace has registered."""
    store = ctx.store().identity()
    for row in reversed(ctx.ledger.rows()):
        if row.unit == f"register:{role.name}" and (row.inputs["store"], str(row.outputs["version"])) == (
            store,
            version,
        ):
            data = data_of(row)
            return questions(ctx.lake, data, role.name, item_keys(ctx, data))
    return None


def _put(there: Registry, name: str, build: str, upload: Upload, asked: pd.DataFrame, answer: dict[str, Any]) -> str:
    """The version there, which gives the same answers."""
    from evaluate.publish.package import same_answer
    from evaluate.publish.registry import CHALLENGER, query_in_clean_process

    version, _ = there.register(name, build, upload)
    if not same_answer(answer, query_in_clean_process(there.uri, f"models:/{name}/{version}", asked)):
        raise ArtifactError(f"{name} version {version} of the registry named by --to: answers otherwise than here")
    there.move_alias(name, CHALLENGER, version)
    return version


def _move(ctx: Context, there: Registry, name: str, version: str, new: str) -> dict[str, Any]:
    """The record first, the alias last; neither where it points there already."""
    from evaluate.publish import promotions
    from evaluate.publish.registry import CHAMPION, PREVIOUS, without_password

    before = there.alias(name, CHAMPION)
    reason = f"champion {version} taken to {without_password(there.uri)}"
    if before != new:
        promotions.record(
            ctx.lake,
            name=name,
            action="transfer",
            from_version=before,
            to_version=new,
            reasons=[reason],
            run_id=ctx.run_id,
        )
        if before is not None:
            there.move_alias(name, PREVIOUS, before)
        there.move_alias(name, CHAMPION, new)
    entry = {"name": name, "version": new, "from_version": before, "alias": CHAMPION}
    return {**entry, "verdict": "transfer", "reasons": [reason]}
