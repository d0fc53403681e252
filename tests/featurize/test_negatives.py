"""featurize/negatives.py: windows, draws and their distribution, without Spark."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from featurize.negatives import (
    FEW_ITEMS,
    Windows,
    cumulated,
    draw_items,
    drawn,
    first_distinct,
    order_items,
    uniform,
    window_days,
)

START = date(2024, 1, 1)


def day(number: int) -> str:
    return (START + timedelta(number)).isoformat()


def test_uniform_is_splitmix64() -> None:
    """Against the sequence that its authors' C program gives for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert uniform(np.array([1234567], np.uint64), 4).tolist() == [[(n >> 11) / 2**53 for n in published]]


@given(st.sets(st.integers(0, 60), max_size=20), st.integers(0, 60))
def test_the_window_ends_before_the_event_and_has_seven_days(days: set[int], now: int) -> None:
    window = window_days(day(now), [day(n) for n in sorted(days)])
    before = {n for n in days if n < now}
    recent = {n for n in before if n >= now - 7}
    if before and not recent:
        recent = {n for n in before if n > max(before) - 7}
    assert window == [day(n) for n in sorted(recent)]


def test_draws_follow_popularity_to_the_three_quarters() -> None:
    """Expected counts by hand: 1, 16 and 81 events weigh 1, 8 and 27."""
    items, running = cumulated(
        [pa.table({"item": [3, 9], "events": [1, 80]}), pa.table({"item": [9, 5], "events": [1, 16]})]
    )
    assert items.tolist() == [3, 5, 9]
    assert running.tolist() == [1.0, 9.0, 36.0]
    seeds = np.random.default_rng(0).integers(0, 2**63, 9000).astype(np.uint64)
    drawn = Counter(draw_items(seeds, items, running, 4).ravel().tolist())
    expected = {3: 1000.0, 5: 8000.0, 9: 27000.0}
    statistic = sum((drawn[i] - n) ** 2 / n for i, n in expected.items())
    assert statistic < 13.8  # chi-square with 2 degrees of freedom, p = 0.001
    assert (draw_items(seeds[7:8], items, running, 4) == draw_items(seeds, items, running, 4)[7:8]).all()


def test_both_ways_draw_without_replacement_alike() -> None:
    """The chance of an ordered pair, by hand: weights 1, 8 and 27 of 36; the second from what the first left."""
    items, weight = np.array([3, 5, 9], np.int32), {3: 1, 5: 8, 9: 27}
    running = np.array([1.0, 9.0, 36.0])
    seeds = np.random.default_rng(1).integers(0, 2**63, 20_000).astype(np.uint64)
    whole = order_items(seeds, items, running)
    assert (np.sort(whole, axis=1) == items).all()
    several = draw_items(seeds, items, running, 400)
    kept = first_distinct(several, 2)
    assert (kept.sum(axis=1) == 2).all()
    for pairs in (whole[:, :2], several[kept].reshape(-1, 2)):
        found = Counter(map(tuple, pairs.tolist()))
        expected = {
            (a, b): 20_000 * w / 36 * v / (36 - w) for a, w in weight.items() for b, v in weight.items() if a != b
        }
        statistic = sum((found[pair] - n) ** 2 / n for pair, n in expected.items())
        assert statistic < 20.5  # chi-square with 5 degrees of freedom, p = 0.001


def test_few_items_are_all_drawn_and_of_many_some() -> None:
    seeds = np.arange(5, dtype=np.uint64)
    for count in (FEW_ITEMS, FEW_ITEMS + 1):
        items = np.arange(2, 2 + count, dtype=np.int32)
        found, kept = drawn(seeds, items, np.cumsum(np.ones(count)), 1)
        assert kept.sum(axis=1).tolist() == [FEW_ITEMS if count == FEW_ITEMS else 8] * 5
        assert all(len(set(row[k].tolist())) == k.sum() for row, k in zip(found, kept, strict=True))


@given(st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 6))
def test_first_distinct_keeps_the_order_of_the_draws(rows: list[list[int]], most: int) -> None:
    kept = first_distinct(np.array(rows, np.int32), most)
    for row, marks in zip(rows, kept, strict=True):
        assert [x for x, m in zip(row, marks, strict=True) if m] == list(dict.fromkeys(row))[:most]


def test_every_row_draws_from_the_window_of_its_own_day(tmp_path: Path) -> None:
    """Each day has one item of its own, so that what was drawn says from which days; today's is never among them."""
    files = {}
    for number in (0, 1, 5, 9, 40):
        files[day(number)] = [str(tmp_path / f"{number}.parquet")]
        pq.write_table(pa.table({"item": [100 + number, 7], "events": [1, 1]}), files[day(number)][0])
    windows = Windows(sorted(files), files)
    asked = [9, 0, 8, 41, 100, 9, 2, 5, 40, 1]
    seeds = pa.array(np.arange(len(asked)) - 3, pa.int64())  # hashes may be negative
    draws, until = windows.draw(pa.array([day(n) for n in asked]), seeds, 2)
    sees = {9: {5}, 0: set(), 8: {1, 5}, 41: {40}, 100: {40}, 2: {0, 1}, 5: {0, 1}, 40: {5, 9}, 1: {0}}
    assert [set(d) - {7} for d in draws.to_pylist()] == [{100 + n for n in sees[a]} for a in asked]
    assert until.to_pylist() == [day(max(sees[a])) if sees[a] else None for a in asked]
    again, _ = Windows(sorted(files), files).draw(pa.array([day(100)]), seeds[4:5], 2)
    assert again.to_pylist() == draws.to_pylist()[4:5], "whatever else is in the batch"
