"""featurize/vocabularies.py against a recount in plain Python: once given, an index stays for ever."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from featurize import vocabularies
from featurize.contract import Contract
from featurize.settings import VocabularySettings
from featurize.vocabularies import Vocabularies, hash_of
from infra.commit import commit, write_file
from infra.errors import AuditError, DataRefused
from infra.lake import Lake
from infra.tables import ITEMS, Kind, Table, events, side_features
from tests.conftest import put
from tests.featurize.warehouse import FORM

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONTRACT = Contract.model_validate(
    {
        **FORM,
        "items": {"path": "items", "format": "json", "key": "i"},
        "fields": [
            {"name": "device", "kind": "categorical"},
            {"name": "words", "kind": "multi"},
            {"name": "price", "kind": "numeric"},
            {"name": "brand", "kind": "categorical", "source": "items"},
        ],
    }
)
LOG = events(CONTRACT.kinds_from("log"))
SIDE = side_features("item", [("brand", Kind.CATEGORICAL)])
DAYS = [f"2024-01-{d:02d}" for d in range(1, 7)]
KEYS = ["a", "B", "10", "9", "\u00e9", "e\u0301", "\uffff", "\U00010000", "a\x01", "", "\u00e9\u00e9" * 999]


def make_event(n: int, arrival: str, item: str, user: str = "u", **fields: Any) -> dict[str, Any]:
    return {
        "arrival": arrival,
        "ds": arrival,
        "event_id": f"e{n}",
        "user": user,
        "item": item,
        "type": "event",
        "ts": datetime(2024, 1, 1, tzinfo=UTC),
        "label": 1,
        "file": "f",
        "position": n,
        "f_device": fields.get("device"),
        "f_words": fields.get("words"),
        "f_price": 1.0,
    }


def random_log(seed: int, days: Sequence[str] = DAYS, per_day: int = 12) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    keys = [k or "empty" for k in KEYS] + [f"k{n}" for n in range(10)]
    return [
        make_event(
            n * 100 + d,
            day,
            rng.choice(keys[: 6 + 3 * d]),
            user=rng.choice(keys),
            device=rng.choice([None, *keys[:3]]),
            words=rng.choice([None, [], keys[:2], [keys[d], keys[d]], [rng.choice(keys)]]),
        )
        for d, day in enumerate(days)
        for n in range(per_day)
    ]


def recount(log: Iterable[dict[str, Any]], field: str, minimum: int) -> list[tuple[str, int, str]]:
    """(arrival, index, key) as the design words it: in order of (arrival the minimum was reached on, key bytes)."""
    log = list(log)
    seen: Counter[str] = Counter()
    out: list[tuple[str, int, str]] = []
    for arrival in sorted({e["arrival"] for e in log}):
        for event in (e for e in log if e["arrival"] == arrival):
            value = event.get(field)
            seen.update(value if isinstance(value, list) else [] if value is None else [value])
        known = {key for _, _, key in out}
        for key in sorted((k for k, n in seen.items() if n >= minimum and k not in known), key=str.encode):
            out.append((arrival, 2 + len(out), key))
    return out


SIDE_ROWS = [{"arrival": DAYS[0], "key": f"i{n}", "f_brand": brand} for n, brand in enumerate(["z", None, "y", "z"])]


class Shop:
    """One lake with a log, and vocabularies built in it."""

    def __init__(self, spark: SparkSession, lake: Lake, log: Sequence[dict[str, Any]]) -> None:
        self.spark, self.lake = spark, lake
        self.inputs: dict[str, int] = {}
        self.put(log)

    def put(self, log: Sequence[dict[str, Any]]) -> None:
        self.inputs = {"events": put(self.lake, LOG, log), "item_features": put(self.lake, SIDE, SIDE_ROWS)}

    def build(self, days: Sequence[str], prior: Vocabularies | None = None, **minimum: int) -> Vocabularies:
        before = prior.versions if prior is not None else None
        made = VocabularySettings.model_validate(minimum)
        return vocabularies.build(self.spark, self.lake, CONTRACT, made, self.inputs, days, before, {"run": "test"})

    def stored(self, built: Vocabularies) -> dict[str, list[tuple[str, int, str]]]:
        """field -> (arrival, index, key) in index order."""
        items = [{**r, "field": "item"} for r in self.lake.read("items", built.versions["items"]).to_pylist()]
        values = self.lake.read("field_values", built.versions["field_values"]).to_pylist()
        out: dict[str, list[tuple[str, int, str]]] = {}
        for row in sorted(items + values, key=lambda r: r["index"]):
            out.setdefault(row["field"], []).append((row["arrival"], row["index"], row["key"]))
        return out


def expected(log: Sequence[dict[str, Any]], items: int, values: int) -> dict[str, list[tuple[str, int, str]]]:
    return {
        "item": recount(log, "item", items),
        "user": recount(log, "user", values),
        "device": recount(log, "f_device", values),
        "words": recount(log, "f_words", values),
        "brand": [(DAYS[0], 2, "y"), (DAYS[0], 3, "z")],
    }


@pytest.mark.parametrize(("items", "values"), [(1, 1), (3, 2)])
def test_indices_are_those_of_a_recount_at_once_and_day_by_day(
    spark: SparkSession, lake: Lake, items: int, values: int
) -> None:
    log = random_log(items)
    minimum = {"min_item_count": items, "min_value_count": values}
    shop = Shop(spark, lake, log)
    built: Vocabularies | None = None
    for last in (1, 2, 4, 6):
        before = shop.stored(built) if built is not None else {}
        built = shop.build(DAYS[:last], built, **minimum)
        now = shop.stored(built)
        assert now == expected([e for e in log if e["arrival"] <= DAYS[last - 1]], items, values)
        for field, entries in before.items():
            assert now[field][: len(entries)] == entries, "what was given stays"
        assert built.sizes == {field: 2 + len(entries) for field, entries in now.items()}
    assert built is not None
    assert built.items_hash == shop.build(DAYS, built, **minimum).items_hash, "nothing new, nothing changed"

    random.Random(0).shuffle(log)
    other = Shop(spark, Lake(lake.root.parent / "other"), log)
    spark.conf.set("spark.sql.shuffle.partitions", "7")
    try:
        rebuilt = other.build(DAYS, None, **minimum)
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", "2")
    assert other.stored(rebuilt) == shop.stored(built)
    assert rebuilt.items_hash == built.items_hash
    assert rebuilt.sizes == built.sizes


def test_the_order_by_hand(spark: SparkSession, lake: Lake) -> None:
    """`late` reaches two events on the second day only; bytes put B before a and U+FFFF before U+10000."""
    first = ["late", "a", "a", "\U00010000", "\U00010000", "\uffff", "\uffff", "B", "B", "once"]
    log = [make_event(n, DAYS[0], item) for n, item in enumerate(first)]
    log += [make_event(100 + n, DAYS[1], item) for n, item in enumerate(["0", "0", "late"])]
    shop = Shop(spark, lake, log)
    built = shop.build(DAYS[:2], min_item_count=2)
    assert shop.stored(built)["item"] == [
        *((DAYS[0], 2 + n, key) for n, key in enumerate(["B", "a", "\uffff", "\U00010000"])),
        (DAYS[1], 6, "0"),
        (DAYS[1], 7, "late"),
    ]
    early = vocabularies.read(lake, built.versions, DAYS[0])
    assert early["item"].to_pydict() == {"index": [2, 3, 4, 5], "key": ["B", "a", "\uffff", "\U00010000"]}


def test_keys_of_an_arrival_that_was_ingested_again_come_last(spark: SparkSession, lake: Lake) -> None:
    log = [make_event(0, DAYS[0], "b"), make_event(1, DAYS[2], "c")]
    shop = Shop(spark, lake, log)
    first = shop.build(DAYS[:3])
    shop.put([*log, make_event(2, DAYS[0], "a"), make_event(3, DAYS[3], "0")])
    second = shop.build(DAYS[:4], first)
    assert shop.stored(second)["item"] == [
        (DAYS[0], 2, "b"),
        (DAYS[2], 3, "c"),
        (DAYS[3], 4, "0"),
        (DAYS[3], 5, "a"),
    ]


def test_a_run_for_an_earlier_date_leaves_no_gap(spark: SparkSession, lake: Lake) -> None:
    """A key that turns up late in an old arrival must not stand in the vocabulary of that date behind keys it lacks."""
    log = [make_event(0, DAYS[0], "b"), make_event(1, DAYS[2], "c")]
    shop = Shop(spark, lake, log)
    first = shop.build(DAYS[:3])
    shop.put([*log, make_event(2, DAYS[0], "a")])
    backfill = shop.build(DAYS[:2], first)
    as_of = vocabularies.read(lake, backfill.versions, DAYS[1])
    assert as_of["item"].to_pydict() == {"index": [2], "key": ["b"]}
    assert backfill.sizes["item"] == 3
    assert shop.stored(backfill)["item"] == [(DAYS[0], 2, "b"), (DAYS[2], 3, "c"), (DAYS[2], 4, "a")]


def test_what_an_unpublished_run_left_behind_is_removed(spark: SparkSession, lake: Lake) -> None:
    """A command died after its commit; the day's file was then mended, and the next run knows nothing of it."""
    log = [make_event(0, DAYS[0], "a")]
    shop = Shop(spark, lake, [*log, make_event(1, DAYS[1], "x"), make_event(2, DAYS[2], "y")])
    published = shop.build(DAYS[:1])
    shop.build(DAYS[:3], published)  # never published
    shop.put([*log, make_event(1, DAYS[1], "p"), make_event(2, DAYS[1], "q"), make_event(3, DAYS[2], "y")])
    second = shop.build(DAYS[:2], published)
    third = shop.build(DAYS[:3], second)
    assert [(index, key) for _, index, key in shop.stored(third)["item"]] == [(2, "a"), (3, "p"), (4, "q"), (5, "y")]


