"""Raw lines to typed rows or quarantine: what a Spark task does with its split.

Runs on executors: standard library, pyarrow and this package's plain parts; the contract arrives as a
RowPlan, so that no configuration library is needed there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurize.reasons import Reason, Refused
from featurize.streams import Split, read_split
from featurize.values import microseconds, multi, number, text
from infra.tables import RAW_TYPES, UNDATED, Kind, column_of

if TYPE_CHECKING:  # executors have no pydantic
    from featurize.contract import Contract, FeatureField

BLOCK_ROWS = 8192
RAW_LIMIT = 4096
_DAY = 86400 * 10**6


@dataclass(frozen=True)
class RowPlan:
    """The contract as a task needs it: plain values only."""

    format: str
    delimiter: str
    user: str
    item: str
    time: str
    unit: str | None
    pattern: str | None
    type_column: str | None
    type_constant: str | None
    event_id: str | None
    key: tuple[str, ...]
    label: tuple[str, float | None, tuple[str, ...] | None] | None
    fields: tuple[tuple[str, str, str, str | None], ...]
    min_time: int
    max_time: int
    window_days: int

    @classmethod
    def of(cls, contract: Contract) -> RowPlan:
        """The plan of a contract."""
        rules, label = contract.rules, contract.label
        return cls(
            format=contract.source.format,
            delimiter=contract.source.delimiter,
            user=contract.user,
            item=contract.item,
            time=contract.time.column,
            unit=contract.time.unit,
            pattern=contract.time.format,
            type_column=contract.type.column,
            type_constant=contract.type.constant,
            event_id=contract.event_id,
            key=contract.key,
            label=(label.column, label.at_least, label.one_of) if label else None,
            fields=field_plan(contract.fields_from("log")),
            min_time=_day_start(rules.min_time),
            max_time=_day_start(rules.max_time),
            window_days=rules.window_days,
        )

    @property
    def schema(self) -> pa.Schema:
        """The rows a task returns. `reason` is null for an event; `lines` only stands in a split's own report."""
        fixed = [
            ("arrival", pa.string()),
            ("file", pa.string()),
            ("position", pa.int64()),
            ("lines", pa.int64()),
            ("reason", pa.string()),
            ("detail", pa.string()),
            ("raw", pa.string()),
            ("ds", pa.string()),
            ("event_id", pa.string()),
            ("user", pa.string()),
            ("item", pa.string()),
            ("ts", pa.timestamp("us", tz="UTC")),
            ("type", pa.string()),
            ("label", pa.int8()),
        ]
        return pa.schema([*fixed, *((column_of(n), RAW_TYPES[Kind(k)]) for n, k, _, _ in self.fields)])


def field_plan(fields: tuple[FeatureField, ...]) -> tuple[tuple[str, str, str, str | None], ...]:
    """(name, kind, raw column, separator) of each field."""
    return tuple((f.name, f.kind.value, f.raw_column, f.separator) for f in fields)


def reader_of(kind: str, separator: str | None) -> Callable[[Any], Any]:
    """The reader of one field's values."""
    return {Kind.CATEGORICAL: text, Kind.NUMERIC: number, Kind.MULTI: multi(separator)}[Kind(kind)]


