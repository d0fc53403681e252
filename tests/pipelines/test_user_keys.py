"""Personal user ids through the whole data side: no table, log entry or message holds one, or the key."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pyspark.sql import SparkSession

from featurize.pseudonyms import UserKeys
from featurize.simulate import simulate
from featurize.user_keys import KEY_ID
from infra.errors import UsageError
from pipelines.context import Context
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from pipelines.user_keys import events_config
from tests.pipelines.commands import RECIPES, small_recipe

DAYS = [f"2026-01-0{d}" for d in range(1, 6)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LOGS2REC_USER_KEY", raising=False)
    simulate(tmp_path / "raw", users=40, items=25, days=5, seed=9)
    contract = yaml.safe_load((RECIPES / "contracts" / "simulator.yaml").read_text())
    (tmp_path / "contract.yaml").write_text(yaml.safe_dump({**contract, "personal": True, "event_id": None}))
    return tmp_path


def run(folder: Path, last: str, until: str | None = None) -> Context:
    recipe = small_recipe(folder, contract="contract.yaml")
    with Context(*open_recipe(recipe), Progress(1), last=last) as ctx:
        run_data(ctx, until=until)
    return ctx


def texts(value: Any) -> set[str]:
    """Every text in a value, however deep."""
    if isinstance(value, dict):
        return set().union(*(texts(v) for v in value.values()), *(texts(k) for k in value))
    if isinstance(value, list):
        return set().union(*map(texts, value))
    return {value} if isinstance(value, str) else set()


def logged_users(raw: Path) -> set[str]:
    """The user ids of the log and of the side file."""
    data = [(raw / "users.jsonl").read_bytes()]
    for path in raw.glob("events/*/*"):
        data.append(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    return {u.decode() for u in re.findall(rb'"user_id": ?"([^"]+)"', b"\n".join(data))}


@pytest.mark.slow
def test_no_user_id_and_no_key_is_left_anywhere(
    spark: SparkSession, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ctx = run(folder, DAYS[4])
    key_file = folder / "workspace" / "keys" / "user.key"
    keys = UserKeys((key_file.read_bytes().strip(),))
    shown = capsys.readouterr().err.replace("\n", "")
    assert f"made the user key {keys.key_id} in" in shown

    users = sorted(logged_users(folder / "raw"))
    assert len(users) >= 40
    pseudonyms = {keys.pseudonym(u) for u in users}
    tables = [p for p in (folder / "workspace" / "lake").rglob("*.parquet") if "_delta_log" not in p.parts]
    assert len({p.relative_to(folder / "workspace" / "lake").parts[0] for p in tables}) >= 8
    for path in tables:
        found = set().union(*(texts(row) for row in pq.ParquetFile(path).read().to_pylist()))
        assert not found & set(users), path
        assert not any(f'"{u}"' in text or f"'{u}'" in text for u in users for text in found), path
    secret = key_file.read_text().strip()
    for path in (folder / "workspace").rglob("*"):
        if path.is_file() and path != key_file:
            content = path.read_bytes()
            assert secret.encode() not in content, path
            assert path.suffix != ".json" or not any(f'"{u}"'.encode() in content for u in users), path
    assert secret not in shown

    version = ctx.lake.version("events")
    assert version is not None
    events = ctx.lake.read("events", version).to_pylist()
    assert {e["user"] for e in events} <= pseudonyms
    assert {r["raw"] for r in ctx.lake.read("quarantine", ctx.lake.version("quarantine") or 0).to_pylist()} == {""}
    sides = ctx.lake.read("user_features", ctx.lake.version("user_features") or 0).to_pylist()
    lines = [json.loads(line) for line in (folder / "raw" / "users.jsonl").read_text().splitlines()]
    segments = {keys.pseudonym(line["user_id"]): line.get("segment") for line in lines}
    assert {s["key"]: s["f_segment"] for s in sides} == segments
    for table in ("events", "quarantine", "ingested_files", "user_features", "item_features"):
        newest = ctx.lake.open(table).history(1)[0]
        assert newest[KEY_ID] == keys.key_id, table
    assert ctx.lake.open("events").metadata().configuration[KEY_ID] == keys.key_id


def test_another_key_is_refused_before_any_work(
    spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGS2REC_USER_KEY", "the first key of this log")
    first = run(folder, DAYS[3], until="events")
    assert not (folder / "workspace" / "keys").exists()
    versions = {t: first.lake.version(t) for t in ("events", "user_features", "runs")}
    again = run(folder, DAYS[3], until="events")
    assert {s.status for s in again.steps} == {"skipped"}
    monkeypatch.setenv("LOGS2REC_USER_KEY", "the second key of this log")
    with pytest.raises(UsageError, match="logs2rec rekey"):
        run(folder, DAYS[4])
    monkeypatch.delenv("LOGS2REC_USER_KEY")
    with pytest.raises(UsageError, match="is not at hand: set LOGS2REC_USER_KEY"):
        run(folder, DAYS[4])
    assert {t: first.lake.version(t) for t in versions} == versions
    monkeypatch.setenv("LOGS2REC_USER_KEY", "the first key of this log")
    assert [s.date for s in run(folder, DAYS[4], until="events").steps if s.status == "published"][-1] == DAYS[4]


def test_the_ledger_knows_the_keys_of_an_arrival() -> None:
    """With other keys the same files under the same contract are another output."""
    contract = {"name": "log"}
    chains = [None, UserKeys((b"sixteen bytes of",)), UserKeys((b"sixteen bytes of", b"another key, 18 b."))]
    configs = [events_config(contract, keys) for keys in chains]
    assert len({json.dumps(c) for c in configs}) == 3
    assert "sixteen" not in json.dumps(configs)
