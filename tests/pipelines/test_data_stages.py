"""Which arrivals are ingested again, and that day by day ends where all at once ends."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from featurize.contract import Label
from featurize.simulate import simulate
from infra.errors import ConfigError, ContractChanged, DataRefused, UsageError
from pipelines.context import Context
from pipelines.data import Data
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from tests.pipelines.commands import RECIPES, small_recipe

DAYS = [f"2026-01-0{d}" for d in range(1, 6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    simulate(tmp_path / "raw", users=40, items=25, days=5, seed=9)
    return tmp_path


def data_run(folder: Path, workspace: str, until: str | None = None, **options: Any) -> tuple[Context, Data]:
    recipe = small_recipe(folder, workspace=str(folder / workspace))
    with Context(*open_recipe(recipe), Progress(1), **options) as ctx:
        return ctx, run_data(ctx, until=until)


def published(ctx: Context) -> list[str]:
    """What the command published, side files apart."""
    return [f"{s.unit} {s.date}" for s in ctx.steps if s.status == "published" and s.unit != "events:sides"]


def rows(ctx: Context, data: Data, tables: tuple[str, ...]) -> dict[str, Counter[str]]:
    """The rows of each table as of the run date, as a bag of text."""
    out = {}
    for table in tables:
        where = {"as_of": data.day} if table in AS_OF else None
        out[table] = Counter(map(repr, ctx.lake.read(table, data.versions[table], where).to_pylist()))
    return out


AS_OF = ("sequences", "samples", "fields", "missing_rates", "popularity")
TABLES = ("events", "quarantine", "ingested_files", "items", "field_values", "sequences", "samples", "fields")
TABLES += ("missing_rates",)


@pytest.mark.slow
def test_day_by_day_equals_all_at_once(spark: SparkSession, folder: Path) -> None:
    for day in (DAYS[2], DAYS[4]):
        daily, data = data_run(folder, "daily", last=day)
    once, data_once = data_run(folder, "once", last=DAYS[4])
    assert published(daily)[:2] == [f"events {DAYS[3]}", f"events {DAYS[4]}"]
    ours, theirs = rows(daily, data, TABLES), rows(once, data_once, TABLES)
    for table in TABLES:
        assert ours[table] == theirs[table], table


def test_an_older_run_date_is_still_skipped_later(spark: SparkSession, folder: Path) -> None:
    data_run(folder, "w", until="events", last=DAYS[3])
    data_run(folder, "w", until="events", last=DAYS[4])
    ctx, data = data_run(folder, "w", until="events", last=DAYS[3])
    assert published(ctx) == []
    assert data.arrivals == tuple(DAYS[:4])


def test_a_changed_file_reopens_its_arrival_and_the_later_ones(spark: SparkSession, folder: Path) -> None:
    before, data = data_run(folder, "w", until="events")
    with gzip.open(folder / "raw" / "events" / DAYS[2] / "part-9.jsonl.gz", "wt") as extra:
        extra.write(
            json.dumps({"event_id": "new", "user_id": "u1", "item_id": "i1", "time": 1767398400000, "event": "click"})
        )
    after, data_after = data_run(folder, "w", until="events")
    assert published(after) == [f"events {d}" for d in DAYS[2:]]
    count = {
        c: before.lake.dataset("events", d.versions["events"]).count_rows() for c, d in (("a", data), ("b", data_after))
    }
    assert count["b"] == count["a"] + 1


def test_a_rebuild_under_another_contract_and_back_leaves_no_row_of_the_other(
    spark: SparkSession, folder: Path
) -> None:
    """A, then B made by --rebuild, then A again, whose arrivals are published still, then one more arrival under A."""
    first, data = data_run(folder, "w", until="events", last=DAYS[2])
    recipe, contract = open_recipe(small_recipe(folder, workspace=str(folder / "w")))
    other = contract.model_copy(update={"label": Label(column="event", one_of=("impression",))})
    with Context(recipe, other, Progress(1), last=DAYS[2]) as refused:
        with pytest.raises(ContractChanged, match=r"label\.one_of"):
            run_data(refused, until="events")
    with Context(recipe, other, Progress(1), last=DAYS[2], rebuild=True) as b:
        run_data(b, until="events")
    assert published(b) == [f"events {d}" for d in DAYS[:3]]
    again, _ = data_run(folder, "w", until="events", last=DAYS[2])
    assert published(again) == []
    more, data_more = data_run(folder, "w", until="events", last=DAYS[3])
    assert published(more) == [f"events {DAYS[3]}"]
    where = {"arrival": DAYS[:3]}
    for table in ("events", "quarantine", "ingested_files"):
        ours = Counter(map(repr, more.lake.read(table, data_more.versions[table], where).to_pylist()))
        theirs = Counter(map(repr, first.lake.read(table, data.versions[table], where).to_pylist()))
        assert ours == theirs, table


@pytest.mark.slow
def test_a_rebuild_leaves_what_day_by_day_left(spark: SparkSession, folder: Path) -> None:
    for day in DAYS[2:5]:
        daily, data = data_run(folder, "w", last=day)
    made_again, data_again = data_run(folder, "w", last=DAYS[4], rebuild=True)
    assert [p for p in published(made_again) if p.startswith("events")] == [f"events {d}" for d in DAYS]
    assert all(data_again.versions[t] > data.versions[t] for t in ("events", "sequences", "samples"))
    ours, theirs = rows(made_again, data_again, TABLES), rows(daily, data, TABLES)
    for table in TABLES:
        assert ours[table] == theirs[table], table


@pytest.mark.slow
def test_late_events_reopen_their_arrival_and_what_is_downstream_of_it(spark: SparkSession, folder: Path) -> None:
    """The simulator's last day has late events: they stand in their own partitions, and no other unit is made again."""
    for day in (DAYS[3], DAYS[4]):
        ctx, data = data_run(folder, "w", last=day)
    late = ctx.lake.read("events", data.versions["events"], {"arrival": DAYS[4]})["ds"].to_pylist()
    assert any(ds < DAYS[4] for ds in late)
    assert {p.split(" ")[1] for p in published(ctx)} == {DAYS[4]}
    earlier, _ = data_run(folder, "w", last=DAYS[3])
    assert published(earlier) == []


