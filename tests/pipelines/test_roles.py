"""A model is only scored where its item indices mean the items it was trained on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from featurize.vocabularies import hash_of
from infra.errors import UsageError
from pipelines.roles import require_vocabulary
from train import artifact
from train.configs import PopularityConfig


def saved(path: Path, keys: list[str]) -> Path:
    """A popularity model over these items, which have the indices from 2 on."""
    indices = pa.array(range(2, 2 + len(keys)), pa.int32())
    vocabulary = pa.table({"field": ["__item__"] * len(keys), "index": indices, "key": keys})
    config = PopularityConfig()
    artifact.save(
        path,
        artifact.build(config, 2 + len(keys), ()),
        config,
        lineage={},
        vocabulary_hash=hash_of(vocabulary),
        metrics={},
        catalogue=2 + len(keys),
        vocabulary=vocabulary,
    )
    return path


def test_a_vocabulary_that_has_grown_is_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "m", ["ant", "bee", "cow"])
    require_vocabulary(path, ["ant", "bee", "cow"])
    require_vocabulary(path, ["ant", "bee", "cow", "doe"])


@pytest.mark.parametrize("today", [["ant", "cow", "bee"], ["ant", "bee"], ["ant", "bee", "cod", "doe"], []])
def test_another_one_is_refused(tmp_path: Path, today: list[str]) -> None:
    path = saved(tmp_path / "m", ["ant", "bee", "cow"])
    with pytest.raises(UsageError, match="another item vocabulary"):
        require_vocabulary(path, today)
