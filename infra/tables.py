"""Every Delta table's schema, declared once: name, type, meaning, nullability, partitioning.

`featurize` writes and `train` and `evaluate` read; these declarations are all they share.
Feature fields come from the contract: a field `x` is the column `f_x`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

#: Written into every ledger key: raise it when the meaning of a table changes.
FORMAT_VERSION = 1

PADDING, UNKNOWN, FIRST_INDEX = 0, 1, 2
"""Vocabulary indices 0 and 1 are padding and unknown in every vocabulary; keys start at 2."""

UNDATED = "undated"
"""The one arrival of a log whose path carries no `{date}`."""

HISTORY = "history"
"""The feature field that `samples.history` adds: past items, as indices of the items' vocabulary."""

TIMESTAMP = pa.timestamp("us", tz="UTC")


class Kind(StrEnum):
    """What the values of a feature field are."""

    CATEGORICAL = "categorical"
    NUMERIC = "numeric"
    MULTI = "multi"


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, whether it may be null, and what it means."""

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """One Delta table: columns in order and the columns it is partitioned by."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    partition_by: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, nullability included."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns])

    @property
    def file_schema(self) -> pa.Schema:
        """What stands in the Parquet files: everything but the partition columns."""
        return pa.schema([f for f in self.schema if f.name not in self.partition_by])


def column_of(field: str) -> str:
    """The column that carries a feature field.

    >>> column_of("genres")
    'f_genres'
    """
    return f"f_{field}"


RAW_TYPES = {Kind.CATEGORICAL: pa.string(), Kind.NUMERIC: pa.float64(), Kind.MULTI: pa.list_(pa.string())}
INDEX_TYPES = {Kind.CATEGORICAL: pa.int32(), Kind.NUMERIC: pa.float64(), Kind.MULTI: pa.list_(pa.int32())}


def _raw(fields: Sequence[tuple[str, Kind]]) -> tuple[Column, ...]:
    return tuple(Column(column_of(n), RAW_TYPES[k], f"feature field {n} as logged", True) for n, k in fields)


ARRIVAL = Column("arrival", pa.string(), "arrival date of the raw file (YYYY-MM-DD, or 'undated')")
AS_OF = Column("as_of", pa.string(), "run date (UTC) that the rows are as of")


def events(fields: Sequence[tuple[str, Kind]]) -> Table:
    """The one immutable record of what happened; `fields` are those that the log itself carries."""
    columns = (
        ARRIVAL,
        Column("ds", pa.string(), "event date, UTC"),
        Column("event_id", pa.string(), "the log's own id, else a (for personal ids keyed) hash of the contract's key"),
        Column("user", pa.string(), "pseudonym of the user id, or the id as logged where the contract is not personal"),
        Column("item", pa.string(), "item id as logged"),
        Column("ts", TIMESTAMP, "event time"),
        Column("type", pa.string(), "event type"),
        Column("label", pa.int8(), "1 positive, 0 negative, null where the contract has no label rule", True),
        Column("file", pa.string(), "raw file, relative to the data root"),
        Column(
            "position",
            pa.int64(),
            "byte offset in a plain file, line number in a compressed one, row in Parquet",
        ),
        *_raw(fields),
    )
    return Table("events", "validated, deduplicated, typed events", columns, ("arrival", "ds"))


VALID_FROM = Column("valid_from", TIMESTAMP, "the row holds from then on, until the key's next row")


def side_features(of: str, fields: Sequence[tuple[str, Kind]], timed: bool = False) -> Table:
    """Feature fields of users or items from their side file (`of` is 'user' or 'item').

    `timed`: the file says from when on a row holds, and a key may have several.
    """
    key = Column("key", pa.string(), f"{of} id, as in events")
    columns = (ARRIVAL, key, *((VALID_FROM,) if timed else ()), *_raw(fields))
    return Table(f"{of}_features", f"feature fields of each {of}, from its side file", columns, ("arrival",))


QUARANTINE = Table(
    "quarantine",
    "every refused row with its reason, file and position",
    (
        ARRIVAL,
        Column("file", pa.string(), "raw file, relative to the data root"),
        Column("position", pa.int64(), "byte offset, line number or row, as in events"),
        Column("reason", pa.string(), "one word from featurize.reasons.Reason"),
        Column("detail", pa.string(), "the column at fault, and its value where the contract is not personal"),
        Column(
            "raw",
            pa.string(),
            "the row as found, at most 4096 characters, bad bytes escaped (id_conflict: its typed columns as JSON); "
            "empty where the contract is personal",
        ),
    ),
    ("arrival",),
)

