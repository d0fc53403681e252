"""One raw value to one typed value. Runs in Spark tasks: nothing beyond the standard library.

Every function returns the value, or None for missing (absent, null, empty text; NaN and infinity except
as a time), and raises ValueError, whose text becomes the quarantine detail, for anything else. Digits
grouped as 1_000 are Python's own way of writing: refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from featurize.reasons import BadValue

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

AUTO_FROM, AUTO_UNTIL = 315_532_800, 7_258_118_400
"""Seconds since 1970 of 1980-01-01 and 2200-01-01: the times that `auto` tells apart by magnitude alone.

A unit's numbers are 1000 times those of the unit before it, so ranges [A, B) of neighbours do not meet as
long as B < 1000 A; here B is 23 A, and a number between two ranges is no time in any unit.
"""


def text(value: Any) -> str | None:
    """A scalar as text; a whole number keeps no decimal point, a boolean is `true` or `false`.

    Text that UTF-8 cannot hold (a lone surrogate, as JSON can write it) raises ValueError.

    >>> text(7), text(7.0), text("a"), text(""), text(float("nan"))
    ('7', '7', 'a', None, None)
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # UnicodeEncodeError is a ValueError
        return value or None
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, dict | list | bytes):
        raise ValueError(f"a {type(value).__name__} where text or a number belongs")
    return str(value)


def number(value: Any) -> float | None:
    """A finite number, or None; a boolean is 1 or 0.

    >>> number("3.5"), number(4), number(True), number(""), number("nan")
    (3.5, 4.0, 1.0, None, None)
    """
    if value is None or value == "":
        return None
    if isinstance(value, dict | list | bytes):
        raise ValueError(f"a {type(value).__name__} where a number belongs")
    try:
        result = float(_plain(value))
    except (TypeError, ValueError):
        raise BadValue("is not a number", value) from None
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def multi(separator: str | None) -> Callable[[Any], list[str] | None]:
    """A reader of multi-valued fields: a list, or text cut at `separator`.

    >>> multi(" ")("Action Comedy"), multi(None)(["a", 3]), multi(None)(None)
    (['Action', 'Comedy'], ['a', '3'], None)
    """

    def read(value: Any) -> list[str] | None:
        if isinstance(value, list):
            parts = value
        elif isinstance(value, str) and value and separator:
            parts = value.split(separator)
        else:
            single = text(value)
            return None if single is None else [single]
        return [t for t in map(text, parts) if t is not None]

    return read


def microseconds(unit: str | None, pattern: str | None) -> Callable[[Any], int | None]:
    """A reader of times in `unit` (s, ms, us, ns, auto, iso) or in a strptime `pattern`: microseconds since 1970.

    A time without a zone is UTC. Whole numbers are exact, 64-bit nanoseconds too; what lies below a
    microsecond is cut off. `auto` takes each number for the unit in which it lies between 1980 and 2200.
    A leap second (23:59:60) is no time. Parquet's own timestamps and dates need no unit.

    >>> microseconds("s", None)("1.5"), microseconds("iso", None)("1970-01-01T00:00:01")
    (1500000, 1000000)
    """

    def read(value: Any) -> int | None:
        if value is None or value == "":
            return None
        if isinstance(value, datetime):
            return _since_epoch(value)
        if isinstance(value, date):
            return _since_epoch(datetime(value.year, value.month, value.day))
        try:
            if pattern is not None:
                return _since_epoch(datetime.strptime(str(value), pattern))
            if unit == "iso":
                return _since_epoch(datetime.fromisoformat(value))
            return _of_any_unit(value) if unit == "auto" else _scaled(value, _PER_SECOND[str(unit)])
        except (ValueError, TypeError, OverflowError):
            words = "s, ms, us or ns between 1980 and 2200" if unit == "auto" else pattern or unit
            raise BadValue(f"is not a time in {words}", value) from None

    return read


def _of_any_unit(value: Any) -> int:
    amount = _amount(value)
    for per_second in _PER_SECOND.values():
        if AUTO_FROM * per_second <= amount < AUTO_UNTIL * per_second:
            return _scaled(amount, per_second)
    raise ValueError


def _since_epoch(value: datetime) -> int:
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    delta = aware - _EPOCH
    return (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds


def _amount(value: Any) -> Any:
    """The number that a value is or spells."""
    if isinstance(value, bool | bytes):
        raise ValueError
    if isinstance(value, str):
        try:
            return int(_plain(value))
        except ValueError:  # a decimal point or an exponent
            return float(_plain(value))
    return value


def _scaled(value: Any, per_second: int) -> int:
    value = _amount(value)
    if value == int(value):
        return int(value) * 10**6 // per_second
    return round(float(value) * 10**6 / per_second)


def _plain(value: Any) -> Any:
    if isinstance(value, str) and "_" in value:
        raise ValueError
    return value
