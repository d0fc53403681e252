"""Features at the end of a run date, by hand; the test of the line holds them against what Spark made of events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from featurize import current
from featurize.contract import Contract
from infra.lake import Lake
from infra.tables import FIELD_VALUES, ITEMS, Kind, samples, side_features
from tests.conftest import put

FIELDS = [
    {"name": "colour", "kind": "categorical", "source": "items"},
    {"name": "price", "kind": "numeric", "source": "items"},
    {"name": "tags", "kind": "multi", "source": "items"},
    {"name": "device", "kind": "categorical"},
]


def contract(timed: bool) -> Contract:
    side: dict[str, Any] = {"path": "items.csv", "format": "csv", "key": "item"}
    if timed:
        side["time"] = {"column": "since", "unit": "s"}
    return Contract.model_validate(
        {"name": "c", "source": {"path": "log.csv", "format": "csv"}, "user": "user", "item": "item",
         "time": {"column": "ts", "unit": "s"}, "personal": False, "fields": FIELDS, "items": side}
    )  # fmt: skip


def filled(lake: Lake, timed: bool) -> dict[str, int]:
    values = [("colour", "red"), ("colour", "blue"), ("tags", "a"), ("tags", "b"), ("user", "ann"), ("user", "bob")]
    seen: dict[str, int] = {}
    rows = []
    for field, key in values:
        seen[field] = seen.get(field, 1) + 1
        rows.append({"arrival": "2024-01-01", "field": field, "index": seen[field], "key": key})
    items = [{"arrival": "2024-01-01", "index": 2 + n, "key": key} for n, key in enumerate("xyz")]
    kinds = [("colour", Kind.CATEGORICAL), ("price", Kind.NUMERIC), ("tags", Kind.MULTI)]
    side = [
        ("2024-01-01", "x", 1, "red", 1.0, ["a"]),
        ("2024-01-03", "x", 2, "blue", 2.0, ["b", "new"]),
        ("2024-01-03", "y", 3, None, None, None),
        ("2024-01-09", "x", 1, "red", 9.0, ["a"]),
    ]  # fmt: skip
    if timed:  # of the same snapshot: before, at, and after the end of the day
        side += [("2024-01-03", "x", 5, "red", 5.0, []), ("2024-01-03", "x", 6, "blue", 6.0, ["a"])]
    of_side = [
        {"arrival": a, "key": k, "f_colour": c, "f_price": p, "f_tags": t,
         **({"valid_from": datetime(2024, 1, day, tzinfo=UTC)} if timed else {})}
        for a, k, day, c, p, t in side
    ]  # fmt: skip
    return {
        "field_values": put(lake, FIELD_VALUES, rows),
        "items": put(lake, ITEMS, items),
        "item_features": put(lake, side_features("item", kinds, timed), of_side),
    }


class TestSides:
    def test_the_newest_snapshot_that_had_arrived(self, lake: Lake) -> None:
        versions = filled(lake, timed=False)
        keys = pa.array(["y", "x", "nobody", None])
        found = current.side_columns(lake, contract(False), versions, "2024-01-05", "2024-01-05", "item", keys)
        assert {name: column.to_pylist() for name, column in found.items()} == {
            "f_colour": [None, 3, None, None], "f_price": [None, 2.0, None, None], "f_tags": [None, [3, 1], None, None],
        }  # fmt: skip

    def test_the_last_row_that_holds_by_the_end_of_the_day(self, lake: Lake) -> None:
        versions = filled(lake, timed=True)
        keys = pa.array(["x", "y"])
        found = current.side_columns(lake, contract(True), versions, "2024-01-05", "2024-01-05", "item", keys)
        assert found["f_price"].to_pylist() == [5.0, None]
        assert found["f_tags"].to_pylist() == [[], None]
        later = current.side_columns(lake, contract(True), versions, "2024-01-05", "2024-01-06", "item", keys)
        assert later["f_price"].to_pylist() == [6.0, None]

    def test_a_contract_without_the_side_file(self, lake: Lake) -> None:
        assert current.side_columns(lake, contract(False), {}, "x", "x", "user", pa.array(["ann"])) == {}


def test_users_and_items_by_their_vocabularies(lake: Lake) -> None:
    versions = filled(lake, timed=False)
    users = current.user_index(lake, versions, "2024-01-05", pa.array(["bob", "eve", "ann"]))
    assert users.to_pylist() == [3, 1, 2]
    assert current.item_keys(lake, versions, "2024-01-05").to_pylist() == ["x", "y", "z"]


class TestPositives:
    @pytest.mark.parametrize(("count", "ann"), [(2, [4, 5]), (9, [3, 4, 5])])
    def test_the_last_ones_in_order_of_time(self, lake: Lake, count: int, ann: list[int]) -> None:
        def row(split: str, user: str, item: int, hour: int, **more: Any) -> dict[str, Any]:
            when = datetime(2024, 1, 5, hour, tzinfo=UTC)
            return {"as_of": "2024-01-05", "split": split, "event_id": f"{hour}-{item}", "user": user, "item": item,
                    "ts": when, "label": 1, "label_source": "observed", "missing": 0, **more}  # fmt: skip

        rows = [
            row("test", "ann", 5, 9), row("train", "ann", 3, 1), row("valid", "ann", 4, 5),
            row("test", "ann", 6, 11, label=0), row("train", "ann", 7, 12, label_source="sampled"),
            row("train", "zoe", 8, 2), {**row("train", "ann", 9, 3), "as_of": "2024-01-04"},
        ]  # fmt: skip
        version = put(lake, samples([]), rows)
        users = pa.array(["bob", "ann"])
        assert current.last_positives(lake, version, "2024-01-05", users, count).to_pylist() == [None, ann]
