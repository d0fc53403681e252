"""Runs, versions and aliases in a real MLflow store, and stores that are not there."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import train
from evaluate.publish import registry as module
from evaluate.publish.registry import CHALLENGER, CHAMPION, Registry, query_in_clean_process, registry, tracking_uri
from evaluate.settings import TrackingSettings
from infra.errors import ArtifactError, EnvironmentProblem
from tests.train.hostile import CORPUS
from tests.train.test_artifact import made

METRICS = {
    "history_removed/ndcg_at_20": 0.25,
    "all_items/mrr": 0.125,
    "baseline/sasrec/all_items/hr_at_5": 0.5,
    "catalogue_coverage": float("nan"),
    "gini": float("inf"),
}


def hashes(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def runs(store: Registry, build: str) -> list[mlflow.entities.Run]:
    return store.client.search_runs([store.experiment_id], f"tags.`{module.BUILD_TAG}` = '{build}'")


class TestRegister:
    def test_the_same_build_is_registered_once(self, register, store):
        first = register("once.retrieval", "build-1", "popularity")
        assert register("once.retrieval", "build-1", "popularity") == first
        assert len(store.client.search_model_versions("name = 'once.retrieval'")) == 1
        assert [run.info.run_id for run in runs(store, "build-1")] == [first[1]]
        assert first[0] == "1"

    def test_another_build_is_the_next_version(self, register):
        found = [register("next.retrieval", f"next-{i}", "popularity") for i in (1, 2, 1)]
        assert [version for version, _ in found] == ["1", "2", "1"]
        assert found[0] == found[2]

    def test_names_do_not_share_builds(self, register):
        names = ("one.ranking", "two.ranking")
        found = [register(name, "same", "dnn") for name in names]
        assert [version for version, _ in found] == ["1", "1"]
        assert found[0][1] != found[1][1]

    def test_a_death_before_the_version_leaves_one_version(self, register, store, monkeypatch):
        def dies(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(store.client, "create_model_version", dies)
            with pytest.raises(KeyboardInterrupt):
                register("died.ranking", "died-1", "dnn")
        assert mlflow.active_run() is None
        assert store.alias("died.ranking", CHAMPION) is None
        assert register("died.ranking", "died-1", "dnn")[0] == "1"
        assert len(store.client.search_model_versions("name = 'died.ranking'")) == 1

    def test_what_the_run_holds(self, register, store):
        params = {"model.width": 48, "model.hidden": [64, 32], "training.long": "x" * 7000}
        version, run_id = register("held.retrieval", "held-1", "sasrec", metrics=METRICS, params=params)
        run = store.client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.metrics == {k: v for k, v in METRICS.items() if k not in ("catalogue_coverage", "gini")}
        assert run.data.params == {"model.width": "48", "model.hidden": "[64, 32]", "training.long": "x" * 6000}
        assert run.data.tags[module.BUILD_TAG] == "held-1"
        tags = store.client.get_model_version("held.retrieval", version).tags
        assert tags == {module.BUILD_TAG: "held-1", "logs2rec.role": "test"}
        assert [f.path for f in store.client.list_artifacts(run_id, "recipe")] == ["recipe/recipe.json"]

    def test_a_later_file(self, register, store, tmp_path):
        _, run_id = register("late.retrieval", "late-1", "popularity")
        for text in ("first", "second"):
            (tmp_path / "report.html").write_text(text)
            store.attach(run_id, tmp_path / "report.html")
        into = str(tmp_path / "in")
        local = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="report.html", dst_path=into)
        assert Path(local).read_text() == "second"


class TestModel:
    @pytest.fixture(scope="class")
    def version(self, register):
        return register("model.ranking", "model-1", "asymdiffrec")[0]

    def test_the_artifact_comes_back_byte_for_byte(self, store, artifacts, version, tmp_path):
        found = store.artifact("model.ranking", version, tmp_path)
        assert hashes(found) == hashes(artifacts["asymdiffrec"])
        assert len(hashes(found)) == 4
        assert train.load(found).kind == "ranking"

    def test_no_such_version(self, store, version, tmp_path):
        with pytest.raises(MlflowException):
            store.artifact("model.ranking", "99", tmp_path)

    def test_nothing_on_its_path_is_pickled(self, version, tmp_path):
        local = Path(mlflow.artifacts.download_artifacts(f"models:/model.ranking/{version}", dst_path=str(tmp_path)))
        about = yaml.safe_load((local / "MLmodel").read_text())["flavors"]["python_function"]
        assert about["loader_module"] == "mlflow.pyfunc.loaders.code_model"
        assert Path(about["model_code_path"]).name == "ranking_pyfunc.py"
        assert "python_model" not in about
        files = [p for p in local.rglob("*") if p.is_file()]
        assert len(files) >= 8
        suffixes = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy", ".npz", ".bin"}
        assert [p for p in files if p.suffix in suffixes or p.read_bytes()[:1] == b"\x80"] == []

    def test_it_asks_for_this_package_at_this_version(self, version, tmp_path):
        local = Path(mlflow.artifacts.download_artifacts(f"models:/model.ranking/{version}", dst_path=str(tmp_path)))
        wanted = (local / "requirements.txt").read_text().split()
        assert [w.partition("==")[0] for w in wanted] == ["mlflow", "logs2rec"]
        assert all(w.partition("==")[2] for w in wanted)

    def test_signature_and_example_are_stored(self, version):
        about = mlflow.models.get_model_info(f"models:/model.ranking/{version}")
        fields = {c.name: c.required for c in about.signature.inputs}
        assert fields == dict.fromkeys(("user", "item", "price", "tags", "shop"), False)
        assert about.signature.outputs.input_names() == ["probability"]
        assert about.saved_input_example_info["pandas_orient"] == "split"


class TestAlias:
    def test_they_move(self, register, store):
        versions = [register("alias.retrieval", f"alias-{i}", "popularity")[0] for i in (1, 2)]
        assert store.alias("alias.retrieval", CHAMPION) is None
        for version in versions:
            store.move_alias("alias.retrieval", CHALLENGER, version)
        store.move_alias("alias.retrieval", CHAMPION, versions[0])
        assert store.alias("alias.retrieval", CHALLENGER) == "2"
        assert store.alias("alias.retrieval", CHAMPION) == "1"
        assert mlflow.pyfunc.load_model(f"models:/alias.retrieval@{CHAMPION}").metadata is not None

    def test_no_such_name(self, store):
        assert store.alias("nobody.retrieval", CHAMPION) is None

    def test_a_store_that_fails_is_not_a_store_without_champion(self, workspace, refused, monkeypatch):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        def ask() -> str | None:
            with registry(TrackingSettings(), workspace, "demo") as opened:
                opened.client = MlflowClient(refused)  # the server went away after it was opened
                return opened.alias("alias.retrieval", CHAMPION)

        with pytest.raises(EnvironmentProblem, match=r"tracking\.uri"):
            ask()


@pytest.fixture
def refused(monkeypatch) -> str:
    """An address where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


