"""What a changed contract means for the arrivals that were ingested under the old one.

A contract that differs in any setting is another version of it. What the rows of `events` mean decides:

- compatible: older arrivals stay as they are, arrivals from now on follow the new version. A column of the
  raw log under another name is taken for the same column renamed; the tables' own names never change.
- rebuild: the old rows would mean something else than the new ones (labels, identities, kinds), so every
  arrival has to be ingested again from its raw files.
- workspace: not even that joins the two (another log, arrivals cut otherwise).

Pure functions of two contracts; nothing here looks at a table or a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from featurize.contract import Contract, FeatureField
from infra.config import canonical_json


class Verdict(IntEnum):
    """How far a change reaches; the larger, the farther."""

    SAME = 0
    COMPATIBLE = 1
    REBUILD = 2
    WORKSPACE = 3


@dataclass(frozen=True)
class Difference:
    """One setting that changed, how far that reaches, and why, in words."""

    setting: str
    verdict: Verdict
    words: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.words}"


@dataclass(frozen=True)
class Change:
    """Everything in which two contracts differ."""

    differences: tuple[Difference, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of the difference that reaches farthest."""
        return max((d.verdict for d in self.differences), default=Verdict.SAME)

    @property
    def refused(self) -> tuple[Difference, ...]:
        """The differences that older arrivals cannot stay with."""
        return tuple(d for d in self.differences if d.verdict > Verdict.COMPATIBLE)


_ONWARDS = "arrivals from now on are read this way"
_LATER_STAGES = "concerns the stages after ingestion, which follow it for all arrivals"
_COMPATIBLE: Mapping[str, str] = {
    "source.path": _ONWARDS,
    "source.format": _ONWARDS,
    "source.delimiter": _ONWARDS,
    "source.columns": _ONWARDS,
    "user": "taken for the same ids under another column name",
    "item": "taken for the same ids under another column name",
    "time.column": "taken for the same time under another column name",
    "time.unit": _ONWARDS,
    "time.format": _ONWARDS,
    "targets": _LATER_STAGES,
    "context": _LATER_STAGES,
}
"""Settings whose every change is compatible, and what it means. What stands nowhere in this file is not."""

_SECTIONS: Mapping[tuple[str, ...], str] = {
    ("rules.",): _ONWARDS,
    ("users.", "items."): "side files are read as they are now",
}
"""Sections of such settings."""

_REBUILD: Mapping[str, str] = {
    "type.constant": "events of older arrivals would keep the other type",
    "label.at_least": "labels of older arrivals follow the other rule",
    "label.one_of": "labels of older arrivals follow the other rule",
}
_RENAMES = {
    "event_id": "copies of older events would not be recognised",
    "type.column": "events of older arrivals would keep the other type",
    "label.column": "labels of older arrivals follow the other rule",
}
"""Columns: compatible when renamed, not when they come or go; and why not."""


def compare(old: Contract, new: Contract) -> Change:
    """Every setting in which `new` differs from `old`, the farthest reaching ones first."""
    found = [*_settings(old, new), *_key(old, new), *_fields(old, new)]
    return Change(tuple(sorted(found, key=lambda d: (-d.verdict, d.setting))))


def introduced(old: Contract, new: Contract) -> tuple[str, ...]:
    """Log fields that `new` reads from a column from which `old` did not: the log must know that column.

    >>> base = {"name": "n", "source": {"path": "p", "format": "json"}, "user": "u", "item": "i",
    ...         "time": {"column": "t", "unit": "s"}}
    >>> wide = {**base, "fields": [{"name": "price", "kind": "numeric"}]}
    >>> introduced(Contract.model_validate(base), Contract.model_validate(wide))
    ('price',)
    """
    before = {(f.name, f.raw_column) for f in old.fields_from("log")}
    return tuple(f.name for f in new.fields_from("log") if (f.name, f.raw_column) not in before)


def _settings(old: Contract, new: Contract) -> Iterator[Difference]:
    """Single settings; `fields` and `key` are looked at as wholes elsewhere."""
    before, after = _flat(old), _flat(new)
    for setting in sorted({*before, *after}):
        a, b = before.get(setting), after.get(setting)
        if a == b:
            continue
        verdict, why = _judge(setting, a, b, old, new)
        yield Difference(setting, verdict, f"{_shown(a)} became {_shown(b)}; {why}")


