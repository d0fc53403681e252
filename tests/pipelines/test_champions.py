"""Which champion a run continues from, and two days through the command line: one fresh, one warm beside fresh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from evaluate.publish.registry import BUILD_TAG, RUN_DATE_TAG
from infra.errors import ConfigError
from pipelines.champions import last_before
from pipelines.recipe import open_recipe
from tests.pipelines.commands import Done, logs2rec, small_recipe

DATES = {"1": "2026-01-03", "2": "2026-01-04", "3": "2026-01-05", "4": "2026-01-02"}
"""Version 4 is of a past day, made last."""


def moves(*rows: str) -> list[dict[str, Any]]:
    """'promote 3', oldest first."""
    return [{"name": "n", "action": a, "to_version": v} for a, v in (row.split() for row in rows)]


def tags_of(version: str) -> dict[str, str] | None:
    return {RUN_DATE_TAG: DATES[version], BUILD_TAG: f"build{version}"} if version in DATES else None


@pytest.mark.parametrize(
    ("history", "day", "version"),
    [
        ([], "2026-01-04", None),
        (["promote 1"], "2026-01-04", "1"),
        (["promote 1"], "2026-01-03", None),  # its own day, run again
        (["promote 1", "promote 2"], "2026-01-04", "1"),
        (["promote 1", "promote 2"], "2026-01-05", "2"),
        (["promote 1", "promote 2", "promote 3"], "2026-01-04", "1"),  # a past day has no future champion
        (["promote 1", "promote 2"], "2026-01-02", None),
        (["promote 1", "hold 2", "reject 3"], "2026-01-06", "1"),
        (["promote 1", "promote 2", "rollback 1"], "2026-01-05", "1"),
        (["promote 1", "promote 2", "rollback 1", "promote 3"], "2026-01-05", "1"),
        (["promote 1", "promote 2", "promote 4"], "2026-01-06", "4"),
        (["promote 1", "promote 9"], "2026-01-06", "1"),  # the store has no version 9
        (["promote 9"], "2026-01-06", None),
    ],
)
def test_the_champion_of_before_the_day(history: Sequence[str], day: str, version: str | None) -> None:
    found = last_before(moves(*history), tags_of, day)
    assert (found.version if found else None) == version
    if found is not None:
        assert (found.name, found.run_date, found.build) == ("n", DATES[found.version], f"build{found.version}")
        assert found.told == {"name": "n", "version": found.version, "run_date": found.run_date}


def test_popularity_continues_nothing(tmp_path: Path) -> None:
    warm = {"config": {"model": "popularity"}, "training": {"start": "champion"}}
    with pytest.raises(ConfigError, match="popularity is counted and continues nothing"):
        open_recipe(small_recipe(tmp_path, retrieval={"candidate": warm}))


FIRST, SECOND = "2026-01-06", "2026-01-07"
ADREC = {"model": "adrec", "width": 16, "blocks": 1, "denoiser_blocks": 1, "max_length": 20, "steps": 4}
DNN = {"model": "dnn", "embedding_width": 4, "hidden": [16]}
GATE = {"margin": 0.99}


def recipe(folder: Path, name: str, retrieval: list[dict[str, Any]], ranking: list[dict[str, Any]]) -> Path:
    """Of the models the first is the candidate."""
    (folder / name).mkdir()
    common = {"data": str(folder / "raw"), "workspace": str(folder / "workspace")}
    roles = {
        role: {"candidate": models[0], "baselines": models[1:], "gate": GATE}
        for role, models in (("retrieval", retrieval), ("ranking", ranking))
    }
    return small_recipe(folder / name, **common, **roles)


@dataclass(frozen=True)
class TwoDays:
    """What the two runs said; the second's recipe."""

    folder: Path
    first: dict[str, Any]
    second: dict[str, Any]
    recipe: Path


