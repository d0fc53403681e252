"""The whole line through the command line, once: simulate, run, run again, look, promote, query.

The ranking gate asks for more users than there are, so the first run ends with one champion and one
model held back (exit code 4).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import mlflow
import pandas as pd
import polars as pl
import pytest

from infra.errors import EnvironmentProblem
from infra.lake import Lake
from tests.pipelines.commands import Done, logs2rec, small_recipe
from tests.servers import MlflowServer, failing


@dataclass(frozen=True)
class Line:
    """One finished run."""

    folder: Path
    recipe: Path
    truth: dict[str, Any]
    done: Done

    @property
    def lake(self) -> Lake:
        return Lake(self.folder / "workspace" / "lake")

    def stage(self, unit: str) -> dict[str, Any]:
        return next(s for s in self.done.json["stages"] if s["unit"] == unit)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    folder = tmp_path_factory.mktemp("line")
    made = logs2rec("simulate", folder / "raw", "--users", 150, "--items", 60, "--days", 6, "--seed", 3, "--json")
    assert made.code == 0, made.stderr
    recipe = small_recipe(folder)
    return Line(folder, recipe, made.json, logs2rec("run", "--config", recipe, "--json"))


@pytest.fixture
def store(line: Line) -> Iterator[mlflow.MlflowClient]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{line.folder / 'workspace' / 'mlflow.db'}")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_ends_with_a_champion_and_one_model_held(line: Line) -> None:
    assert line.done.code == 4, line.done.stderr
    retrieval, ranking = line.done.json["models"]
    assert (retrieval["name"], retrieval["alias"], retrieval["version"]) == ("small.retrieval", "champion", "1")
    assert (ranking["name"], ranking["alias"], ranking["verdict"]) == ("small.ranking", "challenger", "hold")
    assert any("min_users is 100000" in reason for reason in ranking["reasons"])
    assert "small.ranking" in line.done.stderr
    assert set(retrieval["metrics"]) == {"popularity", "adrec"}
    for name in (
        "history_removed/ndcg_at_20",
        "all_items/hr_at_50",
        "all_items/mrr",
        "catalogue_coverage",
        "category_count",
    ):
        assert retrieval["metrics"]["adrec"][name] >= 0
    assert 0.3 < ranking["metrics"]["asymdiffrec"]["uauc"] < 1


def test_every_stage_reports_versions_rows_and_seconds(line: Line) -> None:
    units = [s["unit"] for s in line.done.json["stages"]]
    assert units == [
        *["events"] * 6,
        "events:sides",
        *["data_report"] * 6,
        "vocabularies",
        "histories",
        "sequences",
        "samples",
        "train:retrieval:popularity",
        "train:retrieval:adrec",
        "train:ranking:asymdiffrec",
        "evaluate:retrieval",
        "evaluate:ranking",
        "register:retrieval",
        "register:ranking",
        "promote:retrieval",
        "promote:ranking",
    ]
    assert all(s["status"] == "published" and s["seconds"] >= 0 for s in line.done.json["stages"])
    assert line.stage("sequences")["report"]["rows"]["train"] > 0
    dated = line.truth["event_dates"]  # a clock ahead dates an event after the run date
    assert line.stage("samples")["rows"]["samples"] == sum(n for day, n in dated.items() if day <= "2026-01-06")
    assert line.stage("samples")["versions"]["samples"] == line.done.json["tables"]["samples"]["version"]
    assert line.done.json["tables"]["events"]["rows"] == line.truth["events"]


def test_the_planted_truth_is_found_exactly(line: Line) -> None:
    accounts = {s["date"]: s["report"] for s in line.done.json["stages"] if s["unit"] == "events"}
    assert set(accounts) == set(line.truth["arrivals"])
    for arrival, planted in line.truth["arrivals"].items():
        found = {k: accounts[arrival][k] for k in planted}
        assert found == planted
    reasons: dict[str, int] = {}
    for account in accounts.values():
        for reason, count in account["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    assert reasons == {r: n for r, n in line.truth["quarantined"].items() if n}
    assert "found exactly" in line.done.stdout


def test_a_second_engine_reads_every_table_at_its_version(line: Line) -> None:
    for table, entry in line.done.json["tables"].items():
        path, version = line.lake.path(table), entry["version"]
        ours = pl.from_arrow(line.lake.read(table, version))
        polars = pl.read_delta(path, version=version)
        assert isinstance(ours, pl.DataFrame)
        assert polars.height == entry["rows"]
        assert sorted(map(repr, polars.select(ours.columns).rows())) == sorted(map(repr, ours.rows())), table
        files = [f.removeprefix("file://") for f in line.lake.files(table, version)]
        if files:
            counted = duckdb.sql(f"select count(*) from read_parquet({files!r}, hive_partitioning = true)").fetchall()
            assert counted == [(entry["rows"],)], table


def test_quarantine_holds_each_refused_row_with_its_place(line: Line) -> None:
    version = line.done.json["tables"]["quarantine"]["version"]
    rows = line.lake.read("quarantine", version).to_pylist()
    assert len(rows) == sum(line.truth["quarantined"].values())
    plain = [r for r in rows if r["file"].endswith(".jsonl") and r["reason"] not in ("empty_line", "id_conflict")]
    assert plain
    for row in plain:
        with open(line.folder / "raw" / row["file"], "rb") as raw:
            raw.seek(row["position"])
            assert raw.readline().decode().rstrip("\n") == row["raw"]


def test_running_again_does_no_work_and_says_so(line: Line, store: mlflow.MlflowClient) -> None:
    versions = {t.name: line.lake.version(t.name) for t in line.lake.root.iterdir()}
    again = logs2rec("run", "--config", line.recipe, "--json")
    assert again.json["nothing_to_do"] is True
    assert "no work was done" in again.stdout
    assert {t.name: line.lake.version(t.name) for t in line.lake.root.iterdir()} == versions
    assert {m["name"]: m["version"] for m in again.json["models"]} == {"small.retrieval": "1", "small.ranking": "1"}
    assert len(store.search_model_versions("name = 'small.retrieval'")) == 1
    assert again.code == line.done.code  # what was held is still held


def test_the_registered_model_answers_in_a_clean_process(line: Line, tmp_path: Path) -> None:
    question = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/small.retrieval@champion")
rows = pd.DataFrame({"history": [["i1", "i2", "never seen"], []]})
print(json.dumps(model.predict(rows, params={"k": 3})["items"].tolist()))
"""
    uri = f"sqlite:///{line.folder / 'workspace' / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", question, uri], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert len(first) == len(second) == 3
    assert not {"i1", "i2"} & set(first)