class RowParser:
    """Turns records into typed rows by a plan; one per task."""

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan
        self.time = microseconds(plan.unit, plan.pattern)
        self.fields = [(n, c, reader_of(k, s)) for n, k, c, s in plan.fields]

    def __call__(self, split: Split, record: dict[str, Any]) -> dict[str, Any]:
        """The event's columns; raises Refused."""
        plan = self.plan
        user = self._id(record, plan.user, Reason.NULL_USER)
        item = self._id(record, plan.item, Reason.NULL_ITEM)
        ts = self._time(record, split.arrival)
        event_type = plan.type_constant or self._id(record, str(plan.type_column), Reason.NULL_TYPE)
        row = {
            "ds": (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ts)).date().isoformat(),
            "event_id": self._event_id(record, user, item, ts, event_type),
            "user": user,
            "item": item,
            "ts": ts,
            "type": event_type,
            "label": self._label(record),
        }
        for name, column, read in self.fields:
            try:
                row[column_of(name)] = read(record.get(column))
            except ValueError as error:
                raise Refused(Reason.BAD_FIELD, f"{column}: {error}") from None
        return row

    @staticmethod
    def _part(record: dict[str, Any], column: str) -> str | None:
        try:
            return text(record.get(column))
        except ValueError as error:
            raise Refused(Reason.BAD_ID, f"{column}: {error}") from None

    def _id(self, record: dict[str, Any], column: str, reason: Reason) -> str:
        value = self._part(record, column)
        if value is None:
            raise Refused(reason, f"{column} is absent, null or empty")
        return value

    def _time(self, record: dict[str, Any], arrival: str) -> int:
        plan = self.plan
        try:
            ts = self.time(record.get(plan.time))
        except ValueError as error:
            raise Refused(Reason.BAD_TIME, f"{plan.time}: {error}") from None
        if ts is None:
            raise Refused(Reason.BAD_TIME, f"{plan.time} is absent, null or empty")
        if not plan.min_time <= ts < plan.max_time:
            raise Refused(
                Reason.OUT_OF_BOUNDS, f"{plan.time}: {record.get(plan.time)!r} lies outside rules.min_time/max_time"
            )
        if arrival != UNDATED:
            age = _day_start(date.fromisoformat(arrival)) // _DAY - ts // _DAY
            if age < -1:  # a day of grace for clocks and time zones
                raise Refused(Reason.FUTURE, f"{-age} days after its arrival {arrival}")
            if age > plan.window_days:
                raise Refused(
                    Reason.TOO_LATE, f"{age} days before its arrival {arrival}; rules.window_days is {plan.window_days}"
                )
        return ts

    def _event_id(self, record: dict[str, Any], user: str, item: str, ts: int, event_type: str) -> str:
        if self.plan.event_id is not None:
            return self._id(record, self.plan.event_id, Reason.NULL_ID)
        key: list[str | int | None] = [user, item, ts, event_type]
        if self.plan.key:
            key = [self._part(record, c) for c in self.plan.key]
            if all(part is None for part in key):  # or all such rows would pass for copies of one
                raise Refused(Reason.NULL_ID, f"{', '.join(self.plan.key)}: all absent, null or empty")
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]

    def _label(self, record: dict[str, Any]) -> int | None:
        if self.plan.label is None:
            return None
        column, at_least, one_of = self.plan.label
        try:
            if at_least is not None:
                value = number(record.get(column))
                if value is None:
                    raise ValueError("absent, null or not finite")
                return int(value >= at_least)
            return int(text(record.get(column)) in (one_of or ()))
        except ValueError as error:
            raise Refused(Reason.BAD_LABEL, f"{column}: {error}") from None


def parse_split(plan: RowPlan, split: Split) -> Iterator[pa.RecordBatch]:
    """Every row of the split as plan.schema, then one report row.

    The report carries the number of rows read as `lines`, and as `detail` the JSON list of those field
    columns that no record had at all.
    """
    parser, block, count = RowParser(plan), [], 0
    absent = {column for _, _, column, _ in plan.fields}
    for position, raw, record in read_split(split, plan.format, plan.delimiter):
        count += 1
        if absent and isinstance(record, dict):
            absent.difference_update(record)
        row: dict[str, Any] = {"arrival": split.arrival, "file": split.file, "position": position}
        try:
            if isinstance(record, Refused):
                raise record
            row |= parser(split, record)
        except Refused as refusal:
            row |= {
                "reason": refusal.reason.value,
                "detail": refusal.detail[:RAW_LIMIT],
                "raw": _shown(raw, record)[:RAW_LIMIT],
            }
        block.append(row)
        if len(block) >= BLOCK_ROWS:
            yield pa.RecordBatch.from_pylist(block, schema=plan.schema)
            block = []
    report = {"lines": count, "detail": json.dumps(sorted(absent))}
    block.append({"arrival": split.arrival, "file": split.file, "position": split.start, **report})
    yield pa.RecordBatch.from_pylist(block, schema=plan.schema)


def _shown(raw: bytes, record: dict[str, Any] | Refused) -> str:
    """The row as found; of Parquet, which has no lines, as JSON."""
    if raw or isinstance(record, Refused):
        return raw[:RAW_LIMIT].decode("utf-8", "backslashreplace")
    return json.dumps(record, default=str)


def _day_start(day: date) -> int:
    return (day - date(1970, 1, 1)).days * _DAY
