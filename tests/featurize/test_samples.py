"""featurize/samples.py: mask bits and splits by hand; a simulated log recounted in SQL."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize import samples, vocabularies
from featurize.contract import Contract
from featurize.indexing import index_of
from featurize.ingest import ingest, ingest_sides
from featurize.samples import field_kinds
from featurize.settings import SampleSettings, VocabularySettings
from featurize.simulate import simulate
from featurize.sources import list_files
from infra.config import load
from infra.errors import DataRefused
from infra.lake import Lake
from infra.tables import FIELD_VALUES, ITEMS, Kind, events, side_features
from tests.conftest import put
from tests.featurize.warehouse import FORM

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONTRACTS = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "contracts"
SETTINGS: dict[str, Any] = {
    **FORM,
    "label": {"column": "r", "at_least": 1},
    "items": {"path": "items", "format": "json", "key": "i"},
    "fields": [
        {"name": "device", "kind": "categorical"},
        {"name": "price", "kind": "numeric"},
        {"name": "tags", "kind": "multi", "source": "items"},
        {"name": "brand", "kind": "categorical", "source": "items"},
    ],
}
CONTRACT = Contract.model_validate(SETTINGS)
LOG = events(CONTRACT.kinds_from("log"))
SIDE = side_features("item", CONTRACT.kinds_from("items"))
DAY = "2024-01-10"
START = datetime(2024, 1, 10, tzinfo=UTC)


def event(number: int, user: str, item: str, day: float, label: int | None = 1, **fields: Any) -> dict[str, Any]:
    when = START + timedelta(days=day)
    return {
        "arrival": DAY,
        "ds": when.date().isoformat(),
        "event_id": f"e{number}",
        "user": user,
        "item": item,
        "ts": when,
        "type": "event",
        "label": label,
        "file": "f",
        "position": number,
        "f_device": fields.get("device"),
        "f_price": fields.get("price"),
    }


BY_HAND = [
    event(0, "ann", "a", -5, device="phone", price=2.0),
    event(1, "ann", "b", -4, device=None, price=None),
    event(2, "bob", "nowhere", -3, label=0, device="toaster", price=4.0),
    event(3, "bob", "c", -2, label=0, device="tv", price=0.0),
    event(4, "ann", "a", -0.5, device="tv", price=1.0),
    event(5, "new", "b", 0.5, device="phone", price=1.0),
    event(6, "ann", "a", 1.5, device="phone", price=9.0),  # after the run date
    event(7, "ann", "a", -2, label=None, device="phone", price=9.0),  # no label
]
SIDE_ROWS = [
    {"arrival": DAY, "key": "a", "f_tags": ["x", "nothing", "y"], "f_brand": "acme"},
    {"arrival": DAY, "key": "b", "f_tags": [], "f_brand": None},
    {"arrival": DAY, "key": "c", "f_tags": None, "f_brand": "unheard"},
]
VOCABULARY = {
    "item": ["a", "b", "c"],
    "user": ["ann", "bob"],
    "device": ["phone", "tv"],
    "tags": ["x", "y"],
    "brand": ["acme"],
}


def fill(lake: Lake, log: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The stage's inputs; the keys of VOCABULARY have indices from 2."""
    keys = [
        {"arrival": DAY, "field": field, "index": n + 2, "key": key}
        for field, of_field in VOCABULARY.items()
        for n, key in enumerate(of_field)
    ]
    items = [{k: row[k] for k in ("arrival", "index", "key")} for row in keys if row["field"] == "item"]
    return {
        "events": put(lake, LOG, log),
        "item_features": put(lake, SIDE, SIDE_ROWS),
        "items": put(lake, ITEMS, items),
        "field_values": put(lake, FIELD_VALUES, [row for row in keys if row["field"] != "item"]),
    }


