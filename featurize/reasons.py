"""Why a row is refused."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row is in quarantine."""

    MALFORMED = "malformed"
    EMPTY_LINE = "empty_line"
    TOO_LONG = "too_long"
    DUPLICATE_KEY = "duplicate_key"
    TRUNCATED = "truncated_file"
    NULL_USER = "null_user"
    NULL_ITEM = "null_item"
    NULL_TYPE = "null_type"
    NULL_ID = "null_event_id"
    BAD_ID = "bad_id"
    BAD_TIME = "bad_time"
    BAD_LABEL = "bad_label"
    BAD_FIELD = "bad_field"
    OUT_OF_BOUNDS = "time_out_of_bounds"
    FUTURE = "from_the_future"
    TOO_LATE = "too_late"
    ID_CONFLICT = "id_conflict"


class Refused(Exception):  # noqa: N818  (an answer about a row, not a failure)
    """A row's reason and detail on its way to quarantine."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class BadValue(ValueError):  # noqa: N818  (as Refused: an answer about a value)
    """What is wrong with a value, and the value itself, which is left out where it could name a person."""

    def __init__(self, why: str, value: object) -> None:
        super().__init__(f"{str(value)[:40]!r} {why}")
        self.why = why


def why(error: ValueError, personal: bool) -> str:
    """The error's text; of values that may name a person without the value.

    >>> why(BadValue("is not a number", "ann"), personal=True), why(BadValue("is not a number", "x"), personal=False)
    ('is not a number', "'x' is not a number")
    """
    return error.why if personal and isinstance(error, BadValue) else str(error)