def test_what_an_unpublished_run_put_into_a_published_arrival_is_taken_back(spark: SparkSession, lake: Lake) -> None:
    """An arrival was ingested again, the run died after its commit, and the next run has a new arrival."""
    log = [make_event(0, DAYS[0], "b"), make_event(1, DAYS[1], "c")]
    shop = Shop(spark, lake, log)
    published = shop.build(DAYS[:2])
    log.append(make_event(3, DAYS[0], "a"))
    shop.put(log)
    shop.build(DAYS[:2], published)  # writes `a` into the second day's partition; never published
    shop.put([*log, make_event(2, DAYS[2], "d")])
    built = shop.build(DAYS[:3], published)
    assert shop.stored(built)["item"] == [
        (DAYS[0], 2, "b"),
        (DAYS[1], 3, "c"),
        (DAYS[2], 4, "a"),
        (DAYS[2], 5, "d"),
    ]
    assert built.sizes["item"] == 6


def test_no_item_at_all_is_refused(spark: SparkSession, lake: Lake) -> None:
    shop = Shop(spark, lake, [make_event(0, DAYS[0], "a")])
    with pytest.raises(DataRefused, match=r"items: no item reached vocabularies\.min_item_count"):
        shop.build(DAYS[:1], min_item_count=2)
    assert not lake.exists("items")


