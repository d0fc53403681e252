"""A contract that changes between arrivals, through the pipeline: what stays, what is refused, what --rebuild does."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from infra.errors import ContractChanged, DataRefused, SchemaChanged
from infra.ledger import Ledger
from pipelines.context import Context
from pipelines.data import Data
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from pipelines.status import status
from tests.pipelines.commands import small_recipe

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")

FIRST: dict[str, Any] = {
    "name": "shop",
    "personal": False,
    "source": {"path": "log/{date}.jsonl", "format": "json"},
    "user": "u",
    "item": "i",
    "time": {"column": "t", "unit": "s"},
    "event_id": "id",
    "label": {"column": "stars", "at_least": 4},
    "fields": [
        {"name": "price", "kind": "numeric"},
        {"name": "device", "kind": "categorical", "column": "dev"},
    ],
}
SECOND: dict[str, Any] = {
    **FIRST,
    "user": "user",
    "time": {"column": "t", "unit": "ms"},
    "fields": [
        {"name": "price", "kind": "numeric", "column": "cost"},
        {"name": "city", "kind": "categorical"},
    ],
}
"""The user's and the price's columns are renamed, times are in ms, device is dropped, city is new."""


def seconds(day: str) -> int:
    return 1772323200 + 86400 * DAYS.index(day)


def first_log(day: str) -> list[dict[str, Any]]:
    """Twelve events of three users, ids and prices as whole numbers."""
    return [
        {
            "u": n % 3,
            "i": n % 4,
            "t": seconds(day) + n,
            "id": f"{day}:{n}",
            "stars": 1 + n % 5,
            "price": n,
            "dev": "phone" if n % 2 else "desk",
        }
        for n in range(12)
    ]


def second_log(day: str) -> list[dict[str, Any]]:
    """The same in the log's later form: ids as text, prices with decimals."""
    return [
        {
            "user": str(e["u"]),
            "i": str(e["i"]),
            "t": e["t"] * 1000,
            "id": e["id"],
            "stars": e["stars"],
            "cost": e["price"] + 0.5,
            "city": "Bern" if e["u"] else None,
        }
        for e in first_log(day)
    ]


def write(folder: Path, day: str, events: Sequence[Mapping[str, Any]]) -> None:
    path = folder / "raw" / "log" / f"{day}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(e) + "\n" for e in events), encoding="utf-8")


def run(
    folder: Path, contract: Mapping[str, Any], until: str | None = "events", workspace: str = "w", **options: Any
) -> tuple[Context, Data]:
    (folder / "contract.yaml").write_text(yaml.safe_dump(copy.deepcopy(dict(contract))), encoding="utf-8")
    recipe = small_recipe(
        folder,
        contract="contract.yaml",
        workspace=str(folder / workspace),
        retrieval=None,
        samples={"split": "per_user_ratio", "test_share": 0.3, "valid_share": 0.3},
    )
    with Context(*open_recipe(recipe), Progress(1), **options) as ctx:
        return ctx, run_data(ctx, until=until)


def published(ctx: Context) -> list[str]:
    return [f"{s.unit} {s.date}" for s in ctx.steps if s.status == "published"]


def column(ctx: Context, data: Data, name: str, arrival: str, table: str = "events") -> list[Any]:
    """A column of an arrival in the order of event ids."""
    rows = ctx.lake.read(table, data.versions[table], {"arrival": arrival}).to_pylist()
    return [r[name] for r in sorted(rows, key=lambda r: int(r["event_id"].split(":")[1]))]


