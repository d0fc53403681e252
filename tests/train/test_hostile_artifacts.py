"""Hostile artifacts (tests/train/hostile.py): each is refused with a typed error, and nothing in it is carried out."""

import pickle
import resource
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from infra.errors import ArtifactError
from infra.tables import Kind
from tests.train.hostile import CORPUS, FORMATS, Payload, pickled
from tests.train.test_artifact import made, reseal
from tests.train.test_checkpoint import write
from train import artifact, checkpoint
from train.configs import ModelConfig
from train.protocol import FieldSpec


@pytest.mark.parametrize("name", CORPUS)
def test_it_is_refused_and_nothing_runs(tmp_path, name):
    good, marker = tmp_path / "m", tmp_path / "marker"
    made(good)
    assert artifact.load(good).catalogue == 6
    CORPUS[name](good, marker)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError, match=str(good)):
        artifact.load(good)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
    assert not marker.exists()
    assert grown < 300 * 2**10, f"{grown} KiB were taken before it was refused"


def test_the_payload_does_harm_where_it_is_run(tmp_path):
    """Otherwise the test above proves nothing."""
    pickle.loads(pickled(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", FORMATS)
@pytest.mark.parametrize("slot", ["model", "optimizer", "best", "rng-00000", "state", "MANIFEST"])
def test_a_checkpoint_is_refused_too(tmp_path, slot, content):
    path, marker = tmp_path / "epoch-000001-00000000-1", tmp_path / "marker"
    write(path)
    name = next(file.name for file in path.iterdir() if file.stem == slot)
    (path / name).write_bytes(content(marker))
    if slot != "MANIFEST":
        (path / "MANIFEST.json").unlink()
        checkpoint.write_manifest(path, checkpoint.CHECKPOINT_FORMAT, checkpoint.FORMAT_VERSION)
    with pytest.raises(ArtifactError):
        checkpoint.load(path)
    assert checkpoint.latest_valid([path]) is None
    assert not marker.exists()


def test_what_hides_in_a_vocabularys_metadata_is_not_unpickled(tmp_path):
    """Arrow once unpickled extension types of this name by itself (CVE-2023-47248)."""
    good, marker = tmp_path / "m", tmp_path / "marker"
    made(good)
    hidden = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Payload(marker)),
    }
    key = pa.field("key", pa.string(), metadata=hidden)
    schema = pa.schema([("field", pa.string()), ("index", pa.int32()), key])
    pq.write_table(pa.table({"field": ["__item__"], "index": [2], "key": ["a"]}, schema), good / "vocabulary.parquet")
    reseal(good)
    assert artifact.load(good).vocabulary["key"].to_pylist() == ["a"]
    assert not marker.exists()


@pytest.mark.parametrize("config", get_args(ModelConfig), ids=lambda config: config.__name__)
def test_every_model_can_be_built_without_memory(config):
    """Shapes and types as they are; every weight that grows with catalogue, fields or settings is without memory."""
    fields = (
        FieldSpec("item", Kind.CATEGORICAL, 50),
        FieldSpec("price", Kind.NUMERIC, 0, 0.5, 2.0, 0.1),
        FieldSpec("history", Kind.MULTI, 50),
    )
    real = artifact.build(config(), 100, fields).state_dict()
    with torch.device("meta"):
        shapes = artifact.build(config(), 100, fields).state_dict()
    assert {name: (t.shape, t.dtype) for name, t in shapes.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
    assert {tensor.device.type for tensor in shapes.values()} == {"meta"}


def test_a_good_one_is_built_for_its_shapes_without_memory(tmp_path, monkeypatch):
    """The comparison of shapes comes before any weight is made."""
    devices = []
    real = artifact.build

    def build(*arguments):
        devices.append(torch.get_default_device().type)
        return real(*arguments)

    made(tmp_path / "m")
    monkeypatch.setattr(artifact, "build", build)
    artifact.load(tmp_path / "m")
    assert devices == ["meta", "cpu"]
