"""A search in a recipe: refused at the border by name, and once through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

from infra.config import parse
from infra.errors import ConfigError
from pipelines.recipe import Ranking, Retrieval, SequenceModelRun
from tests.pipelines.commands import logs2rec, small_recipe

ADREC = {"model": "adrec"}


def run_of(space: dict[str, Any], config: dict[str, Any] = ADREC, **settings: Any) -> dict[str, Any]:
    return {"config": config, "search": {"trials": 3, "space": space, **settings}}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_of({"config.dropuot": {"uniform": [0, 0.3]}}), "'config.dropuot' is no setting of this model"),
        (run_of({"samples.history": {"choice": [1]}}), "'samples.history' is no setting of this model"),
        (run_of({"config.dropout": {"uniform": [0, 1.2]}}), "config.dropout=1.2: .*: Input should be less than 1"),
        (run_of({"training.batch_size": {"log": [64, 128]}}), "training.batch_size: Input should be a valid integer"),
        (
            run_of({"config.heads": {"choice": [2, 3]}, "config.width": {"choice": [32, 48]}}),
            "config.heads=3 config.width=32: .*width 32 is not divisible by heads 3",
        ),
        (run_of({"training.epochs": {"integer": [2, 8]}}), "training.epochs=2: .*epochs 2 is less than the model's 3"),
        (run_of({"config.blocks": {"integer": [1, 2]}}, epochs_first=20), "epochs_first 20 is not below .*epochs 20"),
        (run_of({"config.blocks": {"integer": [1, 2]}}, trails=4), "search.trails: unknown setting"),
        (run_of({"training.epochs": {"integer": [1, 2]}}, {"model": "popularity"}), "popularity has nothing to search"),
        (run_of({"config.blocks": {"gauss": [1, 2]}}), r"search.space.config.blocks.gauss: unknown setting"),
        (
            {**run_of({"config.blocks": {"integer": [1, 2]}}, parallel=2), "training": {"workers": [1, 2]}},
            "search.parallel 2: .* give training.workers as one number",
        ),
    ],
)
def test_refused_by_name(run: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({"candidate": run}, Retrieval, "recipe.yaml")
    with pytest.raises(ConfigError, match=message):
        parse({"candidate": {"config": ADREC}, "baselines": [{**run, "name": "other"}]}, Retrieval, "recipe.yaml")


def test_the_evaluation_has_to_suit_every_trial() -> None:
    tried = run_of({"config.steps": {"choice": [8, 32]}}, trials=10)
    parse({"candidate": tried, "evaluation": {"steps": 8}}, Retrieval, "recipe.yaml")
    with pytest.raises(ConfigError, match=r"evaluation\.steps 16 exceeds the 8 steps of adrec"):
        parse({"candidate": tried, "evaluation": {"steps": 16}}, Retrieval, "recipe.yaml")


def test_a_chosen_run_is_the_same_run_with_the_values() -> None:
    given = run_of({"config.base.dropout": {"uniform": [0, 0.3]}}, {"model": "asymdiffrec"})
    run = parse({"candidate": {**given, "name": "it"}}, Ranking, "recipe.yaml").candidate
    assert [r.label for r in run.tried] == ["it"] * 3
    assert len({r.config.base.dropout for r in run.tried}) == 3  # type: ignore[union-attr]
    assert all(r.search is None and r.training == run.training for r in run.tried)
    plain = SequenceModelRun.model_validate({"config": ADREC})
    assert (plain.search, plain.tried, plain.with_values({})) == (None, [plain], plain)


@pytest.mark.slow
def test_the_best_trial_is_what_is_registered(tmp_path: Path) -> None:
    made = logs2rec("simulate", tmp_path / "raw", "--users", 100, "--items", 40, "--days", 4, "--seed", 3)
    assert made.code == 0, made.stderr
    config = {"model": "dnn", "embedding_width": 4, "hidden": [16]}
    rate = "training.learning_rate"
    candidate = {**run_of({rate: {"log": ["1e-4", "3e-2"]}}, config, trials=2), "training": {"epochs": 1}}
    recipe = small_recipe(tmp_path, retrieval=None, ranking={"candidate": candidate, "gate": {"min_users": 1}})
    done = logs2rec("run", "--config", recipe, "--json")
    assert done.code in (0, 4), done.stderr
    trained = next(s for s in done.json["stages"] if s["unit"] == "train:ranking:dnn")
    workspace = tmp_path / "workspace"
    trials = json.loads((workspace / trained["outputs"]["trials"]).read_text())
    assert [t["state"] for t in trials] == ["finished", "finished"]
    best = min(trials, key=lambda t: t["metric"])
    assert trained["report"]["search"] == {"trials": 2, "values": best["values"]}
    assert trained["report"]["valid_metric"] == best["metric"]
    client = mlflow.MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    (version,) = client.search_model_versions("name='small.ranking'")
    assert float(client.get_run(version.run_id).data.params[rate]) == best["values"][rate]
    assert len(list((workspace / "training").iterdir())) == 2
    again = logs2rec("stage", "train", "--config", recipe, "--json")
    assert next(s for s in again.json["stages"] if s["unit"] == "train:ranking:dnn")["status"] == "skipped"
