"""The Ray connection: a private local cluster, or a running one, for as long as a stage needs it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import Field

from infra.config import Settings
from infra.errors import EnvironmentProblem

#: What Ray's processes are told, unless the caller's environment says otherwise.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Ray 2.60 warns of a coming change unless one says that workers without a GPU keep seeing it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Reports wait for the controller's next look: at the default of 2 s short epochs are held up by it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker that does not even answer is given up after this; one that answers and makes no step is noticed by
    # the others (training.timeout_seconds). Ray waits for either before it restarts any.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "30",
    # Asking a group that has lost a worker to take leave of each other is in vain.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # Tune's tables on stdout, log files per trial, and its own Ctrl-C.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # An attempt to start workers on nodes that are no longer there ends after this, and Ray looks again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
# Ray replaces a 127.0.0.1 given by name with the machine's outward address, and then its servers listen
# on every interface. This switch (on by default on other systems) is the only one that prevents it.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
if sys.platform == "linux":
    LOOPBACK["GLOO_SOCKET_IFNAME"] = "lo"


class RaySettings(Settings):
    """Which Ray cluster to use."""

    address: str | None = None
    """Of a running cluster (host:port or 'auto'); null starts a private one on this machine."""
    cpus: int | None = Field(None, ge=1)
    """CPUs of the private cluster; null = all of this machine's."""
    object_store_mb: int = Field(200, ge=80)
    """Shared memory of the private cluster, MiB. Training data does not pass through it."""


@contextmanager
def cluster(settings: RaySettings) -> Iterator[None]:
    """A Ray connection inside the `with`; one that is already there is reused and left running.

    Raises EnvironmentProblem when the cluster cannot be reached or started.
    """
    private = settings.address is None
    with _environment({**QUIET, **(LOOPBACK if private else {})}):
        import ray

        if ray.is_initialized():
            yield
            return
        try:
            _start_private(settings) if private else _join(settings)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            what = "a private Ray cluster could not be started" if private else f"no Ray cluster at {settings.address}"
            raise EnvironmentProblem(f"{what} ({_first_line(error)}); see the setting ray.address") from error
        try:
            yield
        finally:
            ray.shutdown()


def _join(settings: RaySettings) -> None:
    import ray

    host, _, port = str(settings.address).rpartition(":")
    if port.isdigit():  # ray.init retries a dead address for minutes, and then ends the process
        socket.create_connection((host, int(port)), timeout=5).close()
    ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)


def _start_private(settings: RaySettings) -> None:
    import ray
    from ray._private import ray_constants

    several = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False  # the variable in LOOPBACK, for when ray was imported earlier
    try:
        ray.init(
            address="local",  # never a stranger's cluster that happens to run on this machine
            num_cpus=settings.cpus,
            object_store_memory=settings.object_store_mb * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = several


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set what the caller has not set; Ray's processes inherit it."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
