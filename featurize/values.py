"""One raw value to one typed value. Runs in Spark tasks: only the standard library.

Every function returns the value, or None for missing (absent, null, empty text; NaN and infinity for
numbers), and raises ValueError, whose text becomes the quarantine detail, for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text(value: Any) -> str | None:
    """A scalar as text; a whole number keeps no decimal point.

    >>> text(7), text(7.0), text("a"), text(""), text(float("nan"))
    ('7', '7', 'a', None, None)
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, dict | list | bytes):
        raise ValueError(f"a {type(value).__name__} where text or a number belongs")
    return str(value)


def number(value: Any) -> float | None:
    """A finite number, or None.

    >>> number("3.5"), number(4), number(""), number("nan")
    (3.5, 4.0, None, None)
    """
    if value is None or value == "":
        return None
    if isinstance(value, dict | list):
        raise ValueError(f"a {type(value).__name__} where a number belongs")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{str(value)[:40]!r} is not a number") from None
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def multi(separator: str | None) -> Callable[[Any], list[str] | None]:
    """A reader of multi-valued fields: a list, or text cut at `separator`.

    >>> multi(" ")("Action Comedy"), multi(None)(["a", 3]), multi(None)(None)
    (['Action', 'Comedy'], ['a', '3'], None)
    """

    def read(value: Any) -> list[str] | None:
        if value is None or value == "":
            return None
        if isinstance(value, str):
            parts: list[Any] = value.split(separator) if separator else [value]
        elif isinstance(value, list):
            parts = value
        else:
            parts = [value]
        return [t for t in map(text, parts) if t is not None]

    return read


def microseconds(unit: str | None, pattern: str | None) -> Callable[[Any], int | None]:
    """A reader of times in `unit` (s, ms, us, ns, iso) or in a strptime `pattern`: microseconds since 1970.

    >>> microseconds("s", None)("1.5"), microseconds("iso", None)("1970-01-01T00:00:01")
    (1500000, 1000000)
    """

    def from_datetime(value: datetime) -> int:
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        delta = aware - _EPOCH
        return (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds

    def read(value: Any) -> int | None:
        if value is None or value == "":
            return None
        if isinstance(value, datetime):
            return from_datetime(value)
        if isinstance(value, date):
            return from_datetime(datetime(value.year, value.month, value.day))
        try:
            if pattern is not None:
                return from_datetime(datetime.strptime(str(value), pattern))
            if unit == "iso":
                return from_datetime(datetime.fromisoformat(str(value)))
            if isinstance(value, bool):
                raise ValueError
            try:
                whole = int(value) if not isinstance(value, float) else None
            except ValueError:  # text with a decimal point or an exponent
                whole = None
            per_second = _PER_SECOND[str(unit)]
            if whole is not None:  # exact: 64-bit nanoseconds do not fit a float
                return whole * 10**6 // per_second
            return round(float(value) * 10**6 / per_second)
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{str(value)[:40]!r} is not a time in {pattern or unit}") from None

    return read