def test_mlflow_knows_parameters_metrics_and_lineage(line: Line, store: mlflow.MlflowClient) -> None:
    version = store.get_model_version_by_alias("small.retrieval", "champion")
    run = store.get_run(str(version.run_id))
    assert run.data.params["model.width"] == "16"
    model = line.done.json["models"][0]
    assert run.data.metrics["history_removed/ndcg_at_20"] == pytest.approx(
        model["metrics"]["adrec"]["history_removed/ndcg_at_20"]
    )
    assert version.tags["logs2rec.table.sequences"] == str(line.done.json["tables"]["sequences"]["version"])
    artifacts = {f.path for f in store.list_artifacts(str(version.run_id))}
    assert {"report.html", "recipe", "evaluation"} <= artifacts


def test_the_resolved_configuration_lies_beside_every_artifact(line: Line) -> None:
    workspace = line.folder / "workspace"
    for unit in ("train:retrieval:adrec", "train:ranking:asymdiffrec"):
        artifact = workspace / line.stage(unit)["outputs"]["artifact"]
        resolved = json.loads(artifact.with_name(f"{artifact.name}.recipe.json").read_text())
        assert resolved["recipe"]["sequences"]["max_length"] == 20
        assert resolved["contract"]["name"] == "simulator"
    assert (workspace / line.stage("evaluate:retrieval")["outputs"]["folder"] / "recipe.json").is_file()


def test_status_tells_what_is_published(line: Line) -> None:
    found = logs2rec("status", "--config", line.recipe, "--json")
    assert found.code == 0
    rows = {(r["unit"], r["date"]): r for r in found.json["published"]}
    sequences = rows["sequences", "2026-01-06"]
    assert sequences["inputs"]["events"] == line.done.json["tables"]["events"]["version"]
    assert found.json["aliases"]["small.retrieval"]["champion"] == "1"
    assert {p["action"] for p in found.json["promotions"]} >= {"promote", "hold"}


def test_the_report_is_a_page_of_its_own(line: Line) -> None:
    page = Path(line.done.json["report"]).read_text()
    assert "small.retrieval" in page
    assert "popularity" in page
    assert "<script" not in page
    assert page.count("Embedding health: small.retrieval, adrec") == 1
    (drawn,) = [s["report"] for s in line.done.json["stages"] if s["unit"] == "train:retrieval:adrec"]
    assert f'<data value="{drawn["embedding_isotropy"]!r}">' in page


def test_rollback_without_a_predecessor_is_refused(line: Line) -> None:
    refused = logs2rec("rollback", "--config", line.recipe, "--role", "retrieval", "--reason", "trying", "--json")
    assert refused.code == 2
    assert "first champion" in refused.json["error"]


