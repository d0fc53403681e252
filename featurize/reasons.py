"""Why a row is refused."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a row is in quarantine."""

    MALFORMED = "malformed"
    EMPTY_LINE = "empty_line"
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


class Refused(Exception):  # noqa: N818  (an answer about a row, not a failure)
    """A row's reason and detail on its way to quarantine."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
