"""A new user key for everything that was made under the old one: what changes, what stays, and dying on the way."""

from __future__ import annotations

import hmac
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

import featurize.rekey
import pipelines.rekey
from featurize.simulate import simulate
from featurize.user_keys import KEY_ID, stored_key_id
from infra.errors import AuditError, UsageError
from infra.lake import Lake
from infra.ledger import Ledger
from pipelines.context import Context
from pipelines.data_stages import run_data
from pipelines.maintenance import vacuum
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from pipelines.rekey import rekey, show
from tests.pipelines.commands import RECIPES, small_recipe

pytestmark = pytest.mark.slow  # every test runs the data stages of a log of its own

DAYS = [f"2026-01-0{d}" for d in range(1, 7)]
OLD, NEW = "the first key of this log", "the second key of this log"
USERS: Mapping[str, str] = {
    "events": "user",
    "user_features": "key",
    "field_values": "key",
    "sequences": "user",
    "samples": "user",
}
Rows = list[dict[str, Any]]


def again(pseudonym: str) -> str:
    return hmac.new(NEW.encode(), pseudonym.encode(), "sha256").hexdigest()[:32]


def place(folder: Path, raw: Path, *, event_id: str | None = "event_id") -> Path:
    """A workspace over a raw log that it links to; its contract calls the users personal."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw").symlink_to(raw)
    contract = yaml.safe_load((RECIPES / "contracts" / "simulator.yaml").read_text())
    (folder / "contract.yaml").write_text(yaml.safe_dump({**contract, "personal": True, "event_id": event_id}))
    return folder


def give(folder: Path, *keys: str) -> None:
    (folder / "key").write_text("".join(f"{key}\n" for key in keys))
    (folder / "key").chmod(0o600)


def context(folder: Path, last: str | None = None) -> Context:
    recipe = small_recipe(folder, contract="contract.yaml", pseudonyms={"key_file": str(folder / "key")})
    return Context(*open_recipe(recipe), Progress(1), last=last)


def run(folder: Path, last: str, until: str | None = None) -> tuple[dict[str, Rows], dict[str, str]]:
    """The tables that a run stands on, and what became of each unit on its last date."""
    with context(folder, last) as ctx:
        data = run_data(ctx, until=until)
    tables = {t: ctx.lake.read(t, v).to_pylist() for t, v in data.versions.items()}
    return tables, {s.unit: s.status for s in ctx.steps}


def change(folder: Path) -> dict[str, Any]:
    with context(folder) as ctx:
        return rekey(ctx)


def published(lake: Lake) -> dict[str, Rows]:
    """Rows of the newest published version of every table."""
    versions = {t: v for r in Ledger(lake).rows() for t, v in r.outputs.items() if isinstance(v, int)}
    return {t: lake.read(t, v).to_pylist() for t, v in versions.items()}


def translated(tables: Mapping[str, Rows], *hashed: str) -> dict[str, Rows]:
    """What the tables must be under the new key; `hashed` hold event ids that were made with keys too."""
    out = {}
    for table, rows in tables.items():
        out[table] = [dict(r) for r in rows]
        for row in out[table]:
            if table in USERS and row.get("field", "user") == "user":
                row[USERS[table]] = again(row[USERS[table]])
            if table in hashed:
                row["event_id"] = again(row["event_id"])
    return out


def counted(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    return Counter(repr(sorted(r.items())) for r in rows)


def same(left: Mapping[str, Rows], right: Mapping[str, Rows], tables: Sequence[str]) -> None:
    for table in tables:
        assert left[table], table
        assert counted(left[table]) == counted(right[table]), table


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "raw"
    simulate(folder, users=40, items=25, days=6, seed=9)
    return folder


@pytest.fixture(scope="module")
def made(spark: SparkSession, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two run dates under the old key."""
    folder = place(tmp_path_factory.mktemp("made"), raw)
    give(folder, OLD)
    run(folder, DAYS[3])
    run(folder, DAYS[4])
    return folder


@pytest.fixture
def folder(made: Path, raw: Path, tmp_path: Path) -> Path:
    """A copy of it, to whose keys the new one was added."""
    target = place(tmp_path / "copy", raw)
    shutil.copytree(made / "workspace", target / "workspace")
    give(target, OLD, NEW)
    return target


