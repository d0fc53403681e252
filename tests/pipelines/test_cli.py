"""Commands, options, exit codes and messages; nothing here gets as far as Spark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipelines.commands import ROOT, logs2rec, small_recipe

OPTIONS = {
    "simulate": {
        *("--users", "--items", "--days", "--seed", "--bots", "--hot-user", "--schema-change", "--json"),
    },
    "run": {"--config", "--from", "--to", "--rebuild", "--set", "--json"},
    "stage": {"--config", "--from", "--to", "--rebuild", "--set", "--json"},
    "backfill": {"--config", "--from", "--to", "--stage", "--rebuild", "--set", "--json"},
    "data-report": {"--config", "--from", "--to", "--set", "--json"},
    "status": {"--config", "--set", "--json"},
    "promote": {"--config", "--role", "--force", "--approve", "--to", "--set", "--json"},
    "rollback": {"--config", "--reason", "--role", "--set", "--json"},
    "doctor": {"--config", "--set", "--json"},
    "replicate": {"--model", "--data", "--seed", "--set", "--workspace", "--categories", "--json"},
    "study": {"--plan", "--out", "--only", "--page-only", "--json"},
}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_a_promise(command: str) -> None:
    import typer

    from pipelines.cli import app

    found = {o for p in typer.main.get_command(app).commands[command].params for o in p.opts if o.startswith("--")}  # type: ignore[attr-defined]
    assert found == OPTIONS[command]


def test_help_imports_nothing_heavy() -> None:
    look = (
        "import sys\nfrom pipelines.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'pyspark', 'mlflow', 'pyarrow', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_opening_a_recipe_imports_no_framework() -> None:
    look = (
        "import sys\nfrom pipelines.recipe import open_recipe\nopen_recipe('pipelines/recipes/demo.yaml')\n"
        "print([m for m in ('torch', 'ray', 'pyspark', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("no_such_key=1", "no_such_key: unknown setting"),
        ("retrieval.candidate.config.width=wide", "retrieval.candidate.config.adrec.width"),
        ("retrieval.candidate.config.heads=3", "not divisible"),
        ("retrieval.candidate.config.model=sasrek", "retrieval.candidate.config"),
        ("retrieval.gate.floor_baselines=[nobody]", "nobody"),
        ("retrieval.evaluation.category_field=colour", "colour"),
        ("retrieval.evaluation.steps=5", "exceeds the 4 steps"),
        ("retrieval.candidate.training.epochs=2", "3 stages"),
        ("sequences", "expected a.b=value"),
        ("retrieval.candidate.training.batch_size=1", "batch_size"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_runs(tmp_path: Path, override: str, words: str) -> None:
    done = logs2rec("run", "--config", small_recipe(tmp_path), "--set", override, "--json")
    assert done.code == 2
    assert words in done.json["error"]
    assert not (tmp_path / "workspace").exists()


def test_a_wrong_type_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, sequences={"max_length": "many"})
    done = logs2rec("run", "--config", recipe)
    assert done.code == 2
    assert f"{recipe}: sequences.max_length" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "yesterday"], "--from 'yesterday'"),
        (["--to", "20260101"], "--to '20260101'"),
        (["--from", "2026-01-03", "--to", "2026-01-02"], "lies after"),
    ],
)
def test_wrong_dates(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = logs2rec("run", "--config", small_recipe(tmp_path), *arguments)
    assert done.code == 2
    assert words in done.stderr


def test_what_a_backfill_cannot_do(tmp_path: Path) -> None:
    days = ("--from", "2026-01-01", "--to", "2026-01-02")
    recipe = small_recipe(tmp_path)
    for arguments, words in (
        ((*days, "--stage", "cook"), "choose one of"),
        ((*days, "--stage", "train", "--rebuild"), "--rebuild is for data stages"),
        (("--from", "2026-01-03", "--to", "2026-01-02"), "lies after"),
        (("--from", "2026-01-03"), "--to"),
    ):
        done = logs2rec("backfill", "--config", recipe, *arguments)
        assert (done.code, words in done.stderr) == (2, True), done.stderr
    done = logs2rec("stage", "train", "--config", recipe, "--rebuild")
    assert (done.code, "--rebuild is for data stages" in done.stderr) == (2, True)


def test_unknown_stage_and_missing_recipe(tmp_path: Path) -> None:
    assert "choose one of" in logs2rec("stage", "cook", "--config", small_recipe(tmp_path)).stderr
    assert "no such file" in logs2rec("run", "--config", tmp_path / "none.yaml").stderr


def test_an_absent_and_an_empty_folder(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    absent = logs2rec("run", "--config", recipe)
    assert absent.code == 2
    assert str(tmp_path / "raw") in absent.stderr
    (tmp_path / "raw" / "events").mkdir(parents=True)
    empty = logs2rec("run", "--config", recipe)
    assert empty.code == 3
    assert "no file there" in empty.stderr


def test_dates_on_a_log_without_dates(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, contract=str(ROOT / "pipelines/recipes/contracts/ml-100k.yaml"), retrieval=None)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\ttimestamp:float\n")
    done = logs2rec("run", "--config", recipe, "--to", "2026-01-01")
    assert done.code == 2
    assert "source.path" in done.stderr


def test_a_stage_without_its_input_says_what_to_run(tmp_path: Path) -> None:
    logs2rec("simulate", tmp_path / "raw", "--users", 20, "--items", 20, "--days", 3)
    done = logs2rec("stage", "samples", "--config", small_recipe(tmp_path))
    assert done.code == 2
    assert "logs2rec stage events" in done.stderr


@pytest.mark.parametrize("arguments", [["run", "--wrong", "--json"], ["run", "--json"], ["cook", "--json"]])
def test_wrong_options_are_json_too(arguments: list[str]) -> None:
    done = logs2rec(*arguments)
    assert done.code == 2
    assert done.json["exit_code"] == 2
    assert done.json["error"]


def test_simulate_refuses_a_full_folder(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    done = logs2rec("simulate", tmp_path, "--users", 20)
    assert done.code == 2
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_status_of_nothing(tmp_path: Path) -> None:
    done = logs2rec("status", "--config", small_recipe(tmp_path), "--json")
    assert done.code == 0
    assert done.json == {"published": [], "contracts": [], "aliases": {}, "moved_by_hand": {}, "promotions": []}


def test_doctor_says_what_was_found() -> None:
    done = logs2rec("doctor", "--json")
    names = {f["name"] for f in done.json["findings"]}
    assert {"java", "torch", "pyspark"} <= {n.lower() for n in names}
    assert done.code == (0 if done.json["ok"] else 2)


def test_an_internal_failure_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import featurize.simulate
    from pipelines.cli import main

    monkeypatch.setattr(featurize.simulate, "simulate", lambda *a, **k: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "anywhere", "--json"])
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "ZeroDivisionError"


def test_shipped_recipes_are_valid() -> None:
    from pipelines.recipe import open_recipe
    from pipelines.replicate import SETTINGS

    others = {
        SETTINGS,
        *(SETTINGS.with_name(plan) for plan in ("study.yaml", "dimerec.yaml", "asymdiffrec.yaml", "ranked.yaml")),
    }
    recipes = sorted(p for p in (ROOT / "pipelines" / "recipes").glob("*.yaml") if p not in others)
    assert {r.stem for r in recipes} >= {"demo", "ml-100k"}
    for path in recipes:
        recipe, contract = open_recipe(path)
        assert recipe.name == path.stem
        assert contract.fields
        assert yaml.safe_load(path.read_text())["name"] == recipe.name