def test_a_changed_side_file_is_published_again(spark: SparkSession, folder: Path) -> None:
    data_run(folder, "w", until="vocabularies")
    items = folder / "raw" / "items.jsonl"
    items.write_text(items.read_text() + json.dumps({"item_id": "late", "category": "brand new"}) + "\n")
    ctx, data = data_run(folder, "w", until="vocabularies")
    assert published(ctx) == [f"vocabularies {DAYS[4]}"]
    keys = {r["key"] for r in ctx.lake.read("item_features", data.versions["item_features"]).to_pylist()}
    assert "late" in keys
    values = ctx.lake.read("field_values", data.versions["field_values"]).to_pylist()
    assert {"brand new"} <= {v["key"] for v in values if v["field"] == "category"}


def test_an_older_run_date_never_sees_todays_side_file(spark: SparkSession, folder: Path) -> None:
    for day in DAYS[2:]:
        first, _ = data_run(folder, "w", until="events", last=day)
    newest = first.ledger.rows()
    items = folder / "raw" / "items.jsonl"
    items.write_text(items.read_text() + json.dumps({"item_id": "late", "category": "of the future"}) + "\n")
    ctx, data = data_run(folder, "w", until="events", last=DAYS[3])
    assert {s.status for s in ctx.steps} == {"skipped"}
    assert len(ctx.ledger.rows()) == len(newest)
    stored = ctx.lake.read("item_features", data.versions["item_features"], {"arrival": DAYS[3]})
    assert "late" not in stored["key"].to_pylist()
    today, data = data_run(folder, "w", until="events", last=DAYS[4])
    stored = today.lake.read("item_features", data.versions["item_features"], {"arrival": DAYS[4]})
    assert "late" in stored["key"].to_pylist()


@pytest.mark.parametrize("source", ["log", "items"])
def test_nor_does_it_under_another_contract(spark: SparkSession, folder: Path, source: str) -> None:
    """A field that is new since: the older day keeps its snapshot, and one of other columns counts from today."""
    for day in DAYS[3:]:
        data_run(folder, "w", until="events", last=day)
    items = folder / "raw" / "items.jsonl"
    items.write_text(items.read_text() + json.dumps({"item_id": "late", "category": "of the future"}) + "\n")
    recipe, contract = open_recipe(small_recipe(folder, workspace=str(folder / "w")))
    new = contract.fields[0].model_copy(update={"name": "extra", "column": "category", "source": source})
    with Context(
        recipe, contract.model_copy(update={"fields": (*contract.fields, new)}), Progress(1), last=DAYS[3]
    ) as ctx:
        data = run_data(ctx, until="events")
    stored = ctx.lake.read("item_features", data.versions["item_features"]).to_pylist()
    assert {r["arrival"] for r in stored if r["key"] == "late"} == ({DAYS[4]} if source == "items" else set())
    assert DAYS[3] in {r["arrival"] for r in stored}


def test_a_field_that_is_nowhere_in_the_log_is_named(spark: SparkSession, folder: Path) -> None:
    recipe, contract = open_recipe(small_recipe(folder))
    fields = (*contract.fields, contract.fields[0].model_copy(update={"name": "colour", "column": "colur"}))
    with Context(recipe, contract.model_copy(update={"fields": fields}), Progress(1)) as ctx:
        with pytest.raises(DataRefused, match=r"colour \(column 'colur'\)"):
            run_data(ctx)
    assert ctx.ledger.rows() == []


