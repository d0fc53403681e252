"""`logs2rec score` killed, and given again: the table is as if nobody had; what was done is not made twice."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import polars as pl
import pytest

from infra.lake import Lake
from infra.tables import RECOMMENDATIONS
from tests.faults.disturbance import REPETITIONS, drawn, fresh, killed, killed_at
from tests.pipelines.commands import logs2rec

pytestmark = pytest.mark.fault

POPULARITY = {"candidate": {"config": {"model": "popularity"}}, "evaluation": {"category_field": "category"}}
NAME = RECOMMENDATIONS.name


@pytest.fixture(scope="module")
def ready(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a champion, as `score` finds it. Copies of it share the models that its store names."""
    recipe = place(tmp_path_factory.mktemp("ready") / "run", raw)
    done = logs2rec("run", "--config", recipe)
    assert done.code == 0, done.stderr
    return recipe.parent / "workspace"


def place(folder: Path, raw: Path) -> Path:
    return fresh(folder, raw, retrieval=POPULARITY, ranking=None, ray={"cpus": 1, "object_store_mb": 100})


def prepared(folder: Path, raw: Path, ready: Path) -> Path:
    recipe = place(folder, raw)
    shutil.copytree(ready, folder / "workspace")
    return recipe


def lists_of(recipe: Path) -> pl.DataFrame:
    lake = Lake(recipe.parent / "workspace" / "lake")
    frame = pl.from_arrow(lake.read(NAME, lake.version(NAME) or 0))
    assert isinstance(frame, pl.DataFrame)
    return frame.sort("user", "rank")


@pytest.fixture(scope="module")
def undisturbed(raw: Path, ready: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, float]:
    recipe = prepared(tmp_path_factory.mktemp("undisturbed") / "run", raw, ready)
    begun = time.monotonic()
    done = logs2rec("score", "--config", recipe)
    assert done.code == 0, done.stderr
    seconds = time.monotonic() - begun
    assert not (recipe.parent / "workspace" / "scoring").exists()
    return lists_of(recipe), seconds


def test_before_the_commit(raw: Path, ready: Path, undisturbed: tuple[pl.DataFrame, float], tmp_path: Path) -> None:
    """Every bucket is done: the next command commits the very files."""
    recipe = prepared(tmp_path / "run", raw, ready)
    killed_at("between_files_and_commit", NAME, "score", "--config", recipe)
    lake, notes = Lake(recipe.parent / "workspace" / "lake"), recipe.parent / "workspace" / "scoring"
    assert lake.files(NAME, lake.version(NAME) or 0) == []
    done = [json.loads(path.read_text())["file"] for path in notes.glob("*/*.json")]
    assert len(done) == 8
    again = logs2rec("score", "--config", recipe)
    assert again.code == 0, again.stderr
    committed = {path.rpartition("/")[2] for path in lake.files(NAME, lake.version(NAME) or 0)}
    assert {file["path"].rpartition("/")[2] for file in done if file} < committed
    assert lists_of(recipe).equals(undisturbed[0])
    assert not notes.exists()


def test_before_the_ledger(raw: Path, ready: Path, undisturbed: tuple[pl.DataFrame, float], tmp_path: Path) -> None:
    """The lists are in the table, and nobody knows: they are made again, not committed twice."""
    recipe = prepared(tmp_path / "run", raw, ready)
    killed_at("between_commits_and_ledger", "", "score", "--config", recipe)
    again = logs2rec("score", "--config", recipe, "--json")
    assert again.code == 0, again.stderr
    assert lists_of(recipe).equals(undisturbed[0])
    assert logs2rec("score", "--config", recipe, "--json").json == again.json


def test_what_is_asked_for_last_is_what_stands_there(
    raw: Path, ready: Path, undisturbed: tuple[pl.DataFrame, float], tmp_path: Path
) -> None:
    """Other settings, killed behind the commit or not, and the former ones again, as after a rollback."""
    recipe = prepared(tmp_path / "run", raw, ready)
    few = ("score", "--config", recipe, "--set", "scoring.k=2")
    assert logs2rec("score", "--config", recipe).code == 0
    killed_at("between_commits_and_ledger", "", *few)
    assert lists_of(recipe)["rank"].max() == 2
    assert "already published" in logs2rec("score", "--config", recipe).stderr
    assert lists_of(recipe).equals(undisturbed[0]), "put back"
    assert logs2rec(*few).code == 0
    assert lists_of(recipe)["rank"].max() == 2
    assert logs2rec("score", "--config", recipe).code == 0
    assert lists_of(recipe).equals(undisturbed[0]), "made again"


def test_nobody_would_get_anything(raw: Path, ready: Path, tmp_path: Path) -> None:
    recipe = prepared(tmp_path / "run", raw, ready)
    (tmp_path / "items.csv").write_text("item\nno such item\n")
    done = logs2rec("score", "--config", recipe, "--json", "--set", f"scoring.eligible={tmp_path / 'items.csv'}")
    assert done.code == 3
    assert "none of its 1 items is in the log ('no such item' is not)" in done.json["error"]


@pytest.mark.parametrize("repetition", range(REPETITIONS))
def test_at_any_moment(
    raw: Path, ready: Path, undisturbed: tuple[pl.DataFrame, float], tmp_path: Path, repetition: int
) -> None:
    lists, seconds = undisturbed
    moment = drawn(repetition, "score").uniform(0.2, 0.95) * seconds
    recipe = killed(["score"], lambda folder: prepared(folder, raw, ready), tmp_path, moment)
    again = logs2rec("score", "--config", recipe)
    assert again.code == 0, again.stderr
    assert lists_of(recipe).equals(lists)