INGESTED_FILES = Table(
    "ingested_files",
    "the raw input's version and its account: rows = events + duplicates + quarantined",
    (
        ARRIVAL,
        Column("path", pa.string(), "raw file, relative to the data root"),
        Column("size", pa.int64(), "bytes"),
        Column("etag", pa.string(), "hash of size and modification time: a changed file has another"),
        Column("rows", pa.int64(), "physical rows, a header not counted"),
        Column("events", pa.int64(), "rows that became events"),
        Column("duplicates", pa.int64(), "rows whose event was already there"),
        Column("quarantined", pa.int64(), "rows refused"),
        Column("late", pa.int64(), "events of an earlier day than their arrival (counted in events)"),
    ),
    ("arrival",),
)

ITEMS = Table(
    "items",
    "append-only item vocabulary: 0 is padding, 1 unknown, both implicit",
    (
        ARRIVAL,
        Column("index", pa.int32(), "index, from 2, in order of (arrival, key bytes)"),
        Column("key", pa.string(), "item id as logged"),
    ),
    ("arrival",),
)

FIELD_VALUES = Table(
    "field_values",
    "append-only vocabularies of the categorical and multi-valued fields",
    (
        ARRIVAL,
        Column("field", pa.string(), "field name"),
        Column("index", pa.int32(), "index within the field, from 2"),
        Column("key", pa.string(), "value as logged"),
    ),
    ("arrival",),
)

HISTORIES = Table(
    "histories",
    "each user's last events: a base up to a day, and a tail for every day after it",
    (
        Column("ds", pa.string(), "tail: the one event date of its events; base: the last event date in it"),
        Column("kind", pa.string(), "base or tail"),
        Column("bucket", pa.string(), "bucket of the user's hash; function and count are properties of the table"),
        Column("user", pa.string(), "user id"),
        Column("items", pa.list_(pa.int32()), "item indices, oldest first; 1 if the item was unknown on arrival"),
        Column("ts", pa.list_(TIMESTAMP), "time of each event"),
        Column("is_target", pa.list_(pa.bool_()), "whether each event is of a target type; null: all are", True),
        Column("first_target", pa.int32(), "tail: item of the day's first event of a target type", True),
        Column("first_target_ts", TIMESTAMP, "its time, even where the cap left the event itself out", True),
    ),
    ("ds", "kind", "bucket"),
)

SEQUENCES = Table(
    "sequences",
    "training chunks and evaluation targets as of a date",
    (
        AS_OF,
        Column("split", pa.string(), "train, valid or test"),
        Column("user", pa.string(), "user id"),
        Column(
            "items",
            pa.list_(pa.int32()),
            "train: a chunk of at most L+1 events; else the history before the target; oldest first",
        ),
        Column(
            "is_target",
            pa.list_(pa.bool_()),
            "which of these are of a target type, hence to be predicted (train) or taken already; null: all of them",
            True,
        ),
        Column("target", pa.int32(), "valid and test: the item to find", True),
        Column("target_ts", TIMESTAMP, "time of the target", True),
        Column(
            "target_known",
            pa.bool_(),
            "the target's item has an event before the cut; if not it counts as a miss",
            True,
        ),
    ),
    ("as_of", "split"),
)


def samples(fields: Sequence[tuple[str, Kind]]) -> Table:
    """Labelled impressions: one column of indices (or values) per field and which are really missing."""
    columns = (
        AS_OF,
        Column("split", pa.string(), "train, valid or test"),
        Column("event_id", pa.string(), "the event"),
        Column("user", pa.string(), "user id, the unit of UAUC"),
        Column("item", pa.int32(), "item index"),
        Column("ts", TIMESTAMP, "event time"),
        Column("label", pa.int8(), "0 or 1"),
        Column("label_source", pa.string(), "observed or sampled"),
        Column("missing", pa.int64(), "bit i set: field at position i is absent or null in the log"),
        *(
            Column(
                column_of(n),
                INDEX_TYPES[k],
                f"field {n}: index, indices or value; null only if missing",
                True,
            )
            for n, k in fields
        ),
    )
    return Table("samples", "missing-feature samples as of a date", columns, ("as_of", "split"))


FIELDS = Table(
    "fields",
    "the fields of `samples`: order, kind, size and statistics over its training rows",
    (
        AS_OF,
        Column("position", pa.int32(), "bit of the field in samples.missing"),
        Column("name", pa.string(), "field name; its column is f_name"),
        Column("kind", pa.string(), "categorical, numeric or multi"),
        Column("size", pa.int32(), "vocabulary size with padding and unknown; 0 for numeric"),
        Column("mean", pa.float64(), "numeric: mean over training rows where present; else 0"),
        Column("std", pa.float64(), "numeric: standard deviation over training rows, 1 if constant; else 1"),
        Column("missing_rate", pa.float64(), "share of training rows where the field is missing"),
    ),
    ("as_of",),
)