def test_a_field_fewer_concerns_new_arrivals_only(spark: SparkSession, folder: Path) -> None:
    data_run(folder, "w", until="events", last=DAYS[3])
    recipe, contract = open_recipe(small_recipe(folder, workspace=str(folder / "w")))
    narrower = contract.model_copy(update={"fields": contract.fields[1:]})
    with Context(recipe, narrower, Progress(1), last=DAYS[4]) as ctx:
        data = run_data(ctx, until="events")
    assert published(ctx) == [f"events {DAYS[4]}"]
    dropped = ctx.lake.read("events", data.versions["events"], {"arrival": DAYS[3:5]})
    present = {a for a, v in zip(*(dropped[c].to_pylist() for c in ("arrival", "f_device")), strict=True) if v}
    assert present == {DAYS[3]}


@pytest.mark.slow
def test_a_log_without_labels_gets_samples_with_negatives(spark: SparkSession, folder: Path) -> None:
    """Clicks are the positives; the same run twice leaves the same rows."""
    recipe, contract = open_recipe(small_recipe(folder, samples={"history": 3, "negatives": 2}))
    unlabelled = contract.model_copy(update={"label": None})
    built = []
    for workspace in ("one", "two"):
        with Context(recipe.model_copy(update={"workspace": folder / workspace}), unlabelled, Progress(1)) as ctx:
            built.append(rows(ctx, run_data(ctx), ("samples", "fields", "missing_rates", "popularity")))
    assert built[0] == built[1]
    (step,) = [s for s in ctx.steps if s.unit == "samples"]
    assert 0.6 * step.report["negatives"]["wanted"] < step.report["negatives"]["drawn"]


def test_the_history_field_needs_its_name(folder: Path) -> None:
    recipe = small_recipe(folder, samples={"history": 3}, contract=str(folder / "contract.yaml"))
    contract = yaml.safe_load((RECIPES / "contracts" / "simulator.yaml").read_text())
    contract["fields"][0]["name"] = "history"
    (folder / "contract.yaml").write_text(yaml.safe_dump(contract))
    with pytest.raises(ConfigError, match=r"samples\.history: adds a field 'history'"):
        open_recipe(recipe)
    open_recipe(recipe, ["samples.history=0"])


def test_published_arrivals_outlive_their_raw_files(spark: SparkSession, folder: Path) -> None:
    data_run(folder, "w", until="events", last=DAYS[3])
    for file in (folder / "raw" / "events" / DAYS[0]).iterdir():
        file.unlink()
    ctx, data = data_run(folder, "w", until="events", last=DAYS[4])
    assert published(ctx) == [f"events {DAYS[4]}"]
    assert data.arrivals == tuple(DAYS)


def test_from_leaves_earlier_arrivals_alone(spark: SparkSession, folder: Path) -> None:
    ctx, data = data_run(folder, "w", until="events", first=DAYS[2], last=DAYS[3])
    assert data.arrivals == tuple(DAYS[2:4])
    assert published(ctx) == [f"events {d}" for d in DAYS[2:4]]


def test_no_arrival_in_the_range(folder: Path) -> None:
    with pytest.raises(DataRefused, match="--from and --to"):
        data_run(folder, "w", first="2030-01-01")


def test_one_stage_refuses_to_do_another_s_work(folder: Path) -> None:
    with pytest.raises(UsageError, match="logs2rec stage events"):
        data_run(folder, "w", only="sequences")


def test_a_refused_batch_publishes_nothing(spark: SparkSession, folder: Path) -> None:
    for part in (folder / "raw" / "events" / DAYS[1]).iterdir():
        part.unlink()
    (folder / "raw" / "events" / DAYS[1] / "part-0.jsonl").write_text("rubbish\n" * 400)
    with pytest.raises(DataRefused, match="max_bad_share"):
        data_run(folder, "w")
    ctx, _ = data_run(folder, "w", until="events", last=DAYS[0])
    assert published(ctx) == [f"events {DAYS[0]}"]
    assert ctx.lake.version("events") == 1  # created, then one commit: nothing was left by the refused batch


def test_a_later_arrival_never_puts_a_corrected_one_back(spark: SparkSession, folder: Path) -> None:
    """The first arrival was corrected alone; whoever asks for a later one only would build on its former rows."""
    data_run(folder, "w", until="events", last=DAYS[1])
    with gzip.open(folder / "raw" / "events" / DAYS[0] / "part-9.jsonl.gz", "wt") as extra:
        extra.write(
            json.dumps({"event_id": "new", "user_id": "u1", "item_id": "i1", "time": 1767225600000, "event": "click"})
        )
    corrected, data = data_run(folder, "w", until="events", last=DAYS[0])
    assert published(corrected) == [f"events {DAYS[0]}"]
    with pytest.raises(DataRefused, match=f"{DAYS[1]} was published on another state of {DAYS[0]}"):
        data_run(folder, "w", until="events", first=DAYS[2], last=DAYS[2])
    whole, after = data_run(folder, "w", until="events", last=DAYS[2])
    assert published(whole) == [f"events {day}" for day in DAYS[1:3]]
    kept = {"arrival": DAYS[0]}
    of_the_first = whole.lake.read("events", after.versions["events"], kept)["event_id"].to_pylist()
    assert sorted(of_the_first) == sorted(
        corrected.lake.read("events", data.versions["events"], kept)["event_id"].to_pylist()
    )
    assert "new" in of_the_first