def build(
    spark: SparkSession, lake: Lake, log: Sequence[dict[str, Any]], **over: Any
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """(samples by event id, fields in order, report)"""
    made = SampleSettings.model_validate(over)
    versions, report = samples.build(spark, lake, CONTRACT, made, fill(lake, log), [DAY], DAY, {"run": "test"})
    rows = lake.read("samples", versions["samples"]).to_pylist()
    assert len({r["event_id"] for r in rows}) == len(rows)
    fields = sorted(lake.read("fields", versions["fields"]).to_pylist(), key=lambda f: f["position"])
    return {r["event_id"]: r for r in rows}, fields, report


# Bits: 0 user, 1 item, 2 device, 3 price, 4 tags, 5 brand.
EXPECTED = {
    "e0": ("train", "ann", 2, 1, 2, 2, 2, 2.0, [2, 1, 3], 2, 0),
    "e1": ("train", "ann", 3, 1, 2, 3, None, None, [], None, 0b101100),
    "e2": ("train", "bob", 1, 0, 3, 1, 1, 4.0, None, None, 0b110000),  # an item without a side row
    "e3": ("train", "bob", 4, 0, 3, 4, 3, 0.0, None, 1, 0b010000),
    "e4": ("valid", "ann", 2, 1, 2, 2, 3, 1.0, [2, 1, 3], 2, 0),
    "e5": ("test", "new", 3, 1, 1, 3, 2, 1.0, [], None, 0b100000),
}
COLUMNS = ("split", "user", "item", "label", *(f"f_{n}" for n in ("user", "item", "device", "price", "tags", "brand")))


def test_rows_masks_and_statistics_by_hand(spark: SparkSession, lake: Lake) -> None:
    """Unknown is index 1 and not missing; an empty list is there; null and absent are missing."""
    rows, fields, report = build(spark, lake, BY_HAND)
    assert {k: (*(r[c] for c in COLUMNS), r["missing"]) for k, r in rows.items()} == EXPECTED
    assert {r["label_source"] for r in rows.values()} == {"observed"}
    assert {r["as_of"] for r in rows.values()} == {DAY}
    assert {k: r["ts"] for k, r in rows.items()} == {e["event_id"]: e["ts"] for e in BY_HAND[:6]}
    std = math.sqrt((0 + 4 + 4) / 3)  # of 2, 4 and 0
    assert [tuple(f.values())[1:] for f in fields] == [
        (0, "user", "categorical", 4, 0.0, 1.0, 0.0),
        (1, "item", "categorical", 5, 0.0, 1.0, 0.0),
        (2, "device", "categorical", 4, 0.0, 1.0, 0.25),
        (3, "price", "numeric", 0, pytest.approx(2.0), pytest.approx(std), 0.25),
        (4, "tags", "multi", 4, 0.0, 1.0, 0.5),
        (5, "brand", "categorical", 3, 0.0, 1.0, 0.5),
    ]
    assert report == {
        "rows": {"train": 4, "valid": 1, "test": 1},
        "missing_rates": {"user": 0, "item": 0, "device": 0.25, "price": 0.25, "tags": 0.5, "brand": 0.5},
    }


def last(share: float, count: int) -> int:
    """Of `count` events, how many the share takes, rounded up; in whole numbers, so that nothing is nearly whole."""
    return -(-count * round(share * 100) // 100)


def test_the_last_share_of_each_user(spark: SparkSession, lake: Lake) -> None:
    counts = {"u1": 1, "u2": 2, "u3": 5, "u4": 10, "u5": 100}
    log = [event(n * 1000 + k, user, "a", -k / 7) for n, (user, c) in enumerate(counts.items()) for k in range(c)]
    log += [event(9000 + k, "tied", "a", 0.25) for k in range(10)]
    rows, _, report = build(spark, lake, log, split="per_user_ratio", test_share=0.07, valid_share=0.25)
    for user, count in {**counts, "tied": 10}.items():
        own = sorted((r for r in rows.values() if r["user"] == user), key=lambda r: (r["ts"], r["event_id"]))
        test = last(0.07, count)
        valid = last(0.25, count - test)
        assert [r["split"] for r in own] == ["train"] * (count - test - valid) + ["valid"] * valid + ["test"] * test
    assert report["rows"]["test"] == 1 + 1 + 1 + 1 + 7 + 1


def test_a_constant_or_absent_number_has_deviation_1(spark: SparkSession, lake: Lake) -> None:
    log = [event(n, "ann", "a", -2 - n, price=0.1) for n in range(5)]
    _, fields, _ = build(spark, lake, log)
    price = next(f for f in fields if f["name"] == "price")
    assert (price["mean"], price["std"], price["missing_rate"]) == (pytest.approx(0.1), 1.0, 0.0)
    _, fields, _ = build(spark, lake, [event(n, "ann", "a", -2 - n) for n in range(5)])
    price = next(f for f in fields if f["name"] == "price")
    assert (price["mean"], price["std"], price["missing_rate"]) == (0.0, 1.0, 1.0)


def test_what_cannot_be_built_is_refused_before_anything_is_committed(spark: SparkSession, lake: Lake) -> None:
    with pytest.raises(DataRefused, match="samples: no labelled event to train on before 2024-01-10"):
        build(spark, lake, [event(0, "ann", "a", 0.5)])
    assert not lake.exists("samples")
    assert not lake.exists("fields")


def test_numbers_beyond_32_bits_do_not_count_in_mean_and_deviation(spark: SparkSession, lake: Lake) -> None:
    prices = (1.5e308, -3.5e38, 3.4e38, 1.0, 3.0)
    _, fields, _ = build(spark, lake, [event(n, "ann", "a", -2, price=x) for n, x in enumerate(prices)])
    price = next(f for f in fields if f["name"] == "price")
    assert (price["mean"], price["std"]) == (pytest.approx(3.4e38 / 3), pytest.approx(3.4e38 * 2**0.5 / 3))
    log = [event(n, "ann", "a", -2, price=x) for n, x in enumerate((1.5e308, -3.5e38, 1.0, 3.0))]
    _, fields, _ = build(spark, lake, log)
    price = next(f for f in fields if f["name"] == "price")
    assert (price["mean"], price["std"]) == (2.0, 1.0)


def test_fields_stand_in_mask_order() -> None:
    assert field_kinds(CONTRACT) == [
        ("user", Kind.CATEGORICAL),
        ("item", Kind.CATEGORICAL),
        ("device", Kind.CATEGORICAL),
        ("price", Kind.NUMERIC),
        ("tags", Kind.MULTI),
        ("brand", Kind.CATEGORICAL),
    ]


KEYS = st.sampled_from(["a", "b", "\u00e9", "e\u0301", "zz", ""])


@settings(deadline=None)
@given(
    st.lists(st.none() | KEYS, max_size=12),
    st.lists(st.none() | st.lists(KEYS, max_size=3), max_size=12),
    st.integers(0, 3),
    st.booleans(),
)
def test_lookup_is_a_dictionary_s(texts: list[Any], lists: list[Any], skip: int, empty: bool) -> None:
    """Also of slices, whose null lists may cover values."""
    table = {} if empty else {"a": 2, "\u00e9": 3, "zz": 4}
    keys = pa.array(list(table), pa.string()) if table else None
    indices = pa.array(list(table.values()), pa.int32()) if table else None
    found = index_of(pa.array(texts, pa.string()).slice(skip), keys, indices)
    assert found.type == pa.int32()
    assert found.to_pylist() == [None if t is None else table.get(t, 1) for t in texts[skip:]]
    nested = index_of(pa.array(lists, pa.list_(pa.string())).slice(skip), keys, indices)
    assert nested.type == pa.list_(pa.int32())
    assert nested.to_pylist() == [None if x is None else [table.get(t, 1) for t in x] for x in lists[skip:]]
    nested.validate(full=True)


def test_null_lists_that_cover_values() -> None:
    offsets, values = pa.array([0, 1, 3, 4], pa.int32()), pa.array(["a", "b", "c", "d"])
    covered = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True, False]))
    found = index_of(covered, pa.array(["a", "d"]), pa.array([2, 3], pa.int32()))
    assert found.to_pylist() == [[2], None, [3]]