def test_promote_asks_the_gate_again(line: Line, store: mlflow.MlflowClient) -> None:
    """It makes the held model champion, once a person agrees."""
    asked = ["promote", "--config", line.recipe, "--role", "ranking", "--json"]
    assert logs2rec(*asked).code == 4
    policy = ["--set", "ranking.gate.min_users=1", "--set", "ranking.gate.approval=true"]
    waiting = logs2rec(*asked, *policy)
    assert waiting.code == 4
    assert "a person has to agree" in waiting.json["models"][0]["reasons"][-1]
    assert "champion" not in store.get_registered_model("small.ranking").aliases
    refused = logs2rec(*asked, *policy, "--approve", " ")
    assert refused.code == 2
    assert "needs a reason" in refused.json["error"]
    moved = logs2rec(*asked, *policy, "--approve", "looked at the lists")
    assert moved.code == 0, moved.stderr
    assert moved.json["models"][0]["verdict"] == "promote"
    assert store.get_model_version_by_alias("small.ranking", "champion").version == 1
    assert logs2rec("run", "--config", line.recipe).code == 0  # nothing is held any more


def test_an_alias_moved_by_hand_is_seen_and_a_held_version_can_be_forced(
    line: Line, store: mlflow.MlflowClient
) -> None:
    look = ("status", "--config", line.recipe, "--json")
    assert logs2rec(*look).json["moved_by_hand"] == {}
    store.delete_registered_model_alias("small.ranking", "champion")
    found = logs2rec(*look)
    assert found.json["moved_by_hand"] == {"small.ranking": {"champion": None, "recorded": "1"}}
    assert "it was moved by hand" in found.stdout
    forced = logs2rec("promote", "--config", line.recipe, "--role", "ranking", "--force", "the launch", "--json")
    assert forced.code == 0, forced.stderr
    assert forced.json["models"][0]["verdict"] == "hold"
    assert store.get_model_version_by_alias("small.ranking", "champion").version == 1
    after = logs2rec(*look).json
    assert after["moved_by_hand"] == {}
    last = after["promotions"][-1]
    assert last["action"] == "force"
    reasons = json.loads(last["reasons"])
    assert reasons[0] == "forced: the launch"
    assert "somebody moved it by hand" in reasons[-1]


