"""What a study has measured: one sealed folder per cell, named by its key.

cell.json       key parts in plain text, figures, cost, date, revision
users.parquet   a row per user in the order of the split's file: `user`, and every per-user metric as "set/metric";
                null where the set leaves the user out, or the user has no such figure
MANIFEST.json   sizes and hashes of the two

A folder is written under another name, synced and renamed: it is there whole or not at all. Of two studies that
make the same cell the first one's stays; with the same number of workers both get the same figures. No lock is needed
to read or to write.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.disk import sync
from infra.errors import ArtifactError
from infra.ledger import code_version
from pipelines.study_plan import Cell
from pipelines.workbench import Replication

FORMAT, VERSION = "logs2rec-study-cell", 1
_CELL, _USERS = "cell.json", "users.parquet"


class Cells:
    """The cells in a study's folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "cells"

    def path(self, cell: Cell) -> Path:
        """Where it stands, or will."""
        return self.folder / cell.key

    def has(self, cell: Cell) -> bool:
        """Whether it was measured; the files are not looked at."""
        return self.path(cell).is_dir()

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Its cell.json after checking every file; None if it was not measured. ArtifactError for a damaged one."""
        from train.checkpoint import read_json, verify

        path = self.path(cell)
        if not path.is_dir():
            return None
        try:
            verify(path, FORMAT, VERSION)
            return read_json(path / _CELL)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; remove {path}, and the cell is made again") from None

    def per_user(self, cells: Sequence[Cell], metric: str) -> NDArray[np.float64]:
        """Values (S, B) of "set/metric", a row per cell; without the users that have none.

        ArtifactError if the cells are not of the same users in the same order.
        """
        columns = [pq.ParquetFile(self.path(c) / _USERS).read(["user", metric]).drop_null() for c in cells]
        for cell, found in zip(cells[1:], columns[1:], strict=True):
            if not found["user"].equals(columns[0]["user"]):
                raise ArtifactError(f"{self.path(cell) / _USERS}: not the users of {self.path(cells[0])}")
        return np.stack([found[metric].to_numpy() for found in columns])

    def publish(self, cell: Cell, found: Replication) -> None:
        """Seal what was measured into place."""
        from train.checkpoint import write_json, write_manifest

        self.folder.mkdir(parents=True, exist_ok=True)
        written = self.folder / f".{cell.key}.{uuid.uuid4().hex}"
        written.mkdir()
        try:
            pq.write_table(_users(found), written / _USERS, compression="zstd")
            sync(written / _USERS)
            write_json(written / _CELL, _description(cell, found))
            write_manifest(written, FORMAT, VERSION)
            try:
                written.rename(self.path(cell))
            except OSError:
                if not self.has(cell):  # else another study was first
                    raise
            sync(self.folder)
        finally:
            shutil.rmtree(written, ignore_errors=True)


def _description(cell: Cell, found: Replication) -> dict[str, Any]:
    finite = {name: value for name, value in found.metrics.items() if np.isfinite(value)}
    return {
        "key": cell.key, "data": cell.data, "data_digest": cell.data_digest, "model": cell.settings.config.model,
        "seed": cell.seed, "parts": cell.parts, "figures": found.summary, "metrics": finite,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "code": code_version(), "cores": os.cpu_count(),
    }  # fmt: skip


def _users(found: Replication) -> pa.Table:
    """Metrics of every set on the users of the largest, which holds everybody."""
    everybody = max(found.users.values(), key=len)
    place = {user: number for number, user in enumerate(everybody)}
    columns = {"user": pa.array(everybody, pa.string())}
    for name, values in found.per_user.items():
        places = [place[user] for user in found.users[name.partition("/")[0]]]
        whole_B, there_B = np.zeros(len(everybody)), np.zeros(len(everybody), bool)
        whole_B[places], there_B[places] = values, ~np.isnan(values)
        columns[name] = pa.array(whole_B, mask=~there_B)
    return pa.table(columns)
