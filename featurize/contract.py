"""The contract: how a raw log becomes events. One YAML file per log, validated before anything runs.

A contract names files, columns, units and rules; it holds no code. See the README, "Your own logs".
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from featurize.streams import MAX_LINE_BYTES
from featurize.time_fields import PARTS
from featurize.values import text
from infra.config import Settings
from infra.tables import Kind

FileFormat = Literal["json", "csv", "parquet"]

Value = Annotated[str, BeforeValidator(lambda v: text(v) if isinstance(v, int | float) else v)]
"""A logged value as text; a number written without quotes is read the way the log's numbers are."""


class Source(Settings):
    """Where raw files lie and how they are written."""

    path: str = Field(min_length=1)
    """Relative to the recipe's `data`: a file, a folder (all files below it), or a glob; `{date}` stands for
    the arrival date (YYYY-MM-DD) and makes the log a dated one. `.gz` and `.zst` files are decompressed."""
    format: FileFormat
    """json (one object per line), csv, or parquet."""
    delimiter: str = Field(",", min_length=1, max_length=1)
    """csv: the column separator, e.g. "\\t"."""
    columns: tuple[str, ...] | None = None
    """csv without a header line: the column names in order."""

    @model_validator(mode="after")
    def _of_csv(self) -> Source:
        if self.delimiter in '"\r\n':
            raise ValueError("delimiter: a quote or line break cannot separate columns")
        if self.columns is not None and self.format != "csv":
            raise ValueError(f"columns: {self.format} files name their own columns; leave it out")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: a name is given twice")
        return self


class Time(Settings):
    """Which column is the event time and how it is written."""

    column: str
    unit: Literal["s", "ms", "us", "ns", "auto", "iso"] | None = None
    """Numbers since 1970 in this unit, or `iso` for ISO 8601 text (UTC where it names no zone). `auto` for a log
    that mixes units: each number is taken for s, ms, us or ns by its size, between the years 1980 and 2200."""
    format: str | None = None
    """Or a strptime format, read as UTC."""

    @model_validator(mode="after")
    def _one_of(self) -> Time:
        if (self.unit is None) == (self.format is None):
            raise ValueError("give exactly one of unit and format")
        return self


class EventType(Settings):
    """The event type: a column, or one constant for the whole log."""

    column: str | None = None
    constant: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of(self) -> EventType:
        if (self.column is None) == (self.constant is None):
            raise ValueError("give exactly one of column and constant")
        return self


class Label(Settings):
    """What makes an event a positive one (label 1); every other event is a negative one (label 0)."""

    column: str
    at_least: float | None = None
    """Positive when the column's number is at least this."""
    one_of: tuple[Value, ...] | None = Field(None, min_length=1)
    """Or positive when the column's text is one of these."""

    @model_validator(mode="after")
    def _one_rule(self) -> Label:
        if (self.at_least is None) == (self.one_of is None):
            raise ValueError("give exactly one of at_least and one_of")
        return self


class FeatureField(Settings):
    """One feature field of the ranking samples."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Its name in tables (column f_name)."""
    kind: Kind
    """categorical, numeric or multi (a list, or text cut at `separator`)."""
    column: str | None = None
    """Column in the raw log or side file, or the part of the time; the field's own name if left out."""
    source: Literal["log", "users", "items", "time"] = "log"
    """The log itself, the side file that is joined by user or item id, or the event's time: its `hour` or `weekday`."""
    separator: str | None = Field(None, min_length=1)
    """multi from text: where to cut."""

    @model_validator(mode="after")
    def _of_lists(self) -> FeatureField:
        if self.separator is not None and self.kind is not Kind.MULTI:
            raise ValueError(f"separator: only a multi field is cut, and {self.name} is {self.kind.value}")
        return self

    @model_validator(mode="after")
    def _of_time(self) -> FeatureField:
        if self.source == "time" and self.raw_column not in PARTS:
            raise ValueError(f"column: of an event's time there are {', '.join(PARTS)}, and no {self.raw_column!r}")
        if self.source == "time" and self.kind is not Kind.CATEGORICAL:
            raise ValueError(f"kind: {self.name} comes from the event's time, and is categorical")
        return self

    @property
    def raw_column(self) -> str:
        """The column in the raw file."""
        return self.column or self.name


class Side(Source):
    """A side file with one row per user or item."""

    key: str
    """The column that holds the user or item id."""
    time: Time | None = None
    """From when on a row holds: then a key may have several, and an event sees the latest that held by its
    own time (none: its fields are missing). Without it an event sees the side file as of its day."""


