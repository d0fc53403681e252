"""Raw lines to typed rows or quarantine: what a Spark task does with its split.

Runs on executors: standard library, pyarrow and this package's plain parts; the contract arrives as a
RowPlan, so that no configuration library is needed there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from featurize.pseudonyms import UserKeys
from featurize.reasons import Reason, Refused, why
from featurize.streams import MAX_LINE_BYTES, Split, read_split
from featurize.values import microseconds, multi, number, text
from infra.errors import UsageError
from infra.tables import RAW_TYPES, UNDATED, Kind, column_of

if TYPE_CHECKING:  # executors have no pydantic
    from featurize.contract import Contract, FeatureField

BLOCK_ROWS = 8192
BLOCK_BYTES = 64 << 20
"""Raw bytes in a block: with the longest lines a block of rows would pass what an Arrow column can hold."""
RAW_LIMIT = 4096
MAX_ID_BYTES = 1 << 16
"""A longer id (in UTF-8) is a mistake of whoever logged it; 4 KB ids have been seen and are kept."""

_DAY = 86400 * 10**6
_EPOCH_DAY = date(1970, 1, 1)


@dataclass(frozen=True)
class RowPlan:
    """The contract as a task needs it: plain values only.

    With `keys` the user ids are personal: they leave as pseudonyms, and what is said of a refused row shows
    no value of it.
    """

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
    max_line_bytes: int = MAX_LINE_BYTES
    keys: UserKeys | None = None

    @classmethod
    def of(cls, contract: Contract, keys: UserKeys | None = None) -> RowPlan:
        """The plan of a contract; UsageError when it says that user ids are personal and there are no keys."""
        if contract.personal and keys is None:
            raise UsageError("personal: user ids are to become pseudonyms, and no key was given; see `pseudonyms`")
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
            max_line_bytes=rules.max_line_bytes,
            keys=keys if contract.personal else None,
        )

    @property
    def columns(self) -> frozenset[str]:
        """The raw columns that are read."""
        read = [self.user, self.item, self.time, self.type_column, self.event_id, *self.key]
        read += [self.label[0] if self.label else None, *(column for _, _, column, _ in self.fields)]
        return frozenset(column for column in read if column is not None)

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
    """Turns the records of one arrival into typed rows by a plan."""

    def __init__(self, plan: RowPlan, arrival: str) -> None:
        self.plan, self.arrival = plan, arrival
        self.personal = plan.keys is not None
        self.time = microseconds(plan.unit, plan.pattern)
        self.fields = [(column_of(n), c, reader_of(k, s)) for n, k, c, s in plan.fields]
        self.day = None if arrival == UNDATED else (date.fromisoformat(arrival) - _EPOCH_DAY).days
        self.dates: dict[int, str] = {}

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The event's columns; raises Refused."""
        plan = self.plan
        user = self._id(record, plan.user, Reason.NULL_USER)
        item = self._id(record, plan.item, Reason.NULL_ITEM)
        ts = self._time(record)
        event_type = plan.type_constant or self._id(record, str(plan.type_column), Reason.NULL_TYPE)
        row = {
            "ds": self._date(ts // _DAY),
            "event_id": self._event_id(record, user, item, ts, event_type),
            "user": user if plan.keys is None else plan.keys.pseudonym(user),
            "item": item,
            "ts": ts,
            "type": event_type,
            "label": self._label(record),
        }
        for name, column, read in self.fields:
            try:
                row[name] = read(record.get(column))
            except ValueError as error:
                raise self._refused(Reason.BAD_FIELD, column, error) from None
        return row

    def _refused(self, reason: Reason, column: str, error: ValueError) -> Refused:
        return Refused(reason, f"{column}: {why(error, self.personal)}")

    def _date(self, day: int) -> str:
        """A day's ISO date; a log has few of them."""
        if day not in self.dates:
            self.dates[day] = (_EPOCH_DAY + timedelta(days=day)).isoformat()
        return self.dates[day]

    def _id(self, record: dict[str, Any], column: str, reason: Reason) -> str:
        try:
            value = text(record.get(column))
        except ValueError as error:
            raise self._refused(Reason.BAD_ID, column, error) from None
        if value is None:
            raise Refused(reason, f"{column} is absent, null or empty")
        if len(value) > MAX_ID_BYTES // 4 and len(value.encode()) > MAX_ID_BYTES:
            raise Refused(Reason.BAD_ID, f"{column}: longer than {MAX_ID_BYTES} bytes")
        return value

    def _time(self, record: dict[str, Any]) -> int:
        plan = self.plan
        try:
            ts = self.time(record.get(plan.time))
        except ValueError as error:
            raise self._refused(Reason.BAD_TIME, plan.time, error) from None
        if ts is None:
            raise Refused(Reason.BAD_TIME, f"{plan.time} is absent, null or empty")
        if not plan.min_time <= ts < plan.max_time:
            shown = "the time" if self.personal else repr(record.get(plan.time))
            raise Refused(Reason.OUT_OF_BOUNDS, f"{plan.time}: {shown} lies outside rules.min_time/max_time")
        if self.day is not None:
            age = self.day - ts // _DAY
            if age < -1:  # a day of grace for clocks and time zones
                raise Refused(Reason.FUTURE, f"{-age} days after its arrival {self.arrival}")
            if age > plan.window_days:
                raise Refused(
                    Reason.TOO_LATE,
                    f"{age} days before its arrival {self.arrival}; rules.window_days is {plan.window_days}",
                )
        return ts

    def _event_id(self, record: dict[str, Any], user: str, item: str, ts: int, event_type: str) -> str:
        """The log's own id, else a hash of the key; of personal ids a keyed one, for those can be guessed."""
        plan = self.plan
        if plan.event_id is not None:
            return self._id(record, plan.event_id, Reason.NULL_ID)
        key: list[str | int | None] = [user, item, ts, event_type]
        if plan.key:
            key = [self._key_part(record, c) for c in plan.key]
            if all(part is None for part in key):  # or all such rows would pass for copies of one
                raise Refused(Reason.NULL_ID, f"{', '.join(plan.key)}: all absent, null or empty")
        name = json.dumps(key)
        return plan.keys.pseudonym(name) if plan.keys else hashlib.sha256(name.encode()).hexdigest()[:32]

    def _key_part(self, record: dict[str, Any], column: str) -> str | None:
        try:
            return text(record.get(column))
        except ValueError as error:
            raise self._refused(Reason.BAD_ID, column, error) from None

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
            raise self._refused(Reason.BAD_LABEL, column, error) from None


def parse_split(plan: RowPlan, split: Split) -> Iterator[pa.RecordBatch]:
    """Every row of the split as plan.schema, then one report row.

    The report carries the number of rows read as `lines`, and as `detail` the JSON list of those columns that no
    record had at all.
    """
    parser, schema, count = RowParser(plan, split.arrival), plan.schema, 0
    block: list[dict[str, Any]] = []
    held = 0
    absent = set(plan.columns)
    for position, raw, record in read_split(split, plan.format, plan.delimiter, plan.max_line_bytes, plan.columns):
        count += 1
        try:
            if isinstance(record, Refused):
                raise record
            if absent:
                absent.difference_update(record)
            row = parser(record)
        except Refused as refusal:
            row = {
                "reason": refusal.reason.value,
                "detail": refusal.detail[:RAW_LIMIT],
                "raw": "" if parser.personal else _shown(raw, record)[:RAW_LIMIT],
            }
        row["arrival"], row["file"], row["position"] = split.arrival, split.file, position
        block.append(row)
        held += len(raw)
        if len(block) >= BLOCK_ROWS or held >= BLOCK_BYTES:
            yield pa.RecordBatch.from_pylist(block, schema=schema)
            block, held = [], 0
    report = {"lines": count, "detail": json.dumps(sorted(absent))}
    block.append({"arrival": split.arrival, "file": split.file, "position": split.start, **report})
    yield pa.RecordBatch.from_pylist(block, schema=schema)


def _shown(raw: bytes, record: dict[str, Any] | Refused) -> str:
    """The row as found; of Parquet, which has no lines, as JSON."""
    if raw or isinstance(record, Refused):
        return raw[:RAW_LIMIT].decode("utf-8", "backslashreplace")
    return json.dumps(record, default=str)


def _day_start(day: date) -> int:
    return (day - _EPOCH_DAY).days * _DAY
