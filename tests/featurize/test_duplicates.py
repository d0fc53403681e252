"""featurize/duplicates.py on real Spark: what contradicts an event, also one of an earlier arrival or contract.

How copies on other days chain is tested in test_ingest.py, against a reader that goes row by row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from featurize.contract import Contract
from featurize.ingest import Ingested, ingest
from featurize.pseudonyms import UserKeys
from featurize.rows import parse_split
from featurize.sources import list_files
from featurize.streams import Split
from infra.errors import AuditError
from infra.lake import Lake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa
    from pyspark.sql import SparkSession

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
NOON = 1704110400  # of the first day, UTC
KEYS = UserKeys((b"a key of the tests, 32 bytes long",))
PRICE = {"name": "price", "kind": "numeric"}
TAGS = {"name": "tags", "kind": "multi"}


def contract(**over: Any) -> Contract:
    base = {"name": "log", "personal": False, "user": "u", "item": "i", "time": {"column": "t", "unit": "s"}}
    base |= {"source": {"path": "log/{date}", "format": "json"}, "type": {"column": "e"}, "event_id": "id"}
    base |= {"label": {"column": "r", "at_least": 3}, "fields": [PRICE, TAGS], "rules": {"max_bad_share": 1}}
    return Contract.model_validate({**base, **over})


GOOD = {"u": "ann", "i": "x", "t": NOON, "e": "click", "r": 5, "price": 1.5, "tags": ["a"], "id": "e1"}


def log(root: Path, day: str, *rows: dict[str, Any], name: str = "part") -> None:
    path = root / "log" / day / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not ...}) + "\n" for row in rows))


def run(
    spark: SparkSession,
    lake: Lake,
    made: Contract,
    root: Path,
    days: Sequence[str] = DAYS,
    prior: Mapping[str, int] | None = None,
    keys: UserKeys | None = None,
) -> Ingested:
    files = [f for f in list_files(root, made.source) if f.arrival in days]
    kept = [d for d in DAYS if d < min(days)]
    return ingest(spark, lake, made, root, files, prior, {}, kept, keys)


def counts(result: Ingested, day: str) -> tuple[int, int, int]:
    account = result.accounts[day]
    assert account["rows"] == account["events"] + account["duplicates"] + account["quarantined"]
    return account["events"], account["duplicates"], account["quarantined"]


def details(lake: Lake, result: Ingested) -> list[str]:
    rows = lake.read("quarantine", result.versions["quarantine"]).to_pylist()
    assert {r["reason"] for r in rows} <= {"id_conflict"}
    return [r["detail"] for r in sorted(rows, key=lambda r: (r["arrival"], r["file"], r["position"]))]


CHANGES = [
    ({"u": "bob"}, "user"),
    ({"i": "y"}, "item"),
    ({"t": NOON + 1}, "ts"),
    ({"e": "view"}, "type"),
    ({"r": 1}, "label"),
    ({"price": None}, "f_price"),
    ({"price": 1.5000001}, "f_price"),
    ({"tags": ["a", "b"]}, "f_tags"),
    ({"tags": []}, "f_tags"),
    ({"i": "y", "price": ...}, "item, f_price"),
    ({"t": NOON - 86400}, "the day"),
]
COPIES = [{}, {"r": 4}, {"t": f"{NOON}.0"}, {"note": "not read"}, {"price": "1.5"}, {"tags": ["a", None]}]
"""Written otherwise, but with the same typed columns."""


def test_each_column_that_differs_is_a_conflict_and_is_named(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    """In one batch: an event per change, and what repeats it; a conflict's own copy is a conflict too."""
    rows = []
    for n, (change, _) in enumerate(CHANGES):
        rows += [{**GOOD, "id": n}, {**GOOD, "id": n, **change}, {**GOOD, "id": n}, {**GOOD, "id": n, **change}]
    rows += [{**GOOD, "id": "c", **change} for change in [{}, *COPIES]]
    log(tmp_path, DAYS[0], *rows)
    result = run(spark, lake, contract(), tmp_path)
    assert counts(result, DAYS[0]) == (len(CHANGES) + 1, len(CHANGES) + len(COPIES), 2 * len(CHANGES))
    assert result.reasons == {DAYS[0]: {"id_conflict": 2 * len(CHANGES)}}
    offsets = [0]
    for line in (tmp_path / "log" / DAYS[0] / "part").read_bytes().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    place = f"arrival {DAYS[0]}, log/{DAYS[0]}/part, position "
    assert details(lake, result) == [
        f"differs in {names} from the event of the same id: {place}{offsets[4 * n]}"
        for n, (_, names) in enumerate(CHANGES)
        for _ in range(2)
    ]
    events = lake.read("events", result.versions["events"]).to_pylist()
    assert {(e["user"], e["item"], e["ts"].timestamp(), e["f_price"]) for e in events} == {("ann", "x", NOON, 1.5)}
    raw = lake.read("quarantine", result.versions["quarantine"]).to_pylist()[0]["raw"]
    assert json.loads(raw)["user"] == "bob"


