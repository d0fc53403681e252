"""The champion that a run continues from: that of before its run date, by the record of promotions.

The alias would not do: after today's promotion it names today's own model, and beside a past day a later one's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.context import Context


@dataclass(frozen=True)
class Champion:
    """A registered version that was champion once."""

    name: str
    version: str
    run_date: str
    build: str
    """Key of the evaluation that it was registered for: the same model has it in every store."""

    @property
    def told(self) -> dict[str, str]:
        """For a report."""
        return {k: v for k, v in asdict(self).items() if k != "build"}


def champion_before(ctx: Context, name: str, day: str) -> Champion | None:
    """The last champion of a registered name whose run date lies before `day`; None on a first day.

    A rollback counts: what comes after it, a rerun of an earlier day too, starts from the version it went back to.
    """
    from evaluate.publish.promotions import history

    return last_before(history(ctx.lake, name), lambda version: ctx.store().tags(name, version), day)


def last_before(
    history: Sequence[Mapping[str, Any]], tags_of: Callable[[str], Mapping[str, str] | None], day: str
) -> Champion | None:
    """The version of the last promotion or rollback (`history`: oldest first) to one of before `day`.

    A version that the store does not have (it was lost or replaced) has no tags and is passed over.
    """
    from evaluate.publish.promotions import MOVES
    from evaluate.publish.registry import BUILD_TAG, RUN_DATE_TAG

    for row in reversed(history):
        if row["action"] in MOVES:
            version = str(row["to_version"])
            tags = tags_of(version)
            if tags is not None and tags[RUN_DATE_TAG] < day:
                return Champion(row["name"], version, tags[RUN_DATE_TAG], tags[BUILD_TAG])
    return None


def artifact_of(ctx: Context, champion: Champion) -> Path:
    """Its artifact in the workspace, where workers see it: copied from the store unless it is there whole."""
    from train import artifact

    path = ctx.workspace / "champions" / f"{champion.name}-{champion.build}"
    if not artifact.is_complete(path):
        with tempfile.TemporaryDirectory() as into:
            artifact.copy(ctx.store().artifact(champion.name, champion.version, Path(into)), path)
    return path
