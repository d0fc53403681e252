"""The audit trail: the Delta table `promotions` says who moved which alias, when, why, from and to."""

from __future__ import annotations

import getpass
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from infra.commit import append_rows
from infra.lake import Lake
from infra.tables import PROMOTIONS

MOVES = ("promote", "force", "rollback")
"""The actions after which `champion` is the version that they name."""


def record(
    lake: Lake,
    *,
    name: str,
    action: str,
    from_version: str | None,
    to_version: str | None,
    reasons: Sequence[str],
    run_id: str,
) -> None:
    """Append one row; `action` is promote, force, rollback (those move the alias), hold, reject, await_approval, or
    transfer (to another registry)."""
    row = {
        "name": name,
        "action": action,
        "from_version": from_version,
        "to_version": to_version,
        "reasons": json.dumps(list(reasons)),
        "actor": f"{_user()} {run_id}",
        "at": datetime.now(UTC),
    }
    append_rows(lake, PROMOTIONS, [row], app_id=f"promotions:{uuid.uuid4().hex}")


def history(lake: Lake, name: str | None = None) -> list[dict[str, Any]]:
    """The rows, oldest first, of one registered name or of all."""
    version = lake.version(PROMOTIONS.name)
    if version is None:
        return []
    rows = lake.read(PROMOTIONS.name, version).to_pylist()
    return sorted((r for r in rows if name in (None, r["name"])), key=lambda r: r["at"])


def recorded_champion(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The version that the alias should be on by the rows of one name, oldest first; None before the first move."""
    return next((row["to_version"] for row in reversed(rows) if row["action"] in MOVES), None)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return "unknown"