def test_a_compatible_contract_goes_on_with_new_arrivals_only(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, DAYS[0], first_log(DAYS[0]))
    before, old = run(tmp_path, FIRST)
    (tmp_path / "raw" / "log" / f"{DAYS[0]}.jsonl").unlink()  # the old arrival cannot be read again
    copied = {**second_log(DAYS[0])[5], "cost": 5}  # a copy of an event of the first day, in the later form
    write(tmp_path, DAYS[1], [*second_log(DAYS[1]), copied])

    after, data = run(tmp_path, SECOND, until="samples")
    assert [p for p in published(after) if p.startswith("events")] == [f"events {DAYS[1]}"]
    account = next(s.report for s in after.steps if s.unit == "events" and s.date == DAYS[1])
    assert {k: account[k] for k in ("rows", "events", "duplicates", "quarantined")} == {
        "rows": 13,
        "events": 12,
        "duplicates": 1,
        "quarantined": 0,
    }
    # the same ids, whatever they are written as; the price's column has gone on under its own name
    for name, first, second in (
        ("user", [str(n % 3) for n in range(12)], [str(n % 3) for n in range(12)]),
        ("f_price", [float(n) for n in range(12)], [n + 0.5 for n in range(12)]),
        ("f_device", ["desk", "phone"] * 6, [None] * 12),
        ("f_city", [None] * 12, [None, "Bern", "Bern"] * 4),
    ):
        assert column(after, data, name, DAYS[0]) == first, name
        assert column(after, data, name, DAYS[1]) == second, name
    assert {t.timestamp() for t in column(after, data, "ts", DAYS[1])} == {seconds(DAYS[1]) + n for n in range(12)}
    assert "f_city" not in before.lake.dataset("events", old.versions["events"]).schema.names

    fields = after.lake.read("fields", data.versions["fields"], {"as_of": data.day}).sort_by("position")["name"]
    assert fields.to_pylist() == ["user", "item", "price", "city"]
    samples = after.lake.read("samples", data.versions["samples"], {"as_of": data.day}).to_pylist()
    missing = {r["event_id"]: r["missing"] for r in samples}
    assert {missing[f"{DAYS[0]}:{n}"] for n in range(12)} == {0b1000}
    assert [missing[f"{DAYS[1]}:{n}"] for n in range(3)] == [0b1000, 0, 0]

    again, _ = run(tmp_path, SECOND, until="samples")
    assert published(again) == []
    write(tmp_path, DAYS[2], first_log(DAYS[2]))
    back, data = run(tmp_path, FIRST)  # the first contract is version 1 again
    assert published(back) == [f"events {DAYS[2]}"]
    assert column(back, data, "f_device", DAYS[2]) == ["desk", "phone"] * 6
    assert column(back, data, "f_city", DAYS[2]) == [None] * 12
    listed = status(back)["contracts"]
    assert [(c["version"], c["arrivals"]) for c in listed] == [(1, [DAYS[0], DAYS[2]]), (2, [DAYS[1]])]
    assert [c.split(":")[0] for c in listed[1]["changes"]] == [
        "fields.city",
        "fields.device",
        "fields.price.column",
        "time.unit",
        "user",
    ]


def test_a_changed_file_is_ingested_again_under_the_present_contract(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, DAYS[0], first_log(DAYS[0]))
    write(tmp_path, DAYS[1], first_log(DAYS[1]))
    run(tmp_path, FIRST)
    write(tmp_path, DAYS[1], second_log(DAYS[1]))
    ctx, data = run(tmp_path, SECOND)
    assert published(ctx) == [f"events {DAYS[1]}"]
    assert column(ctx, data, "f_city", DAYS[1]) == [None, "Bern", "Bern"] * 4
    assert column(ctx, data, "f_device", DAYS[0]) == ["desk", "phone"] * 6


def test_a_new_field_that_is_nowhere_in_the_new_arrivals_is_named(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, DAYS[0], first_log(DAYS[0]))
    run(tmp_path, FIRST)
    write(tmp_path, DAYS[1], first_log(DAYS[1]))
    misspelt = {**FIRST, "fields": [{"name": "price", "kind": "numeric", "column": "prise"}, FIRST["fields"][1]]}
    with pytest.raises(DataRefused, match=r"price \(column 'prise'\)"):
        run(tmp_path, misspelt)


CHANGED: dict[str, Any] = {
    **FIRST,
    "label": {"column": "stars", "at_least": 2},
    "fields": [{"name": "price", "kind": "categorical"}, FIRST["fields"][1]],
}


