"""The ledger: an output is published when its row stands in the Delta table `runs`.

Whatever lies in front of that row (files, commits, artifacts) is an orphan that the next run
replaces. A unit of work whose key is already here is skipped.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from infra.commit import append_rows
from infra.config import canonical_json, digest
from infra.lake import Lake
from infra.tables import FORMAT_VERSION, RUNS


@dataclass(frozen=True)
class Published:
    """One row of the ledger."""

    key: str
    unit: str
    date: str
    inputs: Mapping[str, Any]
    config_hash: str
    code_version: str
    outputs: Mapping[str, Any]
    report: Mapping[str, Any]
    seconds: float
    run_id: str
    published_at: datetime

    def version(self, table: str) -> int:
        """The version of an output table."""
        return int(self.outputs[table])


def key_of(unit: str, date: str, inputs: Mapping[str, Any], config: Any) -> str:
    """What an output is a function of; equal keys mean the same output."""
    return digest(
        {
            "unit": unit,
            "date": date,
            "inputs": dict(inputs),
            "config": digest(config),
            "format": FORMAT_VERSION,
        }
    )


class Ledger:
    """Reads and appends the `runs` table of a lake."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._read: tuple[int, list[Published]] = (-1, [])

    def rows(self) -> list[Published]:
        """Everything published, oldest first."""
        version = self.lake.version(RUNS.name)
        if version is not None and version != self._read[0]:  # every row is a file, and a run asks often
            self._read = (version, self._rows(version))
        return list(self._read[1])

    def _rows(self, version: int) -> list[Published]:
        rows = self.lake.read(RUNS.name, version).to_pylist()
        for row in rows:
            for column in ("inputs", "outputs", "report"):
                row[column] = json.loads(row[column])
        return sorted((Published(**row) for row in rows), key=lambda r: (r.published_at, r.key))

    def find(self, key: str) -> Published | None:
        """The row with that key, if it was published."""
        return next((r for r in self.rows() if r.key == key), None)

    def publish(
        self,
        *,
        unit: str,
        date: str,
        inputs: Mapping[str, Any],
        config: Any,
        outputs: Mapping[str, Any],
        report: Mapping[str, Any],
        seconds: float,
        run_id: str,
    ) -> Published:
        """Append the row that makes `outputs` published, and return what is published under its key.

        A second row with the same key is not written: whoever comes second gets the first one's outputs.
        """
        row = Published(
            key=key_of(unit, date, inputs, config),
            unit=unit,
            date=date,
            inputs=dict(inputs),
            config_hash=digest(config),
            code_version=code_version(),
            outputs=dict(outputs),
            report=dict(report),
            seconds=seconds,
            run_id=run_id,
            published_at=datetime.now(UTC),
        )
        record = {
            **row.__dict__,
            **{c: canonical_json(getattr(row, c)) for c in ("inputs", "outputs", "report")},
        }
        if append_rows(self.lake, RUNS, [record], app_id=f"runs:{row.key}"):
            return row
        first = self.find(row.key)
        assert first is not None
        return first


@cache
def code_version() -> str:
    """The git revision of this checkout ("-dirty" with uncommitted changes), else the installed version."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".git").exists():  # else git would answer for whatever checkout an environment lies in
        command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError):  # no git on this machine
            answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                return answer.stdout.strip()
    return importlib.metadata.version("logs2rec")