def test_every_pseudonym_and_nothing_else_changes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Lake(folder / "workspace" / "lake")
    before = published(lake)
    assert {"histories", "first_seen", *USERS} <= set(before)
    assert {r["as_of"] for r in before["samples"]} == {r["as_of"] for r in before["sequences"]} == {*DAYS[3:5]}
    found = change(folder)
    after, expected = published(lake), translated(before)
    assert not {"histories", "first_seen"} & set(after)  # the next run makes them
    same(after, expected, [*USERS, "items", "item_features", "fields", "missing_rates", "quarantine"])
    old = {e["user"] for e in before["events"]}
    for table in USERS:
        assert found["tables"][table]["rows"] == len(before[table])
        newest = lake.read(table, lake.version(table) or 0).to_pylist()
        assert counted(newest) == counted(expected[table])  # also what no row of the ledger names
        assert not old & {r[USERS[table]] for r in newest}
    for table in ("histories", "first_seen"):
        assert lake.read(table, lake.version(table) or 0).num_rows == 0
    assert stored_key_id(lake) == found["to"] != found["from"]
    assert all(lake.open(t).history(1)[0][KEY_ID] == found["to"] for t in (*USERS, "histories") if t != "events")
    show(found)
    assert "`logs2rec vacuum --apply` removes" in capsys.readouterr().out
    assert (found["pinned"], found["models"]) == ({}, [])

    versions = {t: lake.version(t) for t in (*USERS, "runs")}
    second = change(folder)
    assert second["nothing_to_do"]
    assert {t: lake.version(t) for t in versions} == versions
    with context(folder) as ctx:
        vacuum(ctx, apply=True, older_than_hours=0, keep_days=0)
    for path in (folder / "workspace" / "lake").rglob("*.parquet"):
        assert path.parts[-2] == "_delta_log" or not any(u.encode() in path.read_bytes() for u in sorted(old)[:3]), path
    same(published(lake), expected, list(USERS))


def test_the_next_run_goes_on_as_if_the_keys_had_been_so_from_the_start(
    folder: Path, raw: Path, tmp_path: Path
) -> None:
    change(folder)
    _, steps = run(folder, DAYS[4])
    assert {u for u, status in steps.items() if status == "published"} == {"data_report", "histories", "sequences"}
    assert set(steps) == {"events", "events:sides", "data_report", "vocabularies", "histories", "sequences", "samples"}
    found, steps = run(folder, DAYS[5])
    assert {s for u, s in steps.items() if u != "events"} == {"published"}

    fresh = place(tmp_path / "fresh", raw)
    give(fresh, OLD, NEW)
    expected, _ = run(fresh, DAYS[5])
    found |= {t: [r for r in found[t] if r["as_of"] == DAYS[5]] for t in ("sequences", "samples")}
    found |= {t: [r for r in found[t] if r["arrival"] == DAYS[5]] for t in ("user_features", "item_features")}
    same(found, expected, ["events", "items", "user_features", "item_features", "sequences", "quarantine"])
    # A day's new users have their indices in the order of their pseudonyms: under other keys another order.
    unordered = {
        t: [{**r, "index": r["index"] if r["field"] != "user" else 0} for r in tables["field_values"]]
        for t, tables in (("found", found), ("expected", expected))
    }
    assert counted(unordered["found"]) == counted(unordered["expected"])
    plain = {}
    for name, tables in (("found", found), ("expected", expected)):
        users = {r["index"]: r["key"] for r in tables["field_values"] if r["field"] == "user"}
        assert len(users) == len(set(users.values())) > 30
        assert all(users.get(r["f_user"], r["user"]) == r["user"] for r in tables["samples"])
        plain[name] = [{**r, "f_user": r["f_user"] > 1} for r in tables["samples"]]
    assert counted(plain["found"]) == counted(plain["expected"])


