"""The ledger: an output is published when its row stands in the Delta table `runs`.

Whatever lies in front of that row (files, commits, artifacts) is an orphan that the next run
replaces. A unit of work whose key is already here is skipped.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from infra.commit import append_rows
from infra.config import canonical_json, digest
from infra.lake import Lake
from infra.tables import FORMAT_VERSION, RUNS

REBUILT = "rebuilt"
"""Key in the inputs of an output that was made again on purpose: {"of": the key it stands for, "run": the command}."""

WITHDRAWAL = "vacuum"
"""The unit of rows that withdraw others."""


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

    @property
    def stands_for(self) -> str:
        """Its key, or the key of the output that it was made again for."""
        return str(self.inputs[REBUILT]["of"]) if REBUILT in self.inputs else self.key

    @property
    def of_this_format(self) -> bool:
        """Whether its tables mean what this program's do: the format version is part of every key."""
        return self.key == _key(self.unit, self.date, self.inputs, self.config_hash)


def key_of(unit: str, date: str, inputs: Mapping[str, Any], config: Any) -> str:
    """What an output is a function of; equal keys mean the same output."""
    return _key(unit, date, inputs, digest(config))


def _key(unit: str, date: str, inputs: Mapping[str, Any], config_hash: str) -> str:
    return digest({"unit": unit, "date": date, "inputs": dict(inputs), "config": config_hash, "format": FORMAT_VERSION})


class Ledger:
    """Reads and appends the `runs` table of a lake."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._read: tuple[int, list[Published]] = (-1, [])

    def rows(self) -> list[Published]:
        """Everything published and not withdrawn, oldest first."""
        return _standing(self.everything())

    def everything(self) -> list[Published]:
        """Also what vacuum withdrew, oldest first."""
        version = self.lake.version(RUNS.name)
        if version is not None and version != self._read[0]:  # every row is a file, and a run asks often
            self._read = (version, self._rows(version))
        return list(self._read[1])

    def withdraw(self, rows: Sequence[Published], run_id: str) -> None:
        """Take rows whose outputs are about to go out of what is published, by a row of its own.

        They stay in the table for the record; a unit with the key of one is done again when it is asked for.
        """
        row = _withdrawal(rows, run_id)
        append_rows(self.lake, RUNS, [_record(row)], app_id=f"runs:{row.key}")

    def replace(self, old: Sequence[Published], new: Sequence[Published], run_id: str) -> None:
        """Withdraw `old` and publish `new`, in this order, in one commit: whoever reads sees the ones or the others."""
        rows = [*new, _withdrawal(old, run_id)]
        latest = max((r.published_at for r in self.everything()), default=rows[-1].published_at)
        start = max(rows[-1].published_at, latest)  # readers go by time, and a clock may be behind
        stamped = [replace(r, published_at=start + timedelta(microseconds=n)) for n, r in enumerate(rows, 1)]
        append_rows(self.lake, RUNS, [_record(r) for r in stamped], app_id=f"runs:{rows[-1].key}")

    def _rows(self, version: int) -> list[Published]:
        rows = self.lake.read(RUNS.name, version).to_pylist()
        for row in rows:
            for column in ("inputs", "outputs", "report"):
                row[column] = json.loads(row[column])
        return sorted((Published(**row) for row in rows), key=lambda r: (r.published_at, r.key))

    def find(self, key: str) -> Published | None:
        """What is published under that key: the newest row with it, or of those made again for it."""
        return next((r for r in reversed(self.rows()) if key in (r.key, r.stands_for)), None)

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
        row = entry(unit, date, inputs, digest(config), outputs, report, seconds, run_id)
        rows = self.everything()  # one reading: between two of them another may publish the same key
        before = sum(r.key == row.key for r in rows) - sum(r.key == row.key for r in _standing(rows))
        again = f":{before}" if before else ""  # withdrawn that many times
        if append_rows(self.lake, RUNS, [_record(row)], app_id=f"runs:{row.key}{again}"):
            return row
        first = next((r for r in self.rows() if r.key == row.key), None)
        assert first is not None
        return first


def entry(
    unit: str,
    date: str,
    inputs: Mapping[str, Any],
    config_hash: str,
    outputs: Mapping[str, Any],
    report: Mapping[str, Any],
    seconds: float,
    run_id: str,
) -> Published:
    """A row as it would be published now."""
    return Published(
        key=_key(unit, date, inputs, config_hash),
        unit=unit,
        date=date,
        inputs=dict(inputs),
        config_hash=config_hash,
        code_version=code_version(),
        outputs=dict(outputs),
        report=dict(report),
        seconds=seconds,
        run_id=run_id,
        published_at=datetime.now(UTC),
    )


def _withdrawal(rows: Sequence[Published], run_id: str) -> Published:
    names = sorted(_name(r) for r in rows)
    date = datetime.now(UTC).date().isoformat()
    return entry(WITHDRAWAL, date, {"rows": digest(names)}, digest({}), {}, {"withdrawn": names}, 0.0, run_id)


def _record(row: Published) -> dict[str, Any]:
    return {**row.__dict__, **{c: canonical_json(getattr(row, c)) for c in ("inputs", "outputs", "report")}}


def _standing(rows: Sequence[Published]) -> list[Published]:
    """Those of all rows that were not withdrawn."""
    withdrawn = {name for r in rows if r.unit == WITHDRAWAL for name in r.report["withdrawn"]}
    return [r for r in rows if _name(r) not in withdrawn]


def _name(row: Published) -> str:
    """A row among those of its key."""
    return f"{row.key} {row.published_at.isoformat()}"


@cache
def code_version() -> str:
    """The git revision of this checkout ("-dirty" with uncommitted changes) or archive, else the installed version.

    "unknown" for a bare copy of the sources.
    """
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".git").exists():  # else git would answer for whatever checkout an environment lies in
        command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError):  # no git on this machine
            answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                return answer.stdout.strip()
    archived = importlib.resources.files("infra") / "REVISION"  # infra.archive puts it there
    if archived.is_file():
        return archived.read_text(encoding="utf-8")
    try:
        return importlib.metadata.version("logs2rec")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