def test_a_champion_is_taken_to_another_registry(line: Line, store: mlflow.MlflowClient, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    take = ("promote", "--config", line.recipe, "--role", "retrieval", "--json", "--to")
    refused = logs2rec(*take, f"sqlite:///{line.folder / 'workspace' / 'mlflow.db'}")
    assert refused.code == 2
    assert "is the registry that the champion is in" in refused.json["error"]
    assert logs2rec(*take, other, "--force", "why not").code == 2
    found = logs2rec(*take, other)
    assert found.code == 0, found.stderr
    assert found.json["models"][0]["verdict"] == "transfer"
    again = logs2rec(*take, other)
    there = mlflow.MlflowClient(tracking_uri=other)
    (version,) = there.search_model_versions("name = 'small.retrieval'")
    assert (again.code, again.json["models"][0]["from_version"]) == (0, "1")
    here = store.get_model_version_by_alias("small.retrieval", "champion")
    assert there.get_registered_model("small.retrieval").aliases == {"challenger": 1, "champion": 1}
    assert version.tags["logs2rec.build"] == here.tags["logs2rec.build"]
    runs = [client.get_run(v.run_id) for client, v in ((store, here), (there, version))]
    assert runs[0].data.metrics == runs[1].data.metrics
    assert runs[0].data.params == runs[1].data.params
    rows = [
        r for r in logs2rec("status", "--config", line.recipe, "--json").json["promotions"] if r["action"] == "transfer"
    ]
    assert [(r["from_version"], r["to_version"]) for r in rows] == [(None, "1")]


@pytest.mark.slow
def test_what_was_trained_while_mlflow_failed_is_registered_later(line: Line, tmp_path: Path) -> None:
    server = MlflowServer(tmp_path, f"sqlite:///{tmp_path}/later.db")
    command = ("run", "--config", line.recipe, "--set", f"tracking.uri={server.uri}", "--json")
    with failing(server.port):
        refused = logs2rec(*command)
    assert refused.code == EnvironmentProblem.exit_code
    assert "tracking.uri http://" in refused.json["error"]
    server.start()
    try:
        later = logs2rec(*command)
    finally:
        server.stop()
    assert later.code == 4, later.stderr
    stages = {s["unit"]: s["status"] for s in later.json["stages"]}
    assert {status for unit, status in stages.items() if unit.startswith(("train", "evaluate"))} == {"skipped"}
    assert stages["register:retrieval"] == "published"


class TestLists:
    """After both roles have a champion."""

    ASKED = ("score", "--json", "--set", "scoring.k=5")

    def test_every_user_gets_the_best_eligible_items_not_seen(self, line: Line, store: mlflow.MlflowClient) -> None:
        eligible = line.folder / "eligible.csv"
        eligible.write_text("note,item\n" + "".join(f"x,i{n}\n" for n in range(50)))
        done = logs2rec(*self.ASKED, "--config", line.recipe, "--set", f"scoring.eligible={eligible}")
        assert done.code == 0, done.stderr
        version = done.json["outputs"]["recommendations"]
        lists = line.lake.read("recommendations", version)  # noqa: F841 - DuckDB reads it by its name
        events = line.lake.read("events", line.stage("events")["outputs"]["events"])  # noqa: F841
        wrong = duckdb.sql(
            "select count(*) from lists join (select distinct \"user\", item from events where type = 'click') "
            'using ("user", item)'
        )
        assert wrong.fetchall() == [(0,)]
        users, most, odd = duckdb.sql(
            "select count(distinct \"user\"), max(rank), count(*) filter (ltrim(item, 'i')::int >= 50) from lists"
        ).fetchall()[0]
        clicked = duckdb.sql("select count(distinct \"user\") from events where type = 'click'").fetchall()[0][0]
        assert (users, most, odd) == (clicked + 1, 5, 0)  # and the list for whoever has none
        assert done.json["items_eligible"] == 50
        assert done.json["fields_unlearned"] == []
        assert done.json["registered"] == {"retrieval": "1", "ranking": "1"}
        again = logs2rec(*self.ASKED, "--config", line.recipe, "--set", f"scoring.eligible={eligible}")
        assert again.json == done.json
        assert "score 2026-01-06: already published" in again.stderr

    def test_scores_are_the_registered_models_answers_to_raw_features(
        self, line: Line, store: mlflow.MlflowClient
    ) -> None:
        lists = line.lake.read("recommendations", line.lake.version("recommendations") or 0).to_pandas()
        lists = lists[lists["source"] == "ranking"]
        assert len(lists) > 100
        sides = {}
        for name, key in (("users", "user_id"), ("items", "item_id")):
            rows = map(json.loads, (line.folder / "raw" / f"{name}.jsonl").read_text().splitlines())
            sides[name] = {row[key]: row for row in rows}
        raw = pd.DataFrame(
            {
                "user": user, "item": item, **{f: sides["users"].get(user, {}).get(f) for f in ("segment", "joined")},
                **{f: sides["items"].get(item, {}).get(f) for f in ("category", "tags", "quality")},
            }
            for user, item in zip(lists["user"], lists["item"], strict=True)
        ).astype({"joined": float})  # fmt: skip
        model = mlflow.pyfunc.load_model("models:/small.ranking@champion")
        assert model.predict(raw)["probability"].to_numpy() == pytest.approx(lists["score"].to_numpy(), abs=1e-6)

    def test_a_day_that_is_not_there(self, line: Line) -> None:
        done = logs2rec("score", "--config", line.recipe, "--date", "2026-01-04", "--json")
        assert done.code == 2
        assert "stage score: needs" in done.json["error"]

    def test_a_file_without_items(self, line: Line) -> None:
        (line.folder / "nothing.csv").write_text("article\ni1\n")
        wrong = ("--set", f"scoring.eligible={line.folder / 'nothing.csv'}")
        done = logs2rec("score", "--config", line.recipe, "--json", *wrong)
        assert done.code == 3
        assert "needs one column 'item'; it has article" in done.json["error"]


def test_an_alias_moved_by_hand_is_what_run_reports(line: Line, store: mlflow.MlflowClient) -> None:
    store.delete_registered_model_alias("small.ranking", "champion")
    seen = logs2rec("run", "--config", line.recipe, "--json")
    assert seen.code == 4
    assert {m["name"]: m["alias"] for m in seen.json["models"]}["small.ranking"] == "challenger"


def test_a_lost_store_is_filled_again_without_training(line: Line) -> None:
    """Last of all: it takes the store away."""
    (line.folder / "workspace" / "mlflow.db").unlink()
    done = logs2rec("run", "--config", line.recipe, "--json")
    assert done.code == 4, done.stderr
    again = {s["unit"] for s in done.json["stages"] if s["status"] == "published"}
    assert again == {"register:retrieval", "register:ranking", "promote:retrieval", "promote:ranking"}
    assert {m["name"]: m["alias"] for m in done.json["models"]} == {
        "small.retrieval": "champion",
        "small.ranking": "challenger",
    }
