"""MLflow: runs, registered versions, aliases. Registration is idempotent by build tag; an alias moves last.

One registered name per recipe and role, `NAME.retrieval` and `NAME.ranking`. The model is logged from
code (`retrieval_pyfunc.py`, `ranking_pyfunc.py`), so nothing on the path is pickled.
"""

from __future__ import annotations

import json
import logging
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate.publish.claim import LEASE, claim
from evaluate.settings import TrackingSettings
from infra.errors import ArtifactError, EnvironmentProblem
from infra.mlflow_store import create_database, quiet

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous_champion"
BUILD_TAG = "logs2rec.build"
STORE_TAG = "logs2rec.store"
RUN_DATE_TAG = "logs2rec.runDate"


@dataclass(frozen=True)
class Upload:
    """What a version is made of: the model, how it is served (evaluate.publish.package), and what its run tells."""

    artifact: Path
    code: Path
    signature: ModelSignature
    example: pd.DataFrame
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    """Of the run and of the version."""
    files: Mapping[str, Path]
    """Folder among the run's artifacts -> file."""


@dataclass(frozen=True)
class Told:
    """Parameters, metrics and files (folder -> its file) of a run."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, Path]


class Registry:
    """The MLflow client, bound to one store and experiment; use `registry()` to open it."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str) -> None:
        self.client, self.uri, self.experiment_id = client, uri, experiment_id
        self.lease = LEASE

    def identity(self) -> str:
        """An id of the store as it was when its experiment was made: an emptied or replaced store has another."""
        experiment = self.client.get_experiment(self.experiment_id)
        return str(experiment.tags.get(STORE_TAG) or f"{experiment.experiment_id}-{experiment.creation_time}")

    def register(self, name: str, build: str, upload: Upload) -> tuple[str, str]:
        """Log a run with its model and register it as a version of `name`; returns (version, run id).

        A version that already carries `build` is returned as it is, and so is a finished upload of a command that died
        before it registered it. Any number of processes may do this at once: a build has one version, versions have no
        gaps, and a process that comes second deletes the run that it has made for nothing. Metrics that are not finite
        are left out.
        """
        if found := self._versions(name, build):
            return str(found[0].version), str(found[0].run_id)
        run_id, model_id = self._uploaded(name, build) or self._upload(name, build, upload)
        _create_name(self.client, name)
        with claim(self.client, name, self.lease):
            if not self._versions(name, build):
                about = {BUILD_TAG: build, **upload.tags}
                self.client.create_model_version(name, f"models:/{model_id}", run_id, tags=about, model_id=model_id)
            # More than one: the answer was late, and MLflow asked again. The numbers of the last ones are used again.
            first, *others = self._versions(name, build)
            for twin in others:
                self.client.delete_model_version(name, str(twin.version))
        if first.run_id != run_id:
            self.client.delete_run(run_id)
        return str(first.version), str(first.run_id)

    def _versions(self, name: str, build: str) -> list[Any]:
        found = self.client.search_model_versions(f"name = '{name}' and tags.`{BUILD_TAG}` = '{build}'")
        return sorted(found, key=lambda version: int(version.version))

    def _uploaded(self, name: str, build: str) -> tuple[str, str] | None:
        """(run id, model id) of a whole upload of this build that nobody has registered."""
        wanted = f"attributes.run_name = '{_run_name(name, build)}' and attributes.status = 'FINISHED'"
        runs = self.client.search_runs([self.experiment_id], f"{wanted} and tags.`{BUILD_TAG}` = '{build}'")
        for run in runs:
            for output in run.outputs.model_outputs if run.outputs else ():
                return str(run.info.run_id), str(output.model_id)
        return None

    def _upload(self, name: str, build: str, upload: Upload) -> tuple[str, str]:
        """(run id, model id) of a finished run with everything in it."""
        import mlflow

        with mlflow.start_run(experiment_id=self.experiment_id, run_name=_run_name(name, build)) as run:
            mlflow.set_tags({BUILD_TAG: build, **upload.tags})
            mlflow.log_params({k: str(v) for k, v in upload.params.items()})
            mlflow.log_metrics({k: v for k, v in upload.metrics.items() if math.isfinite(v)})
            for folder, file in upload.files.items():
                mlflow.log_artifact(str(file), folder)
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(upload.code),
                artifacts={"model": str(upload.artifact)},
                signature=upload.signature,
                input_example=upload.example,
                pip_requirements=[f"logs2rec=={installed_version('logs2rec')}"],
            )
        return str(run.info.run_id), str(logged.model_id)

    def alias(self, name: str, alias: str) -> str | None:
        """The version that an alias points at; None when there is no such alias or name, and only then."""
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            # Any other error is no answer: taken for "no champion" it would promote without comparison.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return str(aliases[alias]) if alias in aliases else None

    def move_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version."""
        self.client.set_registered_model_alias(name, alias, version)

    def tags(self, name: str, version: str) -> dict[str, str] | None:
        """A version's tags; None when there is no such version, and only then."""
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_model_version(name, version).tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def artifact(self, name: str, version: str, into: Path) -> Path:
        """Download a version's artifact directory (the one `train.load` reads) below `into`."""
        import mlflow

        local = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(into)))
        found = sorted(local.glob("artifacts/*/MANIFEST.json"))
        if len(found) != 1:
            raise ArtifactError(f"models:/{name}/{version}: expected one model artifact, found {len(found)}")
        return found[0].parent

    def told(self, name: str, version: str, into: Path) -> Told:
        """What the run of a version tells, its files downloaded below `into`."""
        import mlflow

        run = self.client.get_run(str(self.client.get_model_version(name, version).run_id))
        files: dict[str, Path] = {}
        for folder in (entry.path for entry in self.client.list_artifacts(run.info.run_id) if entry.is_dir):
            where = {"artifact_path": folder, "dst_path": str(into), "tracking_uri": self.uri}
            local = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, **where)
            files[folder] = next(file for file in sorted(Path(local).iterdir()) if file.is_file())
        return Told(run.data.params, run.data.metrics, files)

    def attach(self, run_id: str, file: Path) -> None:
        """Add a file to a run's artifacts."""
        self.client.log_artifact(run_id, str(file))