def _judge(setting: str, before: Any, after: Any, old: Contract, new: Contract) -> tuple[Verdict, str]:
    if setting == "name":
        return Verdict.WORKSPACE, "another name is another log; keep the name if it is the same one"
    if setting == "personal":
        return Verdict.WORKSPACE, "tables hold user ids as logged or as pseudonyms, never both"
    if setting == "source.path" and old.dated != new.dated:
        return Verdict.WORKSPACE, "arrivals with and without {date} in the path are not the same arrivals"
    for sections, words in _SECTIONS.items():
        if setting.startswith(sections):
            return Verdict.COMPATIBLE, words
    if setting in _COMPATIBLE:
        return Verdict.COMPATIBLE, _COMPATIBLE[setting]
    if setting in _RENAMES and before is not None and after is not None:
        return Verdict.COMPATIBLE, "taken for the same values under another column name"
    return Verdict.REBUILD, _RENAMES.get(setting) or _REBUILD.get(setting, "older arrivals were ingested otherwise")


def _key(old: Contract, new: Contract) -> Iterator[Difference]:
    """The columns that identify an event, where those that were only renamed count as the same."""
    if new.event_id is None and old.event_id is None and old.key != new.key:
        renamed = dict(_renamed(old, new))
        same = tuple(renamed.get(c, c) for c in old.key) == new.key
        why = "the same columns under other names" if same else _RENAMES["event_id"]
        words = f"{_shown(old.key)} became {_shown(new.key)}; {why}"
        yield Difference("key", Verdict.COMPATIBLE if same else Verdict.REBUILD, words)


def _renamed(old: Contract, new: Contract) -> Iterator[tuple[str, str]]:
    """(raw column before, raw column now) of everything that both contracts read."""
    yield from ((old.user, new.user), (old.item, new.item), (old.time.column, new.time.column))
    for before, after in ((old.type, new.type), (old.label, new.label)):
        if before is not None and after is not None and before.column and after.column:
            yield before.column, after.column
    now = {f.name: f for f in new.fields_from("log")}
    yield from ((f.raw_column, now[f.name].raw_column) for f in old.fields_from("log") if f.name in now)


def _fields(old: Contract, new: Contract) -> Iterator[Difference]:
    before, after = ({f.name: f for f in c.fields} for c in (old, new))
    for name in sorted({*before, *after}):
        setting = f"fields.{name}"
        if name not in before:
            yield Difference(setting, Verdict.COMPATIBLE, f"new; {_absence(after[name])}")
        elif name not in after:
            words = "dropped; its column keeps what older arrivals brought, samples no longer use it"
            yield Difference(setting, Verdict.COMPATIBLE, words)
        else:
            yield from _field(setting, before[name], after[name])
    common = [[n for n in names if n in before and n in after] for names in (before, after)]
    if common[0] != common[1]:
        yield Difference("fields", Verdict.COMPATIBLE, f"in another order; {_LATER_STAGES}")


def _absence(field: FeatureField) -> str:
    if field.source == "log":
        return "missing in older arrivals"
    if field.source == "time":
        return f"read from the events' times, {_LATER_STAGES}"
    return f"read from the side file of the {field.source} as it is now"


def _field(setting: str, old: FeatureField, new: FeatureField) -> Iterator[Difference]:
    """The settings of one field that both contracts have."""
    a, b = old.model_dump(mode="json"), new.model_dump(mode="json")
    a["column"], b["column"] = old.raw_column, new.raw_column
    for part in sorted(a):
        if a[part] == b[part]:
            continue
        verdict, why = Verdict.REBUILD, "older arrivals were ingested otherwise"
        if part == "kind":
            why = "its column in the tables holds values of the other kind"
        elif part == "column" and old.source == new.source == "time":
            why = "its vocabulary would mean another part of the time; give the field another name"
        elif part == "column" and "time" in (old.source, new.source):
            continue  # the source says it
        elif part == "column":
            verdict, why = Verdict.COMPATIBLE, "taken for the same values under another column name"
        elif part == "separator":
            verdict, why = Verdict.COMPATIBLE, _ONWARDS
        elif part == "source":
            verdict, why = Verdict.COMPATIBLE, _absence(new)
        yield Difference(f"{setting}.{part}", verdict, f"{_shown(a[part])} became {_shown(b[part])}; {why}")


def _flat(contract: Contract) -> dict[str, Any]:
    """{"source.path": ..., "label.column": ...}; a section that is left out has no settings."""
    out: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for part, inner in value.items():
                walk(f"{prefix}.{part}" if prefix else part, inner)
        else:
            out[prefix] = sorted(value) if prefix == "label.one_of" and value else value

    walk("", contract.model_dump(mode="json", exclude={"fields", "key"}))
    return out


def _shown(value: Any) -> str:
    return "nothing" if value is None else canonical_json(value)