MISSING_RATES = Table(
    "missing_rates",
    "how often each field of `samples` was missing on each day, in rows that were observed (sampled ones left out)",
    (
        AS_OF,
        Column("ds", pa.string(), "event date, UTC"),
        Column("field", pa.string(), "field name"),
        Column("rows", pa.int64(), "observed rows of the day, in all splits"),
        Column("missing", pa.int64(), "those where the field is missing; the rate is missing / rows"),
    ),
    ("as_of",),
)

POPULARITY = Table(
    "popularity",
    "positive events per item and day, from which the negatives of `samples` were drawn",
    (
        AS_OF,
        Column("ds", pa.string(), "event date, UTC"),
        Column("item", pa.int32(), "item index, from 2"),
        Column("events", pa.int64(), "positive events of the item, known to the vocabulary when they arrived"),
    ),
    ("as_of", "ds"),
)

FIRST_SEEN = Table(
    "first_seen",
    "every user and item once, under the arrival that brought it first (for the data report)",
    (
        ARRIVAL,
        Column("kind", pa.string(), "user or item"),
        Column("key", pa.string(), "the id as in events"),
    ),
    ("arrival", "kind"),
)

PROFILES = Table(
    "profiles",
    "the data report's distributions: one row per arrival and column",
    (
        ARRIVAL,
        Column("position", pa.int32(), "order of the rows: the event type, log fields, then those of side files"),
        Column("source", pa.string(), "events, users or items"),
        Column("column", pa.string(), "column of that table: type, or f_ and the field's name"),
        Column("kind", pa.string(), "categorical, numeric or multi"),
        Column("rows", pa.int64(), "rows of the arrival (or of the side file's snapshot)"),
        Column("missing", pa.int64(), "those in which the column is null"),
        Column("psi", pa.float64(), "population stability index against the arrival before; null for the first", True),
        Column("level", pa.string(), "stable, moderate, large or unclear; null for the first", True),
        Column("sketch", pa.string(), "JSON: featurize.sketch.Sketch"),
        Column("drift", pa.string(), "JSON: featurize.drift.Drift; null for the first", True),
    ),
    ("arrival",),
)

RUNS = Table(
    "runs",
    "the ledger: an output is published when its row is here",
    (
        Column(
            "key",
            pa.string(),
            "hash of unit, date, inputs, its section of the configuration and FORMAT_VERSION",
        ),
        Column("unit", pa.string(), "what was published, e.g. sequences or train:adrec"),
        Column("date", pa.string(), "arrival or run date"),
        Column("inputs", pa.string(), "JSON: upstream unit or table -> key or version"),
        Column("config_hash", pa.string(), "digest of the unit's section of the configuration"),
        Column("code_version", pa.string(), "git revision, or the package version outside a checkout"),
        Column("outputs", pa.string(), "JSON: table -> version, or artifact -> path"),
        Column("report", pa.string(), "JSON: row counts, metrics and whatever else the unit says of itself"),
        Column("seconds", pa.float64(), "wall time of the unit"),
        Column("run_id", pa.string(), "the command that published it"),
        Column("published_at", TIMESTAMP, "when"),
    ),
)

PROMOTIONS = Table(
    "promotions",
    "who moved which alias, when, why, from and to",
    (
        Column("name", pa.string(), "registered model name"),
        Column("action", pa.string(), "promote, hold, reject or rollback"),
        Column("from_version", pa.string(), "champion before", True),
        Column("to_version", pa.string(), "champion after, or the candidate that was not promoted", True),
        Column("reasons", pa.string(), "JSON list of the gate's reasons"),
        Column("actor", pa.string(), "user and run id"),
        Column("at", TIMESTAMP, "when"),
    ),
)

RECOMMENDATIONS = Table(
    "recommendations",
    "the lists made at the end of a run date, for whoever serves them",
    (
        Column("ds", pa.string(), "run date"),
        Column("user", pa.string(), "user id; the empty one stands for whoever has no rows of their own"),
        Column("rank", pa.int32(), "place in the user's list, from 1"),
        Column("item", pa.string(), "item id as logged"),
        Column("score", pa.float64(), "of the source: inner product, probability, number of users"),
        Column("source", pa.string(), "what put the item there: retrieval, ranking or popular"),
        Column("model_version", pa.string(), "registered version of that model; null for popular", True),
    ),
    ("ds",),
)
