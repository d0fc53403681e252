"""What every user of MLflow here needs first: a quiet client, and a database that is whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

#: Whatever of these the user has set stays. MLflow reads the first one when it is imported.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output ends in our one line of JSON
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that refuses is given up after 3 s, one that never answers after 90 s; MLflow's own
    # settings (7 retries of 120 s) come to 18 minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def quiet() -> None:
    """No telemetry, nothing on standard output, short patience; call it before MLflow is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def create_database(uri: str) -> None:
    """Make a new SQLite database elsewhere and put it in its place when it is whole.

    MLflow takes seconds to create its tables, and a database of which only some were created when the
    process was killed cannot be opened ever again ("duplicate column name").
    """
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.name == ":memory:" or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "mlflow.db"
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
        copy = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            shutil.copyfile(made, copy)
            os.link(copy, path)  # unlike a rename it never replaces what another process has put there
        except OSError:
            pass  # it is there already, or MLflow itself will say what is wrong with this place
        finally:
            copy.unlink(missing_ok=True)