def ended_well(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.stderr
    return done.json


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> TwoDays:
    folder = tmp_path_factory.mktemp("warm")
    made = logs2rec("simulate", folder / "raw", "--users", 150, "--items", 60, "--days", 7, "--seed", 3, "--json")
    assert made.code == 0, made.stderr
    fresh = {"epochs": 6, "batch_size": 64, "learning_rate": 0.005, "checkpoint_every": 6, "validate_every": 3}
    warm = {**fresh, "epochs": 2, "start": "champion", "workers": 2}
    adrec = {"config": ADREC, "training": fresh}
    dnn = {"config": DNN, "training": {**fresh, "epochs": 1}}
    first = recipe(folder, "first", [adrec], [dnn])
    second = recipe(
        folder,
        "second",
        [{"config": {**ADREC, "pretrain_share": 0}, "training": warm}, {**adrec, "name": "adrec-fresh"}],
        [{"config": DNN, "training": {**warm, "epochs": 1}}],
    )
    done = [logs2rec("run", "--config", r, "--to", d, "--json") for r, d in ((first, FIRST), (second, SECOND))]
    return TwoDays(folder, *map(ended_well, done), second)


def stage(run: dict[str, Any], unit: str) -> dict[str, Any]:
    return next(s for s in run["stages"] if s["unit"] == unit)


def about(days: TwoDays, run: dict[str, Any], unit: str) -> dict[str, Any]:
    """An artifact's model.json, with its weights' hash."""
    path = days.folder / "workspace" / stage(run, unit)["outputs"]["artifact"]
    manifest = json.loads((path / "MANIFEST.json").read_text())
    return {**json.loads((path / "model.json").read_text()), **manifest["files"]["model.safetensors"]}


@pytest.mark.slow
@pytest.mark.parametrize(("role", "model"), [("retrieval", "adrec"), ("ranking", "dnn")])
def test_the_second_day_continues_from_the_first(days: TwoDays, role: str, model: str) -> None:
    champion, warm = (about(days, run, f"train:{role}:{model}") for run in (days.first, days.second))
    assert [m["metrics"]["initial"] for m in (champion, warm)] == [None, champion["sha256"]]
    report = stage(days.second, f"train:{role}:{model}")["report"]
    assert report["started_from"] == {"name": f"small.{role}", "version": "1", "run_date": FIRST}
    (told,) = [m for m in days.second["models"] if m["role"] == role]
    assert (told["version"], told["alias"]) == ("2", "champion")
    sizes = [[a["catalogue"] or [f["size"] for f in a["fields"]]] for a in (champion, warm)]
    assert sizes[0] != sizes[1]  # tables had to grow


@pytest.mark.slow
def test_a_fresh_model_is_compared_with_it(days: TwoDays) -> None:
    fresh = stage(days.second, "train:retrieval:adrec-fresh")["report"]
    assert fresh["initial"] is None
    assert "started_from" not in fresh
    metrics = days.second["models"][0]["metrics"]
    assert set(metrics) == {"adrec", "adrec-fresh"}
    assert all(m["history_removed/ndcg_at_20"] >= 0 for m in metrics.values())


@pytest.mark.slow
def test_where_it_is_written(days: TwoDays) -> None:
    page = Path(days.second["report"]).read_text()
    assert f"adrec started from version 1 of {FIRST}." in page
    assert "adrec-fresh started" not in page
    store = MlflowClient(f"sqlite:///{days.folder / 'workspace' / 'mlflow.db'}")
    tags = [store.get_model_version("small.retrieval", version).tags for version in ("1", "2")]
    assert [t.get("logs2rec.startedFrom") for t in tags] == [None, "1"]
    assert len(list((days.folder / "workspace" / "champions").iterdir())) == 2


@pytest.mark.slow
def test_running_again_trains_nothing(days: TwoDays) -> None:
    """The champion is now the day's own model."""
    again = ended_well(logs2rec("run", "--config", days.recipe, "--to", SECOND, "--json"))
    assert again["nothing_to_do"] is True
    assert [m["alias"] for m in again["models"]] == ["champion", "champion"]


@pytest.mark.slow
def test_a_past_day_does_not_start_from_a_later_champion(days: TwoDays) -> None:
    """Last of all: it adds to the workspace."""
    alone = ("--set", "ranking=null", "--set", "retrieval.baselines=[]")
    past = ended_well(logs2rec("stage", "train", "--config", days.recipe, "--to", FIRST, "--json", *alone))
    trained = stage(past, "train:retrieval:adrec")
    assert trained["status"] == "published"
    assert (trained["report"]["started_from"], trained["report"]["initial"]) == (None, None)