class TestStore:
    def opens(self, uri: str | None, workspace: Path) -> None:
        with registry(TrackingSettings(uri=uri), workspace, "demo"):
            pass

    def test_it_is_found_again(self, store, workspace):
        before = mlflow.get_tracking_uri()
        with registry(TrackingSettings(), workspace, "demo") as again:
            assert again.experiment_id == store.experiment_id
            assert again.uri == f"sqlite:///{workspace}/mlflow.db"
        with registry(TrackingSettings(experiment="other"), workspace, "demo") as other:
            assert other.experiment_id != store.experiment_id
            experiment = other.client.get_experiment(other.experiment_id)
            assert experiment.artifact_location == (workspace / "mlflow-artifacts").as_uri()
        assert (workspace / "mlflow.db").is_file()
        assert mlflow.get_tracking_uri() == before

    def test_a_server_wins_over_the_workspace(self, tmp_path):
        assert tracking_uri(TrackingSettings(uri="http://there:5000"), tmp_path) == "http://there:5000"

    def test_a_server_that_refuses(self, refused, tmp_path):
        started = time.perf_counter()
        address = refused.replace("//", "//me:secret@")
        with pytest.raises(EnvironmentProblem, match=r"tracking\.uri http://\*\*\*@127.0.0.1") as caught:
            self.opens(address, tmp_path)
        assert time.perf_counter() - started < 20
        assert "secret" not in str(caught.value)
        assert mlflow.get_tracking_uri() != address

    def test_a_server_that_never_answers(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        started = time.perf_counter()
        with socket.create_server(("127.0.0.1", 0)) as server:
            with pytest.raises(EnvironmentProblem, match=r"tracking\.uri http://127.0.0.1"):
                self.opens(f"http://127.0.0.1:{server.getsockname()[1]}", tmp_path)
        assert time.perf_counter() - started < 10

    @pytest.mark.parametrize("uri", ["nonsense://x", "postgresql+nodriver://me:secret@127.0.0.1/x"])
    def test_an_address_that_cannot_be_used(self, uri, tmp_path):
        with pytest.raises(EnvironmentProblem, match=r"tracking\.uri") as caught:
            self.opens(uri, tmp_path)
        assert "secret" not in str(caught.value)

    def test_a_workspace_that_is_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EnvironmentProblem, match=r"tracking\.uri sqlite"):
            self.opens(None, tmp_path / "file")

    def test_errors_of_ours_pass_through(self, workspace):
        with pytest.raises(ArtifactError, match="mine"), registry(TrackingSettings(), workspace, "demo"):
            raise ArtifactError("mine")