@contextmanager
def registry(settings: TrackingSettings, workspace: Path, default_experiment: str) -> Iterator[Registry]:
    """Open the store. Raises EnvironmentProblem when it cannot be reached, now or later inside the block."""
    quiet()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri = tracking_uri(settings, workspace)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        yield _open(uri, settings, workspace, default_experiment)
    except (MlflowException, SQLAlchemyError) as error:
        raise _problem(uri, error) from error
    finally:
        mlflow.set_tracking_uri(before)


def _open(uri: str, settings: TrackingSettings, workspace: Path, default_experiment: str) -> Registry:
    """The client and its experiment, which is created on first use."""
    import mlflow
    from mlflow.exceptions import MlflowException

    name = settings.experiment or default_experiment
    try:
        create_database(uri)
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name(name)
    except (OSError, ImportError) as error:  # a folder that cannot be written, a database driver that is not there
        raise _problem(uri, error) from error
    if experiment is None:
        try:
            client.create_experiment(name, artifact_location=artifact_location(settings, workspace))
        except MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
    return Registry(client, uri, str(experiment.experiment_id))


def _create_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _run_name(name: str, build: str) -> str:
    return f"{name} {build}"


def _problem(uri: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(without_password(f"tracking.uri {uri}: {' '.join(str(error).split())[:300]}"))


def without_password(text: str) -> str:
    """A text for a log or a table: what stands before an @ in an address is hidden."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def tracking_uri(settings: TrackingSettings, workspace: Path) -> str:
    """The store's address."""
    return settings.uri or f"sqlite:///{(workspace / 'mlflow.db').resolve()}"


def artifact_location(settings: TrackingSettings, workspace: Path) -> str | None:
    """Where an experiment's files go: into the workspace, unless there is a server, which decides for itself."""
    served = settings.uri is not None and not re.match(r"(sqlite|postgresql|mysql|mssql)\b", settings.uri)
    return None if served else (workspace / "mlflow-artifacts").resolve().as_uri()


_QUERY = """
import json, sys
import mlflow, pandas as pd
uri, model, example = json.loads(sys.stdin.read())
mlflow.set_tracking_uri(uri)
served = mlflow.pyfunc.load_model(model, suppress_warnings=True)
answer = served.predict(pd.DataFrame(example["rows"], columns=example["columns"]))
print("ANSWER" + answer.to_json(orient="split", double_precision=15))
"""


def query_in_clean_process(uri: str, model: str, example: pd.DataFrame) -> dict[str, Any]:
    """Load `models:/...` in a fresh interpreter, elsewhere, and return its answer for `example`.

    Raises ArtifactError with the process's last words when it cannot, or takes more than five minutes.
    """
    quiet()
    rows = example.astype(object).where(example.notna(), None).values.tolist()
    request = json.dumps([uri, model, {"columns": list(example.columns), "rows": rows}])
    command = [sys.executable, "-c", _QUERY]
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            done = subprocess.run(command, input=request, capture_output=True, text=True, cwd=elsewhere, timeout=300)
        except subprocess.TimeoutExpired:
            raise ArtifactError(f"{model}: does not answer in a clean process within 300 s") from None
    answer = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    if done.returncode or not answer:
        raise ArtifactError(f"{model}: does not answer in a clean process: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(answer[-1].removeprefix("ANSWER"))
    return found