NUMERIC = ("age", "price", "joined", "quality")
NAMES = ["user", "item", "device", "country", "channel", "age", "price"]
NAMES += ["segment", "joined", "category", "tags", "quality"]
"""The simulator contract's fields in mask order."""


class TestSimulatedLog:
    """Against DuckDB, which joins the side files to the events by itself (the view `truth`)."""

    @pytest.fixture(scope="class")
    def db(self, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
        folder = tmp_path_factory.mktemp("simulated")
        simulate(folder / "log", users=60, items=40, days=4, seed=9)
        contract, lake = load(CONTRACTS / "simulator.yaml", Contract), Lake(folder / "lake")
        ingested = ingest(spark, lake, contract, folder / "log", list_files(folder / "log", contract.source), None, {})
        days = sorted(ingested.accounts)
        sides, _ = ingest_sides(lake, contract, folder / "log", days[-1], {})
        made = VocabularySettings(min_item_count=8, min_value_count=5)
        built = vocabularies.build(spark, lake, contract, made, {**sides, **ingested.versions}, days, None, {})
        versions = {**sides, **ingested.versions, **built.versions}
        written, report = samples.build(spark, lake, contract, SampleSettings(), versions, days, days[-1], {})
        assert json.dumps(report), "the report goes into the ledger"
        versions |= written

        db = duckdb.connect()
        for name in ("samples", "fields", "events", "items", "field_values"):
            db.register(name, lake.read(name, versions[name]))
        for name in ("items", "users"):
            db.execute(f"create table side_{name} as select * from read_json('{folder}/log/{name}.jsonl')")
        db.execute(
            f"""create table truth as
                select e.event_id, e.user as f_user, e.item as f_item, e.f_device, e.f_country, e.f_channel, e.f_age,
                  e.f_price, i.category as f_category, i.tags as f_tags, i.quality as f_quality,
                  u.segment as f_segment, u.joined as f_joined,
                  case when ds = '{days[-1]}' then 'test' when ds = '{days[-2]}' then 'valid' else 'train' end split
                from events e left join side_items i on i.item_id = e.item
                  left join side_users u on u.user_id = e.user
                where ds <= '{days[-1]}'"""  # a clock ahead dates an event after the run date
        )
        db.execute(
            """create table keys as select field, key, index from field_values
               union all select 'item', key, index from items"""
        )
        return db

    def test_splits_are_days(self, db: duckdb.DuckDBPyConnection) -> None:
        query = "select event_id, split from {} order by event_id"
        assert db.sql(query.format("samples")).fetchall() == db.sql(query.format("truth")).fetchall()

    def test_masks_and_missing_rates(self, db: duckdb.DuckDBPyConnection) -> None:
        assert [n for (n,) in db.sql("select name from fields order by position").fetchall()] == NAMES
        for bit, name in enumerate(NAMES):
            differing = f"(s.missing >> {bit} & 1 = 1) <> (t.f_{name} is null)"
            assert self.differing(db, differing) == 0
            ((rate,),) = db.sql(f"select avg((f_{name} is null)::int) from truth where split = 'train'").fetchall()
            assert db.sql(f"select missing_rate from fields where name = '{name}'").fetchall() == [
                (pytest.approx(rate),)
            ]
        assert self.differing(db, "s.missing >= 1 << 12") == 0

    @pytest.mark.parametrize("name", NUMERIC)
    def test_numbers_and_their_statistics(self, db: duckdb.DuckDBPyConnection, name: str) -> None:
        assert self.differing(db, f"t.f_{name} is distinct from s.f_{name}") == 0
        rows = db.sql(f"select f_{name} from truth where split = 'train' and f_{name} is not null").fetchall()
        values = np.array(rows, float)
        assert len(values) > 300
        assert db.sql(f"select mean, std, size from fields where name = '{name}'").fetchall() == [
            (pytest.approx(values.mean()), pytest.approx(values.std()), 0)
        ]

    @pytest.mark.parametrize("name", [n for n in NAMES if n not in NUMERIC])
    def test_indices(self, db: duckdb.DuckDBPyConnection, name: str) -> None:
        known = dict(db.sql(f"select key, index from keys where field = '{name}'").fetchall())
        assert db.sql(f"select size from fields where name = '{name}'").fetchall() == [(len(known) + 2,)]
        pairs = db.sql(f"select t.f_{name}, s.f_{name} from truth t join samples s using (event_id)").fetchall()
        for raw, index in pairs:
            if name == "tags":
                assert index == (None if raw is None else [known.get(tag, 1) for tag in raw])
            else:
                assert index == (None if raw is None else known.get(raw, 1))
        if name == "item":
            assert 0 < sum(index == 1 for _, index in pairs) < len(pairs) / 2, "rare items are unknown"

    @staticmethod
    def differing(db: duckdb.DuckDBPyConnection, condition: str) -> int:
        query = f"select count(*) from truth t join samples s using (event_id) where {condition}"
        return int(db.sql(query).fetchall()[0][0])
