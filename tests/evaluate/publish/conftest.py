"""Small real artifacts and one real MLflow store (SQLite) for all tests of publishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from evaluate.publish.package import package
from evaluate.publish.registry import Registry, Upload, registry
from evaluate.settings import TrackingSettings
from infra.tables import Kind
from train import artifact
from train.configs import (
    AsymDiffRecConfig,
    BigramConfig,
    DimeRecConfig,
    DINConfig,
    DNNConfig,
    ModelConfig,
    PopularityConfig,
    SASRecConfig,
)
from train.protocol import FieldSpec
from train.ragged import Ragged

FIELDS = (
    FieldSpec("user", Kind.CATEGORICAL, 3),
    FieldSpec("item", Kind.CATEGORICAL, 6),
    FieldSpec("price", Kind.NUMERIC, 0, 2.0, 4.0, 0.1),
    FieldSpec("tags", Kind.MULTI, 5),
    FieldSpec("shop", Kind.CATEGORICAL, 2),
)
"""`shop` is a field of which no value has entered the vocabulary."""

KEYS = [
    *(("__item__", 2, "a"), ("__item__", 3, "b"), ("__item__", 4, "7"), ("__item__", 5, "d")),
    *(("user", 2, "ann"), ("tags", 2, "red"), ("tags", 3, "new"), ("tags", 4, "5")),
]
ITEMS = ["a", "b", "7", "d"]
COUNTS = [9.0, 9.0, 5.0, 4.0, 4.0, 1.0]
"""Of padding, unknown, a, b, 7 and d."""

CONFIGS: dict[str, ModelConfig] = {
    "popularity": PopularityConfig(),
    "bigram": BigramConfig(),
    "sasrec": SASRecConfig(width=4, blocks=1, heads=1, max_length=3),
    "dimerec": DimeRecConfig(width=4, max_length=3, hidden=8, steps=4, signal=1.0),
    "dnn": DNNConfig(embedding_width=3, hidden=(5,)),
    "din": DINConfig(embedding_width=3, hidden=(5,), attention=(4,)),
    "asymdiffrec": AsymDiffRecConfig(base=DNNConfig(embedding_width=3, hidden=(5,)), hidden=4),
}


def vocabulary(keys: list[tuple[str, int, str]]) -> pa.Table:
    field, index, key = zip(*keys, strict=True)
    return pa.table({"field": list(field), "index": pa.array(index, pa.int32()), "key": list(key)})


def save(path: Path, name: str, **changes: Any) -> Path:
    """An artifact of the model `name`, its weights large enough for answers to differ, too small to saturate."""
    torch.manual_seed(7)
    config = CONFIGS[name]
    about: dict[str, Any] = {"lineage": {"items": 1}, "vocabulary_hash": "ff", "metrics": {}}
    about |= {"catalogue": 6} if config.kind == "sequence" else {"fields": FIELDS}
    about |= {"vocabulary": vocabulary(KEYS[:4] if config.kind == "sequence" else KEYS), **changes}
    model: Any = artifact.build(config, about.get("catalogue"), about.get("fields", ()))
    if name == "popularity":
        model.counts_V1[:, 0] = torch.tensor(COUNTS[: about["catalogue"]])
    elif name == "bigram":
        chunks = Ragged(np.array([2, 4, 2, 4, 3, 2, 3, 3], np.int32), np.array([0, 8]))
        model.fit(chunks, chunks)
    else:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.4)
    artifact.save(path, model, config, **about)
    return path


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name of the model -> its artifact."""
    root = tmp_path_factory.mktemp("artifacts")
    return {name: save(root / f"{name}-0123", name) for name in CONFIGS if name != "din"}  # needs a history


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a blank and a number sign, which addresses tend to get wrong."""
    path = tmp_path_factory.mktemp("workspace") / "our work #1"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def store(workspace: Path) -> Iterator[Registry]:
    with registry(TrackingSettings(), workspace, "demo") as opened:
        yield opened


@pytest.fixture(scope="session")
def register(store: Registry, artifacts: dict[str, Path], workspace: Path) -> Callable[..., tuple[str, str]]:
    """register(name, build, model, **changes) -> (version, run id)."""
    recipe = workspace / "recipe.json"
    recipe.write_text('{"name": "demo"}')

    def go(name: str, build: str, model: str, **changes: Any) -> tuple[str, str]:
        packed = package(artifacts[model])
        about: dict[str, Any] = {
            "artifact": artifacts[model], "code": packed.code, "signature": packed.signature, "example": packed.example,
            "params": {"model.width": 4}, "metrics": {"uauc": 0.5}, "tags": {"logs2rec.role": "test"},
            "files": {"recipe": recipe},
        }  # fmt: skip
        return store.register(name, build, Upload(**{**about, **changes}))

    return go