def test_events_of_earlier_arrivals_are_contradicted_too(spark: SparkSession, tmp_path: Path) -> None:
    """Day by day as all at once."""
    log(tmp_path, DAYS[0], *({**GOOD, "id": n} for n in range(len(CHANGES))), {**GOOD, "id": "c"})
    within = [{**GOOD, "id": "new"}, {**GOOD, "id": "new", "u": "bob"}]
    log(tmp_path, DAYS[1], *({**GOOD, "id": n, **change} for n, (change, _) in enumerate(CHANGES)), *within)
    log(tmp_path, DAYS[2], *({**GOOD, "id": "c", **change} for change in COPIES), {**GOOD, "id": 0, "u": "bob"})
    once, daily = Lake(tmp_path / "once"), Lake(tmp_path / "daily")
    whole = run(spark, once, contract(), tmp_path)
    prior: Mapping[str, int] | None = None
    for day in DAYS:
        result = run(spark, daily, contract(), tmp_path, [day], prior)
        prior = result.versions
        assert result.accounts[day] == whole.accounts[day]
    assert counts(whole, DAYS[0]) == (len(CHANGES) + 1, 0, 0)
    assert counts(whole, DAYS[1]) == (1, 0, len(CHANGES) + 1)
    assert counts(whole, DAYS[2]) == (0, len(COPIES), 1)
    assert details(once, whole) == details(daily, result)
    named = [d.removeprefix("differs in ").split(" from")[0] for d in details(once, whole)]
    assert named == [*(names for _, names in CHANGES), "user", "user"]