def test_side_snapshots_as_of_an_arrival(lake: Lake) -> None:
    version = put(lake, SIDE, [{**SIDE_ROWS[0], "arrival": day} for day in (DAYS[1], DAYS[3])])
    for day, expected_day in zip(DAYS, [1, 1, 1, 3, 3, 3], strict=True):
        assert vocabularies.side_partition(lake, SIDE.name, version, day) == {"arrival": DAYS[expected_day]}


def vocabulary(keys: Sequence[str], first: int = 2) -> pa.Table:
    return pa.table(
        {"index": pa.array(range(first, first + len(keys)), pa.int32()), "key": pa.array(keys, pa.string())}
    )


def test_the_hash_changes_with_any_key_index_or_order() -> None:
    base = hash_of(vocabulary(["a", "b"]))
    assert base == hash_of(vocabulary(["a", "b"]))
    others = [
        vocabulary(keys)
        for keys in (["a"], ["b", "a"], ["a", "c"], ["ab"], ["a", "b", "c"], ["a", "b\x00"], ["a\x013\x00b"], [])
    ]
    hashes = [hash_of(other) for other in (*others, vocabulary(["a", "b"], first=3))]
    assert len({base, *hashes}) == 10
    assert len(base) == 16


def put_in_files(lake: Lake, table: Table, log: Sequence[dict[str, Any]], rng: random.Random) -> int:
    """The rows of each partition in random order, cut into up to four files."""
    files, rows = [], list(log)
    rng.shuffle(rows)
    for arrival in sorted({r["arrival"] for r in rows}):
        own = [r for r in rows if r["arrival"] == arrival]
        bounds = sorted({0, len(own), *(rng.randrange(1, len(own)) for _ in range(3))})
        for start, end in pairwise(bounds):
            data = pa.Table.from_pylist(own[start:end], schema=table.schema)
            files.append(write_file(lake.path(table.name), table, {"arrival": arrival, "ds": arrival}, [data]))
    arrivals = sorted({f.partition["arrival"] for f in files})
    return commit(lake, table, files, replace={"arrival": arrivals}, metadata={})


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_files_and_rows_decides_nothing(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    days, log = DAYS[:3], random_log(7, DAYS[:3])
    shop = Shop(spark, Lake(tmp_path / "lake"), log)
    shop.inputs["events"] = put_in_files(shop.lake, LOG, log, rng)
    built = shop.build(days, shop.build(days[:1], min_value_count=2), min_value_count=2)
    assert shop.stored(built) == expected(log, 1, 2)


def test_values_of_a_later_snapshot_come_with_it(spark: SparkSession, lake: Lake) -> None:
    """All at once and day by day: what is new in the third day's side file stands behind the first day's keys."""
    later = [{"arrival": DAYS[2], "key": "i0", "f_brand": "a"}, {"arrival": DAYS[2], "key": "i1", "f_brand": "y"}]
    shop = Shop(spark, lake, [make_event(n, day, "a") for n, day in enumerate(DAYS[:3])])
    shop.inputs["item_features"] = put(lake, SIDE, [*SIDE_ROWS, *later])
    brands = [(DAYS[0], 2, "y"), (DAYS[0], 3, "z"), (DAYS[2], 4, "a")]
    assert shop.stored(shop.build(DAYS[:3]))["brand"] == brands
    daily = shop.build(DAYS[:2])
    assert shop.stored(daily)["brand"] == brands[:2]
    assert shop.stored(shop.build(DAYS[:3], daily))["brand"] == brands


def test_the_hash_of_files_is_that_of_the_table(lake: Lake) -> None:
    """Cut anywhere, with files out of order; a gap or an index given twice is an audit's business."""
    keys = [f"k{n}" * (n % 3) + "\u00e9" for n in range(10)]
    rows = [{"arrival": DAYS[n // 4], "index": 2 + n, "key": key} for n, key in enumerate(keys)]
    versions = {"items": put(lake, ITEMS, rows)}
    assert vocabularies.items_hash(lake, versions, DAYS[5]) == hash_of(vocabulary(keys))
    assert vocabularies.items_hash(lake, versions, DAYS[1]) == hash_of(vocabulary(keys[:8]))
    lines = b"".join(b"%d %d %s" % (2 + n, len(k.encode()), k.encode()) for n, k in enumerate(keys))
    assert hash_of(vocabulary(keys)) == hashlib.sha256(lines).hexdigest()[:16]
    for wrong in ([*rows[:4], *rows[5:]], [*rows, {**rows[4], "arrival": DAYS[5]}]):
        versions = {"items": put(lake, ITEMS, wrong)}
        with pytest.raises(AuditError, match=r"table items, file .*: index"):
            vocabularies.items_hash(lake, versions, DAYS[5])


def test_the_item_table_is_what_readers_expect(spark: SparkSession, lake: Lake) -> None:
    shop = Shop(spark, lake, [make_event(0, DAYS[0], "a")])
    built = shop.build(DAYS[:1])
    assert lake.read(ITEMS.name, built.versions["items"]).to_pylist() == [{"arrival": DAYS[0], "index": 2, "key": "a"}]