SILENT = """
import json, socket, sys
from pathlib import Path

def refuse(*args, **kwargs):
    raise AssertionError(f"network: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
artifact, workspace, answer = map(Path, sys.argv[1:])
from evaluate.publish.package import package
from evaluate.publish.registry import Upload, registry
from evaluate.settings import TrackingSettings
packed = package(artifact)
with registry(TrackingSettings(), workspace, "demo") as store:
    upload = Upload(
        artifact=artifact, code=packed.code, signature=packed.signature,
        example=packed.example, params={"a": 1}, metrics={"b": 1.0}, tags={}, files={},
    )
    version, _ = store.register("silent.retrieval", "silent-1", upload)
    store.move_alias("silent.retrieval", "challenger", version)
    store.artifact("silent.retrieval", version, answer)
from mlflow.telemetry import get_telemetry_client
sys.exit(3 if get_telemetry_client() is not None else 0)
"""


def test_a_fresh_process_registers_without_a_word_and_without_the_network(artifacts, store, workspace, tmp_path):
    # MLflow keeps its telemetry off where it sees a test or a CI machine; here it may not see one.
    hides = ("PYTEST", "MLFLOW", "CI", "GITHUB")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hides)}
    command = [sys.executable, "-c", SILENT, str(artifacts["popularity"]), str(workspace), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert store.alias("silent.retrieval", CHALLENGER) == "1"
    assert [p for p in tmp_path.iterdir() if p.name in ("mlruns", "mlflow.db", "mlartifacts")] == []


EXAMPLE = pd.DataFrame({"n": [1.5, float("nan")], "m": [["é"], None]})


class TestCleanProcess:
    """The answers themselves are in test_pyfunc."""

    def test_a_process_that_dies_is_quoted(self, store, monkeypatch):
        monkeypatch.setattr(module, "_QUERY", "raise SystemExit('no torch here')")
        with pytest.raises(ArtifactError, match=r"models:/x/1: does not answer in a clean process: no torch here"):
            query_in_clean_process(store.uri, "models:/x/1", EXAMPLE)

    def test_a_process_that_says_nothing(self, store, monkeypatch):
        monkeypatch.setattr(module, "_QUERY", "print('hello')")
        with pytest.raises(ArtifactError, match="does not answer"):
            query_in_clean_process(store.uri, "models:/x/1", EXAMPLE)

    def test_a_process_that_hangs(self, store, monkeypatch):
        def hangs(*args: object, **kwargs: object) -> None:
            raise subprocess.TimeoutExpired("python", 300)

        monkeypatch.setattr(subprocess, "run", hangs)
        with pytest.raises(ArtifactError, match="within 300 s"):
            query_in_clean_process(store.uri, "models:/x/1", EXAMPLE)

    def test_what_is_sent(self, store, monkeypatch):
        echo = "import sys; print('noise'); print('ANSWER' + sys.stdin.read())"
        monkeypatch.setattr(module, "_QUERY", echo)
        uri, model, example = query_in_clean_process(store.uri, "models:/x/1", EXAMPLE)
        assert (uri, model) == (store.uri, "models:/x/1")
        assert example == {"columns": ["n", "m"], "rows": [[1.5, ["é"]], [None, None]]}
        assert "MLFLOW_DISABLE_TELEMETRY" in os.environ


def test_metric_names_that_mlflow_refuses_are_seen(register, store):
    """Guards the names above: MLflow does check them."""
    with pytest.raises(MlflowException, match="Invalid value"):
        register("bad.retrieval", "bad-1", "popularity", metrics={"ndcg@20": 1.0})
    assert [run.info.status for run in runs(store, "bad-1")] == ["FAILED"]
    assert store.client.search_model_versions("name = 'bad.retrieval'") == []


def test_nothing_of_a_registered_version_is_run_to_read_its_model(store, tmp_path):
    """Whoever may write to the registry may put code beside a model; a champion is compared and scored without it."""
    marker, code, model = tmp_path / "marker", tmp_path / "code.py", tmp_path / "model"
    code.write_text(
        f"import mlflow\nopen({str(marker)!r}, 'w').close()\n"
        "class Served(mlflow.pyfunc.PythonModel):\n    def predict(self, context, model_input): return model_input\n"
        "mlflow.models.set_model(Served())\n"
    )
    made(model)
    CORPUS["torch_file as model.safetensors"](model, marker)
    with mlflow.start_run(experiment_id=store.experiment_id):
        logged = mlflow.pyfunc.log_model(
            name="model", python_model=str(code), artifacts={"model": str(model)}, pip_requirements=[]
        )
    store.client.create_registered_model("hostile.retrieval")
    version = store.client.create_model_version("hostile.retrieval", logged.model_uri).version
    assert marker.exists()  # MLflow itself runs it
    marker.unlink()
    with pytest.raises(ArtifactError, match=r"not a valid safetensors file"):
        train.load(store.artifact("hostile.retrieval", version, tmp_path / "into"))
    assert not marker.exists()