def test_what_a_model_was_trained_on_stays_and_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here the ledger's rows alone make the model."""
    lake, ledger = Lake(folder / "workspace" / "lake"), Ledger(Lake(folder / "workspace" / "lake"))
    before = lake.version("sequences") or 0
    plain: dict[str, Any] = {"date": DAYS[4], "config": {}, "seconds": 0.0, "run_id": "r"}
    trained = ledger.publish(
        unit="train:x", inputs={"sequences": before}, outputs={"artifact": "a"}, report={}, **plain
    )
    report = {"name": "small.retrieval", "data": {"versions": {"events": 1}}}
    ledger.publish(unit="register:x", inputs={"of": trained.key}, outputs={"version": "7"}, report=report, **plain)
    rows = lake.read("sequences", before).to_pylist()
    found = change(folder)
    assert found["pinned"] == {"events": [1], "sequences": [before]}
    assert found["models"] == ["small.retrieval version 7"]
    show(found)
    assert f"sequences {before}" in capsys.readouterr().out
    with context(folder) as ctx:
        vacuum(ctx, apply=True, older_than_hours=0, keep_days=0)
    assert counted(lake.read("sequences", before).to_pylist()) == counted(rows)


def test_a_contract_without_a_file_of_the_users(spark: SparkSession, raw: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "items", raw)
    contract = yaml.safe_load((folder / "contract.yaml").read_text())
    contract["fields"] = [f for f in contract["fields"] if f.get("source") != "users"]
    (folder / "contract.yaml").write_text(yaml.safe_dump({**contract, "users": None}))
    give(folder, OLD)
    run(folder, DAYS[1], until="vocabularies")
    give(folder, OLD, NEW)
    change(folder)
    assert set(run(folder, DAYS[1], until="vocabularies")[1].values()) == {"skipped"}


def test_gone_raw_files_are_not_asked_for(folder: Path, raw: Path, tmp_path: Path) -> None:
    (folder / "raw").unlink()
    shutil.copytree(raw, folder / "raw")
    for day in DAYS[:4]:
        shutil.rmtree(folder / "raw" / "events" / day)
    change(folder)
    found, steps = run(folder, DAYS[5], until="events")
    assert {r["arrival"] for r in found["events"]} == {*DAYS}
    assert steps["events"] == "published"


