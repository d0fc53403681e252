"""Which contract each arrival was ingested under, and what the contract of today means for it.

The ledger numbers contracts by what they say: a contract that was in use before has its number again. The row
of a version (unit `contract:NUMBER`) carries the whole contract and the first arrival that was ingested under it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featurize.contract import Contract
from featurize.evolution import Change, Difference, Verdict, compare, introduced
from infra.config import parse
from infra.errors import ConfigError, ContractChanged
from infra.ledger import Ledger, Published

_UNIT = "contract:"


def is_version(row: Published) -> bool:
    """Whether the ledger's row is a version of the contract."""
    return row.unit.startswith(_UNIT)


def number_of(row: Published) -> int:
    """Its number, from 1."""
    return int(row.unit.removeprefix(_UNIT))


class ContractVersions:
    """The versions in the ledger beside the contract of this command."""

    def __init__(self, ledger: Ledger, current: Contract) -> None:
        self.ledger = ledger
        self.current = current
        self._rows = {number_of(r): r for r in ledger.rows() if is_version(r)}
        self._changes = {number: self._change(row) for number, row in self._rows.items()}

    @property
    def numbers(self) -> list[int]:
        """All versions there are."""
        return sorted(self._rows)

    def recorded(self, number: int) -> dict[str, Any]:
        """The contract of a version as it was published."""
        contract: dict[str, Any] = self._rows[number].report["contract"]
        return contract

    def change(self, number: int) -> Change:
        """From that version to the contract of this command."""
        return self._changes[number]

    def introduced(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """The log fields that this contract reads from a column that none of those versions named."""
        new: set[str] | None = None
        for number in numbers:
            old = self._parsed(self._rows[number])
            found = {*introduced(old, self.current)} if old is not None else set()
            new = found if new is None else new & found
        return tuple(sorted(new or ()))

    def refuse(self, number: int, arrival: str) -> None:
        """Raise ContractChanged unless an arrival ingested under that version can stay as it is."""
        change = self.change(number)
        if not change.refused:
            return
        listed = "\n".join(f"  {difference}" for difference in change.refused)
        migration = (
            "run `logs2rec run --rebuild`: it ingests every arrival again under this contract, if all their raw files "
            "are still there; or use a new workspace"
        )
        if change.verdict is Verdict.WORKSPACE:
            migration = "use a new workspace for it"
        raise ContractChanged(
            f"the contract changed in a way that arrival {arrival}, ingested under its version {number}, cannot "
            f"stay with:\n{listed}\nchange it back, or {migration}"
        )

    def publish(self, arrival: str, run_id: str) -> int:
        """The number of the contract of this command, which is in the ledger from now on."""
        for number, change in self._changes.items():
            if change.verdict is Verdict.SAME:
                return number
        number = max(self._rows, default=0) + 1
        before = self._changes[number - 1].differences if number > 1 else ()
        recorded = self.current.model_dump(mode="json")
        self._rows[number] = self.ledger.publish(
            unit=f"{_UNIT}{number}",
            date=arrival,
            inputs={},
            config=recorded,
            outputs={},
            report={"contract": recorded, "changes": [str(d) for d in before]},
            seconds=0.0,
            run_id=run_id,
        )
        self._changes[number] = Change()
        return number

    def _change(self, row: Published) -> Change:
        old = self._parsed(row)
        if old is None:
            words = "it was published by another version of logs2rec, which knew other settings"
            return Change((Difference("contract", Verdict.REBUILD, words),))
        return compare(old, self.current)

    @staticmethod
    def _parsed(row: Published) -> Contract | None:
        try:
            return parse(row.report["contract"], Contract, where=f"contract version {number_of(row)}")
        except ConfigError:
            return None