def test_an_incompatible_contract_is_refused_and_rebuilt(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in DAYS[:2]:
        write(tmp_path, day, first_log(day))
    before, old = run(tmp_path, FIRST, until="samples")
    versions = {t: before.lake.version(t) for t in ("events", "samples", "runs")}
    monkeypatch.setattr(Context, "spark", lambda _: pytest.fail("refused before Spark is started"))
    with pytest.raises(ContractChanged) as caught:
        run(tmp_path, CHANGED)
    monkeypatch.undo()
    words = str(caught.value)
    assert caught.value.exit_code == 2
    assert f"arrival {DAYS[0]}, ingested under its version 1" in words
    assert "label.at_least: 4.0 became 2.0" in words
    assert 'fields.price.kind: "numeric" became "categorical"' in words
    assert "logs2rec run --rebuild" in words
    assert {t: before.lake.version(t) for t in versions} == versions

    after, data = run(tmp_path, CHANGED, until="samples", rebuild=True)
    assert published(after)[:2] == [f"events {d}" for d in DAYS[:2]]
    for day in DAYS[:2]:
        assert column(after, data, "f_price", day) == [str(n) for n in range(12)]
        assert column(after, data, "label", day) == [int(n % 5 >= 1) for n in range(12)]
        assert column(before, old, "f_price", day) == [float(n) for n in range(12)]  # as pinned
        assert column(before, old, "label", day) == [int(n % 5 >= 3) for n in range(12)]
    kinds = after.lake.read("fields", data.versions["fields"], {"as_of": data.day}).sort_by("position")["kind"]
    assert kinds.to_pylist() == ["categorical"] * 4
    assert before.lake.read("samples", old.versions["samples"], {"as_of": old.day}).num_rows == 24
    plain, _ = run(tmp_path, CHANGED, until="samples")
    assert published(plain) == []

    # Back under the first contract its arrivals are published still, but a new one does not fit the table.
    back, again = run(tmp_path, FIRST)
    assert (published(back), again.versions["events"]) == ([], old.versions["events"])
    write(tmp_path, DAYS[2], first_log(DAYS[2]))
    with pytest.raises(SchemaChanged, match=r"(?s)f_price is string, not double.*--rebuild"):
        run(tmp_path, FIRST)


def test_another_log_or_other_arrivals_need_another_workspace(spark: SparkSession, tmp_path: Path) -> None:
    write(tmp_path, DAYS[0], first_log(DAYS[0]))
    run(tmp_path, FIRST)
    with pytest.raises(ContractChanged, match=r"another log; .*\n.*use a new workspace") as caught:
        run(tmp_path, {**FIRST, "name": "other"})
    assert "--rebuild" not in str(caught.value)


def test_a_rebuild_needs_every_raw_file(spark: SparkSession, tmp_path: Path) -> None:
    for day in DAYS[:2]:
        write(tmp_path, day, first_log(day))
    run(tmp_path, FIRST)
    (tmp_path / "raw" / "log" / f"{DAYS[0]}.jsonl").unlink()
    with pytest.raises(DataRefused, match=f"arrival {DAYS[0]} .* because of --rebuild, but its raw files are gone"):
        run(tmp_path, FIRST, rebuild=True)
    assert published(run(tmp_path, FIRST)[0]) == []


def test_a_rebuild_that_died_between_two_arrivals(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next plain run ends what it began, and leaves what a new workspace would have."""
    for day in DAYS:
        write(tmp_path, day, first_log(day))
    run(tmp_path, FIRST)
    whole = Ledger.publish

    def dying(self: Ledger, **row: Any) -> Any:
        if row["unit"] == "events" and row["date"] == DAYS[1]:
            raise KeyboardInterrupt
        return whole(self, **row)

    monkeypatch.setattr(Ledger, "publish", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, CHANGED, rebuild=True)
    monkeypatch.undo()
    ctx, data = run(tmp_path, CHANGED)
    assert published(ctx) == [f"events {d}" for d in DAYS[1:]]
    fresh, expected = run(tmp_path, CHANGED, workspace="fresh")
    for table in ("events", "quarantine", "ingested_files"):
        ours, theirs = (
            sorted(map(repr, c.lake.read(table, d.versions[table]).to_pylist()))
            for c, d in ((ctx, data), (fresh, expected))
        )
        assert ours == theirs, table


@pytest.mark.slow
def test_each_rebuild_is_made_and_seen_by_what_follows(spark: SparkSession, tmp_path: Path) -> None:
    for day in DAYS[:2]:
        write(tmp_path, day, first_log(day))
    _, first = run(tmp_path, FIRST, until="samples")
    seen = {first.versions["events"]}
    for _ in range(2):
        ctx, data = run(tmp_path, FIRST, until="samples", rebuild=True)
        assert published(ctx)[:2] == [f"events {d}" for d in DAYS[:2]]
        assert data.versions["events"] not in seen
        seen.add(data.versions["events"])
        row = next(r for r in reversed(ctx.ledger.rows()) if r.unit == "samples")
        assert row.inputs["events"] == data.versions["events"]
    only, _ = run(tmp_path, FIRST, until="samples", rebuild=True, only="samples")
    assert published(only) == [f"samples {DAYS[1]}"]
    newest = only.ledger.rows()[-1]
    plain, data = run(tmp_path, FIRST, until="samples")
    assert (published(plain), data.versions["samples"]) == ([], newest.outputs["samples"])
