"""Feature fields that an event's own time says (`source: time` in the contract): no file brings them, none is missing.

`hour` is the hour of the day, "0" to "23", `weekday` the day of the week, "1" (Monday) to "7" as ISO 8601 counts; both
in UTC, as all dates here. A list that is made in advance cannot know when it will be seen: there they are missing. Data
reports leave them out: they follow from the times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.tables import column_of

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from featurize.contract import Contract

PARTS = {"hour": "hour(ts)", "weekday": "weekday(ts) + 1"}
"""What an event's time says, in SQL."""


def with_time_fields(frame: DataFrame, contract: Contract) -> DataFrame:
    """The frame (`ts`) with the contract's time fields, as text."""
    from pyspark.sql import functions as F

    for field in contract.fields_from("time"):
        frame = frame.withColumn(column_of(field.name), F.expr(PARTS[field.raw_column]).cast("string"))
    return frame
