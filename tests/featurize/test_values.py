"""featurize/values.py: every unit and type by hand; round trips against the standard library."""

from __future__ import annotations

import calendar
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.values import microseconds, multi, number, text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a", "a"),
        (" a ", " a "),
        ("0", "0"),
        ("7.0", "7.0"),  # text is kept as it is
        (0, "0"),
        (-3, "-3"),
        (7.0, "7"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (1e22, "10000000000000000000000"),
        (2**64 + 1, "18446744073709551617"),
        (Decimal("7.00"), "7"),
        (Decimal("7.25"), "7.25"),
        (True, "true"),
        (False, "false"),
        (date(2024, 2, 29), "2024-02-29"),
        ("a\x00b", "a\x00b"),
        ("\u00e9", "\u00e9"),
        ("e\u0301", "e\u0301"),
        (None, None),
        ("", None),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (Decimal("NaN"), None),
    ],
)
def test_text(raw: Any, expected: str | None) -> None:
    assert text(raw) == expected


@pytest.mark.parametrize("raw", [{}, {"a": 1}, [], ["a"], b"a", "\ud800", "ok\udfff"])
def test_what_is_no_text(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"where text or a number belongs|surrogates not allowed"):
        text(raw)


@given(st.integers())
def test_whole_numbers_keep_every_digit(value: int) -> None:
    assert int(str(text(value))) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_equal(value: float) -> None:
    assert float(str(text(value))) == value
    assert number(str(text(value))) == number(value) == value


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("3.5", 3.5),
        (" 3.5 ", 3.5),
        ("-1e3", -1000.0),
        (4, 4.0),
        (2**63, 9223372036854775808.0),
        (Decimal("0.25"), 0.25),
        (True, 1.0),
        (False, 0.0),
        (None, None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("-Infinity", None),
        ("1e400", None),
        (10**400, None),
        (math.nan, None),
        (math.inf, None),
    ],
)
def test_number(raw: Any, expected: float | None) -> None:
    assert number(raw) == expected


