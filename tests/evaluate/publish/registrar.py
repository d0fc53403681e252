"""A process that registers builds: `python -m tests.evaluate.publish.registrar URI WORKSPACE ARTIFACT NAME BUILD...`

It waits for the file WORKSPACE/go where WORKSPACE/wait is there. With DIE_AT=method in its environment it kills itself,
as SIGKILL would, where it is about to call that method of MLflow's client; with DIE_AFTER=method, when it has done so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from evaluate.publish.package import package
from evaluate.publish.registry import CHALLENGER, Registry, Upload, registry
from evaluate.settings import TrackingSettings


def upload_of(artifact: Path) -> Upload:
    packed = package(artifact)
    return Upload(
        artifact=artifact, code=packed.code, signature=packed.signature, example=packed.example,
        params={"a": 1}, metrics={"b": 1.0}, tags={"logs2rec.role": "test"}, files={},
    )  # fmt: skip


def dies(store: Registry, method: str, after: bool) -> None:
    """From now on the process is killed at that call."""
    real = getattr(store.client, method)

    def killed(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(store.client, method, killed)


def main(uri: str, workspace: Path, artifact: Path, name: str, builds: list[str]) -> None:
    upload = upload_of(artifact)
    while (workspace / "wait").exists() and not (workspace / "go").exists():
        time.sleep(0.01)
    with registry(TrackingSettings(uri=uri), workspace, "demo") as store:
        store.lease = float(os.environ.get("LEASE", store.lease))
        for when in ("DIE_AT", "DIE_AFTER"):
            if when in os.environ:
                dies(store, os.environ[when], when == "DIE_AFTER")
        found = {}
        for build in builds:
            found[build] = store.register(name, build, upload)
            store.move_alias(name, CHALLENGER, found[build][0])
    print(json.dumps({"store": store.identity(), "found": found}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5:])