def test_a_key_of_the_contract_identifies_too(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    made = contract(event_id=None, key=["session", "n"])
    rows = [{**GOOD, "session": "s", "n": n} for n in range(3)]
    log(tmp_path, DAYS[0], *rows, rows[0], {**rows[1], "i": "y"}, {**rows[2], "n": 3})
    result = run(spark, lake, made, tmp_path)
    assert counts(result, DAYS[0]) == (4, 1, 1)
    assert details(lake, result)[0].startswith("differs in item from the event")


def test_without_id_and_key_labels_and_fields_still_decide(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    made = contract(event_id=None)
    log(tmp_path, DAYS[0], GOOD, {**GOOD, "id": "other"}, {**GOOD, "r": 1}, {**GOOD, "u": "bob"})
    assert counts(run(spark, lake, made, tmp_path), DAYS[0]) == (2, 1, 1)


def test_an_arrival_older_than_a_field_says_nothing_of_it(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    """Copies that bring a field which the contract got later are copies; of what both know they may still differ."""
    log(tmp_path, DAYS[0], GOOD, {**GOOD, "id": "e2"}, {**GOOD, "id": "e3", "price": None})
    old = run(spark, lake, contract(fields=[PRICE]), tmp_path, DAYS[:1])
    log(tmp_path, DAYS[1], GOOD, {**GOOD, "id": "e2", "price": 2}, {**GOOD, "id": "e3"}, {**GOOD, "id": "e4"})
    log(tmp_path, DAYS[2], GOOD, {**GOOD, "id": "e4", "tags": None}, {**GOOD, "id": "e4"})
    first = run(spark, lake, contract(), tmp_path, DAYS[1:2], old.versions)
    assert counts(first, DAYS[1]) == (1, 1, 2)
    assert [d.split(" from")[0] for d in details(lake, first)] == ["differs in f_price"] * 2
    second = run(spark, lake, contract(), tmp_path, DAYS[2:], first.versions)
    assert counts(second, DAYS[2]) == (0, 2, 1)
    assert details(lake, second)[-1].startswith("differs in f_tags from")


def test_of_personal_ids_nothing_is_shown(spark: SparkSession, tmp_path: Path, lake: Lake) -> None:
    made = contract(personal=True, event_id=None, key=["u", "n"])
    rows = [{**GOOD, "u": "ann-o-nym", "n": n} for n in range(2)]
    log(
        tmp_path,
        DAYS[0],
        rows[0],
        rows[0],
        {**rows[1]},
        {**rows[1], "i": "y"},
        {**GOOD, "u": "ann-o-nym", "t": "ann-o-nym"},
    )
    result = run(spark, lake, made, tmp_path, keys=KEYS)
    assert counts(result, DAYS[0]) == (2, 1, 2)
    for table in ("events", "quarantine"):
        for row in lake.read(table, result.versions[table]).to_pylist():
            assert "ann-o-nym" not in repr(row)
            assert not row.get("raw")
    events = lake.read("events", result.versions["events"]).to_pylist()
    assert {e["user"] for e in events} == {KEYS.pseudonym("ann-o-nym")}
    assert {e["event_id"] for e in events} == {KEYS.pseudonym(json.dumps(["ann-o-nym", str(n)])) for n in range(2)}


def test_a_task_that_fails_in_the_middle_changes_no_count(
    spark: SparkSession, tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file's task yields rows, fails once, and is tried again by Spark; an attempt's rows count once."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def flaky(plan: Any, split: Split) -> Iterator[pa.RecordBatch]:
        mark = marks / Path(split.file).name
        for number, batch in enumerate(parse_split(plan, split)):
            if number == 1 and not mark.exists():
                mark.touch()
                raise OSError("the disk hiccups")
            yield batch

    monkeypatch.setattr("featurize.ingest.parse_split", flaky)
    rows = 9000  # more than one batch of 8192
    for part in range(2):
        good = [{**GOOD, "id": f"{part}-{n % (rows - 100)}"} for n in range(rows)]
        log(tmp_path, DAYS[0], *good, {**GOOD, "u": None}, name=f"part-{part}")
    result = run(spark, lake, contract(), tmp_path)
    assert sorted(m.name for m in marks.iterdir()) == ["part-0", "part-1"]
    assert counts(result, DAYS[0]) == (2 * (rows - 100), 200, 2)
    assert lake.dataset("events", result.versions["events"]).count_rows() == 2 * (rows - 100)
    files = lake.read("ingested_files", result.versions["ingested_files"]).to_pylist()
    assert [(f["rows"], f["events"], f["duplicates"], f["quarantined"]) for f in files] == [
        (rows + 1, rows - 100, 100, 1)
    ] * 2


def test_tasks_that_count_wrong_publish_nothing(
    spark: SparkSession, tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses_one(plan: Any, split: Split) -> Iterator[pa.RecordBatch]:
        for batch in parse_split(plan, split):
            yield batch.slice(1)

    monkeypatch.setattr("featurize.ingest.parse_split", loses_one)
    log(tmp_path, DAYS[0], GOOD, {**GOOD, "id": "e2"})
    with pytest.raises(AuditError, match="do not add up; nothing was published"):
        run(spark, lake, contract(), tmp_path)
    assert not lake.exists("events")