@pytest.mark.parametrize("raw", ["cheap", "1_000", "1,5", "0x10", "\ud800", {}, [1], b"1", date(2024, 1, 1)])
def test_what_is_no_number(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a number|where a number belongs"):
        number(raw)


@pytest.mark.parametrize(
    ("separator", "raw", "expected"),
    [
        (" ", "Action Comedy", ["Action", "Comedy"]),
        (" ", "  Action  ", ["Action"]),
        (" ", " ", []),  # there, but empty
        ("|", "a b|c", ["a b", "c"]),
        (None, "a b", ["a b"]),
        (None, ["a", 3, 4.0, None, ""], ["a", "3", "4"]),
        (" ", ["a b"], ["a b"]),
        (None, [], []),
        (None, 7, ["7"]),
        (" ", "", None),
        (None, "", None),
        (None, None, None),
        (None, math.nan, None),
    ],
)
def test_multi(separator: str | None, raw: Any, expected: list[str] | None) -> None:
    assert multi(separator)(raw) == expected


@pytest.mark.parametrize("raw", [{"a": 1}, [["a"]], [{"a": 1}], ["\ud800"], b"a"])
def test_what_is_no_list_of_values(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"where text or a number belongs|surrogates not allowed"):
        multi(None)(raw)


@pytest.mark.parametrize(
    ("unit", "raw", "expected"),
    [
        ("s", 1, 1_000_000),
        ("s", "1", 1_000_000),
        ("s", 1.5, 1_500_000),
        ("s", "1.5", 1_500_000),
        ("s", "881250949", 881250949_000_000),
        ("s", 1700000000.123456, 1700000000_123456),
        ("s", -1, -1_000_000),
        ("s", Decimal("1.25"), 1_250_000),
        ("ms", 1500, 1_500_000),
        ("ms", 0.5, 500),
        ("us", 7, 7),
        ("us", "1e3", 1000),
        ("ns", 1999, 1),
        ("ns", 1999.0, 1),  # the same instant, however it is written
        ("ns", -1, -1),
        ("ns", 2**63 - 1, 9223372036854775),
        ("ns", "1700000000123456789", 1700000000123456),
        ("s", 10**30, 10**36),  # out of bounds, which is the row's matter
        ("iso", "1970-01-01T00:00:01", 1_000_000),
        ("iso", "1970-01-01T00:00:01Z", 1_000_000),
        ("iso", "1970-01-01T01:00:01+01:00", 1_000_000),
        ("iso", "1970-01-01 00:00:00.000001", 1),
        ("iso", "1970-01-01T00:00:00.000001999", 1),
        ("iso", "1970-01-02", 86_400_000_000),
        ("iso", "0001-01-01T00:00:00+23:59", -62135596800_000_000 - 86340_000_000),
        ("iso", datetime(1970, 1, 1, 0, 0, 1), 1_000_000),
        ("s", datetime(1970, 1, 1, 1, 0, 1, tzinfo=timezone(timedelta(hours=1))), 1_000_000),
        ("s", pd.Timestamp("1970-01-01T00:00:00.123456789Z"), 123456),
        ("s", date(1970, 1, 2), 86_400_000_000),
        ("s", None, None),
        ("iso", "", None),
    ],
)
def test_microseconds(unit: str, raw: Any, expected: int | None) -> None:
    assert microseconds(unit, None)(raw) == expected


@pytest.mark.parametrize(
    ("unit", "raw"),
    [
        *(("s", raw) for raw in ("yesterday", "1_000", "nan", "inf", "1e400", math.nan, math.inf, True, b"1", {}, [1])),
        *(("iso", raw) for raw in ("yesterday", "2024-13-01", "2024-02-30", 20240101, 2012101212345, 1.5, True, {})),
    ],
)
def test_what_is_no_time(unit: str, raw: Any) -> None:
    with pytest.raises(ValueError, match=f"is not a time in {unit}"):
        microseconds(unit, None)(raw)


def test_strptime_patterns() -> None:
    read = microseconds(None, "%d/%m/%Y %H:%M:%S")
    assert read("29/02/2024 12:00:00") == calendar.timegm((2024, 2, 29, 12, 0, 0)) * 10**6
    assert microseconds(None, "%Y%m%d")(20240101) == calendar.timegm((2024, 1, 1, 0, 0, 0)) * 10**6
    assert microseconds(None, "%Y-%m-%d %z")("1970-01-01 -0100") == 3600 * 10**6
    with pytest.raises(ValueError, match="'02/29/2024' is not a time in %d"):
        microseconds(None, "%d/%m/%Y")("02/29/2024")


def test_a_long_text_is_not_repeated_whole_in_the_refusal() -> None:
    for read in (number, microseconds("s", None)):
        with pytest.raises(ValueError, match="xxx") as refusal:
            read("x" * 5_000_000)
        assert len(str(refusal.value)) < 100


@given(st.sampled_from([("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)]), st.integers(-(2**63), 2**63 - 1))
def test_whole_times_are_exact(unit: tuple[str, int], value: int) -> None:
    name, per_second = unit
    expected = math.floor(Fraction(value, per_second) * 10**6)
    assert microseconds(name, None)(value) == microseconds(name, None)(str(value)) == expected


def _seconds(when: datetime) -> int:
    return calendar.timegm(when.utctimetuple())


@given(
    st.datetimes(min_value=datetime(1000, 1, 2), max_value=datetime(9999, 12, 30)),
    st.integers(-14 * 60, 14 * 60),
    st.sampled_from([datetime.isoformat, str]),
)
def test_iso_times_come_back_in_any_zone(when: datetime, minutes: int, write: Callable[[datetime], str]) -> None:
    read = microseconds("iso", None)
    expected = _seconds(when) * 10**6 + when.microsecond
    assert read(write(when)) == read(write(when.replace(tzinfo=UTC))) == expected
    moved = when.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert read(write(moved)) == expected - minutes * 60 * 10**6


@given(st.integers(0, 4 * 10**9), st.integers(0, 999_999))
def test_seconds_with_a_fraction_are_right_to_the_microsecond(whole: int, fraction: int) -> None:
    for raw in (f"{whole}.{fraction:06d}", float(f"{whole}.{fraction:06d}")):
        assert microseconds("s", None)(raw) == whole * 10**6 + fraction


class TestUnitsToldApart:
    """`auto`: a number is taken for the one unit in which it lies between 1980 and 2200."""

    read = staticmethod(microseconds("auto", None))

    @pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
    @pytest.mark.parametrize(
        ("second", "when"),
        [
            (315_532_800, datetime(1980, 1, 1, tzinfo=UTC)),
            (1_704_196_800, datetime(2024, 1, 2, 12, tzinfo=UTC)),
            (7_258_118_399, datetime(2199, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ],
    )
    def test_every_unit_means_the_same_moment(self, factor: int, second: int, when: datetime) -> None:
        expected = round(when.timestamp()) * 10**6
        for value in (second * factor, str(second * factor), f"{second * factor}.0", Decimal(second * factor)):
            assert self.read(value) == expected
        assert self.read(float(second * factor)) == expected

    @pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9])
    def test_the_bounds(self, factor: int) -> None:
        for outside in (315_532_800 * factor - 1, 7_258_118_400 * factor):
            with pytest.raises(ValueError, match="is not a time in s, ms, us or ns between 1980 and 2200"):
                self.read(outside)

    @pytest.mark.parametrize(
        "value",
        [0, 1, -1_704_196_800, 10**10, 10**13, 10**16, 10**19, 10**400, True, [1], {}, "noon", "1_704_196_800", b"1"],
    )
    def test_no_time_in_any_unit(self, value: Any) -> None:
        with pytest.raises(ValueError, match="is not a time in s, ms, us or ns"):
            self.read(value)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "nan", "inf", "1e400"])
    def test_not_finite(self, value: Any) -> None:
        with pytest.raises(ValueError, match="is not a time"):
            self.read(value)

    def test_what_lies_below_a_microsecond_is_cut_off(self) -> None:
        assert self.read(1_704_196_800_123_456_999) == 1_704_196_800_123_456
        assert self.read(1_704_196_800.25) == 1_704_196_800_250_000

    def test_missing_and_typed_times_are_as_in_other_units(self) -> None:
        assert self.read(None) is None
        assert self.read("") is None
        assert self.read(datetime(1970, 1, 1)) == 0
