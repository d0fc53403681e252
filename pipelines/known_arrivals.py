"""The arrivals in the ledger, and which of their rows still hold under the contract of this command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurize.evolution import Verdict
from featurize.pseudonyms import UserKeys
from infra.config import digest
from infra.ledger import Published
from pipelines.context import Context
from pipelines.contract_versions import ContractVersions
from pipelines.user_keys import events_config, keys_of


class KnownArrivals:
    """Rows of the unit `events` whose tables mean what this program's do, under the user keys of this command.

    `under`: other keys.
    """

    def __init__(self, ctx: Context, under: UserKeys | None = None) -> None:
        self.versions = ContractVersions(ctx.ledger, ctx.contract)
        keys = under if under is not None else keys_of(ctx)
        hashes = {n: digest(events_config(self.versions.recorded(n), keys)) for n in self.versions.numbers}
        self._rows: dict[str, list[Published]] = {}
        for row in ctx.ledger.rows():
            if row.unit == "events":
                rows = self._rows.setdefault(row.date, [])
                if row.of_this_format and row.config_hash == hashes.get(int(row.report.get("contract", 0))):
                    rows.append(row)

    @property
    def arrivals(self) -> list[str]:
        """All that were ever published, also those of which no row holds any more."""
        return sorted(self._rows)

    def newest(self, arrival: str) -> Published | None:
        """The row of an arrival that holds as it is, whatever became of its files."""
        return self._best(self._rows.get(arrival, []))

    def find(self, arrival: str, inputs: Mapping[str, Any] | None, previous: Published | None) -> Published | None:
        """The row of these raw files behind `previous`; without `inputs` (the files are gone) one of any files."""
        rows = self._rows.get(arrival, [])
        behind = [r for r in rows if r.inputs["previous"] == (previous.key if previous is not None else None)]
        if inputs is None:
            return self._best(behind) or self._best(rows)
        return self._best([r for r in behind if r.inputs["files"] == inputs["files"]])

    def check(self, kept: Sequence[Published]) -> None:
        """Raise ContractChanged when an arrival cannot stay as it is under this contract."""
        for row in kept:
            self.versions.refuse(int(row.report["contract"]), row.date)

    def _best(self, rows: Sequence[Published]) -> Published | None:
        """The newest row under this very contract, else under one that it evolved from, else any."""
        verdicts = (Verdict.SAME, Verdict.COMPATIBLE, Verdict.WORKSPACE)
        for verdict in verdicts:
            for row in reversed(rows):
                if self.versions.change(int(row.report["contract"])).verdict <= verdict:
                    return row
        return None