class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal."""


def dies(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, *, after: bool) -> None:
    """The call-th call of a function is the last thing that the command does, or is not done any more."""
    real, calls = getattr(module, name), iter(range(1, 100))

    def last(*arguments: Any, **named: Any) -> Any:
        if next(calls) != call:
            return real(*arguments, **named)
        if after:
            real(*arguments, **named)
        raise Killed

    monkeypatch.setattr(module, name, last)


POINTS: Sequence[tuple[Any, str, int, bool]] = [
    (pipelines.rekey, "claim", 1, True),  # marked, nothing written
    (featurize.rekey, "write_file", 3, True),  # files without a commit
    (featurize.rekey, "commit", 1, True),  # events alone
    (featurize.rekey, "commit", 3, True),  # vocabularies, which later commits do not put back
    (Ledger, "replace", 1, False),  # all tables, none published
    (Ledger, "replace", 1, True),  # published, the key id not yet changed
]


@pytest.mark.parametrize(("module", "name", "call", "after"), POINTS)
def test_killed_on_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int, after: bool
) -> None:
    lake = Lake(folder / "workspace" / "lake")
    before = published(lake)
    with monkeypatch.context() as patch:
        dies(patch, module, name, call, after=after)
        with pytest.raises(Killed):
            change(folder)
    switched = module is Ledger and after
    same(published(lake), translated(before) if switched else before, list(USERS))
    for keys in ((OLD,), (OLD, NEW)):
        give(folder, *keys)
        with pytest.raises(UsageError, match="a `logs2rec rekey` did not end; give its keys and run it again"):
            run(folder, DAYS[5])
    rows = len(Ledger(lake).everything())
    assert not change(folder)["nothing_to_do"]
    assert (len(Ledger(lake).everything()) == rows) == switched
    same(published(lake), translated(before), list(USERS))
    assert change(folder)["nothing_to_do"]
    _, steps = run(folder, DAYS[4], until="vocabularies")
    assert set(steps.values()) == {"skipped"}


def test_a_third_key_may_come_before_the_second_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(folder / "workspace" / "lake")
    before = published(lake)["events"]
    with monkeypatch.context() as patch:
        dies(patch, Ledger, "replace", 1, after=True)
        with pytest.raises(Killed):
            change(folder)
    give(folder, OLD, NEW, "the third key of this log")
    change(folder)
    third = {
        hmac.new(b"the third key of this log", again(e["user"]).encode(), "sha256").hexdigest()[:32] for e in before
    }
    assert {e["user"] for e in published(lake)["events"]} == third
    assert run(folder, DAYS[4], until="events")[1]["events"] == "skipped"


def test_event_ids_made_from_personal_ids_change_too(spark: SparkSession, raw: Path, tmp_path: Path) -> None:
    """Copies of old events in new files are still known, and samples, which go by the event ids, are made again."""
    folder = place(tmp_path / "hashed", raw, event_id=None)
    give(folder, OLD)
    run(folder, DAYS[4], until="samples")
    lake = Lake(folder / "workspace" / "lake")
    before = published(lake)
    give(folder, OLD, NEW)
    change(folder)
    same(published(lake), translated(before, "events", "samples"), [t for t in USERS if t != "sequences"])
    assert run(folder, DAYS[4], until="samples")[1]["samples"] == "published"
    found, _ = run(folder, DAYS[5], until="events")
    fresh = place(tmp_path / "fresh", raw, event_id=None)
    give(fresh, OLD, NEW)
    expected, _ = run(fresh, DAYS[5], until="events")
    same(found, expected, ["events", "ingested_files"])


class TestRefused:
    @pytest.fixture
    def unchanged(self, folder: Path) -> Iterator[Path]:
        lake = Lake(folder / "workspace" / "lake")
        versions = {t: lake.version(t) for t in (*USERS, "runs")}
        yield folder
        assert {t: lake.version(t) for t in versions} == versions

    @pytest.mark.parametrize("keys", [(NEW,), (NEW, OLD), ("some other key altogether", NEW)])
    def test_other_keys(self, unchanged: Path, keys: tuple[str, ...]) -> None:
        give(unchanged, *keys)
        with pytest.raises(
            UsageError, match=r"no first part of the chain given; give all their keys, oldest first"
        ) as e:
            change(unchanged)
        assert not any(key in str(e.value) for key in (OLD, NEW))

    def test_the_same_key_is_nothing_to_do(self, unchanged: Path, capsys: pytest.CaptureFixture[str]) -> None:
        give(unchanged, OLD)
        found = change(unchanged)
        assert found["nothing_to_do"]
        show(found)
        assert capsys.readouterr().out.startswith("Nothing to do:")

    def test_ids_that_are_not_personal(self, unchanged: Path) -> None:
        contract = yaml.safe_load((unchanged / "contract.yaml").read_text())
        (unchanged / "contract.yaml").write_text(yaml.safe_dump({**contract, "personal": False}))
        with pytest.raises(UsageError, match="personal: false"):
            change(unchanged)

    def test_no_key(self, unchanged: Path) -> None:
        recipe = small_recipe(unchanged, contract="contract.yaml")
        with (
            Context(*open_recipe(recipe), Progress(1)) as ctx,
            pytest.raises(UsageError, match="no user key is at hand"),
        ):
            rekey(ctx)

    def test_an_arrival_that_does_not_hold(self, unchanged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pipelines.known_arrivals.KnownArrivals.find", lambda *_: None)
        with pytest.raises(UsageError, match=f"arrival {DAYS[0]} is not published"):
            change(unchanged)

    def test_a_run_that_looked_before_the_keys_changed(self, folder: Path) -> None:
        """It took the lock only afterwards."""
        from pipelines.user_keys import keys_of

        give(folder, OLD)
        with context(folder) as late:
            keys_of(late)
            give(folder, OLD, NEW)
            change(folder)
            with pytest.raises(UsageError, match="logs2rec rekey"):
                late.hold()


def test_what_is_no_pseudonym_is_not_made_into_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurize.rekey, "_PSEUDONYM", "^[0-9a-f]{31}$")
    with pytest.raises(AuditError, match="holds values that are no pseudonyms"):
        change(folder)