class Rules(Settings):
    """Bounds that a row must keep."""

    min_time: date = date(1990, 1, 1)
    """Events before this day (UTC) are quarantined."""
    max_time: date = date(2100, 1, 1)
    """Events from this day on are quarantined."""
    window_days: int = Field(3, ge=0)
    """W, dated logs: an event that arrives more than W days after its date is quarantined as too_late;
    duplicates are sought among events at most W + 1 days apart, as far as one arrival's own events can be."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """A batch with a larger share of quarantined rows is refused whole."""
    max_line_bytes: int = Field(MAX_LINE_BYTES, ge=1)
    """A longer line of a json or csv file (its end not counted) is quarantined as too_long and never held whole:
    what a task needs of memory, whatever the log brings."""

    @model_validator(mode="after")
    def _some_time(self) -> Rules:
        if self.min_time >= self.max_time:
            raise ValueError("min_time must lie before max_time")
        return self


class Contract(Settings):
    """How a raw log becomes events."""

    name: str = Field(min_length=1)
    source: Source
    user: str
    """Column of the user id."""
    item: str
    """Column of the item id."""
    time: Time
    type: EventType = EventType(constant="event")
    personal: bool = True
    """User ids name people: they leave ingestion as pseudonyms (see the recipe's `pseudonyms`), and quarantine
    shows no values. false for synthetic or published ids, which are then kept as logged."""
    event_id: str | None = None
    """Column of the event's own id. Of an id that comes again with other values the first row counts, the others
    are quarantined as id_conflict."""
    key: tuple[str, ...] = ()
    """Without `event_id`: the columns that together identify an event; user, item, time and type if empty."""
    targets: tuple[Value, ...] = ()
    """Event types that a recommender should predict; all types if empty."""
    context: tuple[Value, ...] = ()
    """Event types that stand in histories beside the targets."""
    label: Label | None = None
    fields: tuple[FeatureField, ...] = ()
    users: Side | None = None
    items: Side | None = None
    rules: Rules = Rules()

    @model_validator(mode="after")
    def _consistent(self) -> Contract:
        names = [f.name for f in self.fields]
        if repeated := {n for n in names if names.count(n) > 1}:
            raise ValueError(f"fields: the names {sorted(repeated)} are given twice")
        if self.event_id is not None and self.key:
            raise ValueError("key: event_id identifies an event already; leave one of them out")
        if self.context and not self.targets:
            raise ValueError("context: without targets every type is one; name the targets")
        if self.type.constant is not None and self.targets and self.type.constant not in self.targets:
            raise ValueError(f"targets: every event is of type {self.type.constant!r} (type.constant)")
        if reserved := {"user", "item"} & set(names):
            raise ValueError(f"fields: {sorted(reserved)} are added by themselves; rename the field")
        if len(names) > 60:
            raise ValueError("fields: at most 60 (the missing mask has 62 bits, user and item take two)")
        for side in ("users", "items"):
            if any(f.source == side for f in self.fields) and getattr(self, side) is None:
                raise ValueError(f"{side}: a field comes from there, so say where the file lies")
        for file in (self.users, self.items):
            if file is not None and "{date}" in file.path:
                raise ValueError("side files carry no {date}: they are read as they are at each run")
        return self

    @model_validator(mode="after")
    def _user_nowhere_else(self) -> Contract:
        """Personal ids are stored as pseudonyms; the same column under another role would be stored as logged."""
        if not self.personal:
            return self
        roles = {"item": self.item, "type.column": self.type.column, "event_id": self.event_id}
        roles |= {f"fields: {f.name}": f.raw_column for f in self.fields_from("log")}
        if shown := [role for role, column in roles.items() if column == self.user]:
            raise ValueError(
                f"{shown[0]}: the column {self.user!r} holds user ids; leave it out, or say personal: false"
            )
        key = self.users.key if self.users is not None else None
        if shown := [f.name for f in self.fields_from("users") if f.raw_column == key]:
            raise ValueError(f"fields: {shown[0]}: the column {key!r} holds user ids; leave it out")
        return self

    @property
    def dated(self) -> bool:
        """Whether the log's files carry their arrival date in the path."""
        return "{date}" in self.source.path

    def fields_from(self, source: str) -> tuple[FeatureField, ...]:
        """The feature fields that one source carries, in the contract's order."""
        return tuple(f for f in self.fields if f.source == source)

    def kinds_from(self, source: str) -> list[tuple[str, Kind]]:
        """(name, kind) of the feature fields that one source carries, as infra.tables wants them."""
        return [(f.name, f.kind) for f in self.fields_from(source)]
