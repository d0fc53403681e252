"""How the workers of a run find each other: through a file in the run's storage.

Ray's own torch backend opens torch's TCPStore, which listens on every interface of the machine. All
workers share the storage anyway (checkpoints lie there), so a file serves, and nothing listens.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend


@dataclass
class FileRendezvous(TorchConfig):
    """Ray's TorchConfig, with `folder` (visible to all workers) in the place of a TCP address."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that Ray starts on the controller."""
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Join the workers into one process group; every (re)start of the group has a file of its own."""
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        folder = Path(backend_config.folder)
        folder.mkdir(parents=True, exist_ok=True)
        store = folder / uuid.uuid4().hex
        worker_group.execute(_set_torch_distributed_env_vars)
        joined = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend or ("nccl" if gpus else "gloo"),
                world_rank=rank,
                world_size=len(worker_group),
                init_method=store.as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joined)
