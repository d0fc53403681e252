"""Model artifacts: what is saved comes back; what is altered, foreign or lying is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from infra.errors import ArtifactError
from infra.tables import Kind
from train import artifact, checkpoint
from train.configs import AsymDiffRecConfig, DNNConfig, SASRecConfig
from train.protocol import FieldSpec, RankingBatch, SequenceBatch

CONFIG = SASRecConfig(width=4, blocks=1, heads=1, max_length=3)
CATALOGUE = 6
VOCABULARY = pa.table(
    {"field": ["__item__"] * 4, "index": pa.array([2, 3, 4, 5], pa.int32()), "key": ["a", "b", "c", "d"]}
)


def made(path: Path, seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = artifact.build(CONFIG, CATALOGUE, ())
    about = {
        "lineage": {"sequences": 3}, "vocabulary_hash": "ffee", "metrics": {"epochs": 2, "valid_metric": 0.5},
        "catalogue": CATALOGUE, "vocabulary": VOCABULARY,
    }  # fmt: skip
    artifact.save(path, model, CONFIG, **{**about, **changes})
    return model


def reseal(path: Path) -> None:
    """A manifest that agrees with whatever is there now."""
    (path / "MANIFEST.json").unlink()
    checkpoint.write_manifest(path, artifact.ARTIFACT_FORMAT, artifact.FORMAT_VERSION)


def edit(path: Path, **changes) -> None:
    file = path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    reseal(path)


def test_a_sequence_model_comes_back(tmp_path):
    model = made(tmp_path / "m").eval()
    loaded = train.load(tmp_path / "m")
    assert (loaded.kind, loaded.config, loaded.catalogue, loaded.fields) == ("sequence", CONFIG, 6, ())
    assert (loaded.lineage, loaded.vocabulary_hash) == ({"sequences": 3}, "ffee")
    assert loaded.metrics == {"epochs": 2, "valid_metric": 0.5}
    assert loaded.vocabulary.equals(VOCABULARY)
    assert not loaded.model.training
    batch = SequenceBatch.left_padded(torch.tensor([[0, 2, 3], [4, 5, 2]]))
    answers = [m.user_vectors(batch, None, torch.Generator()) for m in (model, loaded.model)]
    assert torch.equal(*answers)
    assert torch.equal(model.item_table(), loaded.model.item_table())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_ranking_model_comes_back(tmp_path):
    fields = (
        FieldSpec("a", Kind.CATEGORICAL, 5),
        FieldSpec("b", Kind.NUMERIC, 0, 0.5, 2.0, 0.1),
        FieldSpec("c", Kind.MULTI, 4),
    )
    config = AsymDiffRecConfig(base=DNNConfig(embedding_width=2, hidden=(3,)), hidden=4)
    model = artifact.build(config, None, fields)
    artifact.save(tmp_path / "m", model, config, lineage={"samples": 1}, vocabulary_hash="", metrics={}, fields=fields)
    loaded = artifact.load(tmp_path / "m")
    assert (loaded.kind, loaded.config, loaded.fields) == ("ranking", config, fields)
    assert (loaded.catalogue, loaded.vocabulary) == (None, None)
    batch = RankingBatch(
        torch.tensor([[2], [4]]), torch.tensor([[1.0], [0.0]]), (torch.tensor([[2, 3], [0, 2]]),),
        torch.tensor([[False, False, False], [False, True, False]]), torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(model.eval().logits(batch), loaded.model.logits(batch))


def test_the_same_model_again_is_left_alone(tmp_path):
    made(tmp_path / "m")
    before = (tmp_path / "m" / "model.json").stat()
    made(tmp_path / "m", metrics={"epochs": 2, "seconds": 99.0})
    assert (tmp_path / "m" / "model.json").stat().st_mtime_ns == before.st_mtime_ns
    assert train.load(tmp_path / "m").metrics["valid_metric"] == 0.5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_another_model_is_never_written_over(tmp_path):
    kept = made(tmp_path / "m")
    for changes in ({"seed": 1}, {"lineage": {"sequences": 4}}, {"vocabulary": None}):
        with pytest.raises(ArtifactError, match="never overwritten"):
            made(tmp_path / "m", **changes)
    assert torch.equal(train.load(tmp_path / "m").model.item_table(), kept.item_table())


def test_an_incomplete_one_is_replaced(tmp_path):
    made(tmp_path / "m")
    (tmp_path / "m" / "MANIFEST.json").unlink()
    (tmp_path / "m" / "model.json").unlink()
    with pytest.raises(ArtifactError, match="incomplete"):
        train.load(tmp_path / "m")
    made(tmp_path / "m", seed=1)
    assert train.load(tmp_path / "m").catalogue == 6


def test_a_directory_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="no artifact of ours"):
        made(tmp_path / "m")
    assert (tmp_path / "m" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "vocabulary.parquet"])
def test_an_altered_file_is_named(tmp_path, name):
    made(tmp_path / "m")
    file = tmp_path / "m" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: its SHA-256"):
        train.load(tmp_path / "m")


def test_files_beyond_the_format_are_refused_even_with_a_manifest_for_them(tmp_path):
    made(tmp_path / "m")
    (tmp_path / "m" / "model.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.pt: not in the manifest"):
        train.load(tmp_path / "m")
    reseal(tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"model\.pt: no part of a model artifact"):
        train.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format version"),
        ({"surprise": 1}, "surprise"),
        ({"kind": "ranking"}, "config"),
        ({"kind": ["sequence"]}, "kind: .* 'sequence' or 'ranking'"),
        ({"config": {"model": "sasrec", "surprise": 1}}, "surprise"),
        ({"config": {"model": "os.system"}}, "config"),
        ({"config": []}, "config: .* dictionary"),
        ({"config": CONFIG.model_dump() | {"width": 8}}, "tensor .* is .* asks for"),
        ({"config": CONFIG.model_dump() | {"blocks": 2}}, "tensor .* is missing"),
        ({"catalogue": 7}, r"tensor .*\[6, 4\].* asks for .*\[7, 4\]"),
        ({"catalogue": 10**12}, "catalogue: .* less than"),
        ({"catalogue": None}, "needs the size of the catalogue"),
        ({"fields": [{"name": "x", "kind": "sound"}]}, "fields"),
        ({"fields": [{"kind": "numeric"}]}, "fields"),
        ({"lineage": None}, "lineage: .* dictionary"),
    ],
)
def test_a_description_that_lies_is_refused(tmp_path, changes, message):
    made(tmp_path / "m")
    edit(tmp_path / "m", **changes)
    with pytest.raises(ArtifactError, match=message):
        train.load(tmp_path / "m")


def test_a_lying_tensor_header_is_refused(tmp_path):
    made(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    data = file.read_bytes()
    for wrong in (
        (2**60).to_bytes(8, "little") + data[8:],  # a header longer than the file
        data[:-4],  # fewer bytes than the header says
        data + b"\0" * 4,
        b"",
        b"\x80\x04K\x01.",  # a pickle
    ):
        file.write_bytes(wrong)
        reseal(tmp_path / "m")
        with pytest.raises(ArtifactError, match=r"model\.safetensors: not a valid safetensors file"):
            train.load(tmp_path / "m")


def test_tensors_are_never_cast(tmp_path):
    made(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    save_file({k: v.double() for k, v in load_file(file).items()}, file)
    reseal(tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"float64.*asks for .*float32"):
        train.load(tmp_path / "m")


def test_a_vocabulary_of_other_columns_is_refused(tmp_path):
    made(tmp_path / "m")
    pq.write_table(VOCABULARY.drop(["key"]), tmp_path / "m" / "vocabulary.parquet")
    reseal(tmp_path / "m")
    with pytest.raises(ArtifactError, match=r"vocabulary\.parquet: its columns"):
        train.load(tmp_path / "m")


def test_a_folder_name_with_an_equals_sign_adds_no_column(tmp_path):
    made(tmp_path / "date=2024-03-02")
    assert train.load(tmp_path / "date=2024-03-02").vocabulary.column_names == ["field", "index", "key"]


def test_importing_the_package_does_not_import_torch():
    code = "import sys, train, train.settings; assert callable(train.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_copy_is_whole_or_not_there(tmp_path):
    made(tmp_path / "m")
    copied = tmp_path / "in" / "copy"
    for _ in range(2):
        artifact.copy(tmp_path / "m", copied)
        assert artifact.is_complete(copied)
    assert [p.name for p in copied.parent.iterdir()] == ["copy"]
    (copied / "MANIFEST.json").unlink()
    assert not artifact.is_complete(copied)
    artifact.copy(tmp_path / "m", copied)
    assert artifact.is_complete(copied)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: 0 bytes"):
        artifact.copy(tmp_path / "m", tmp_path / "in" / "other")
    assert [p.name for p in copied.parent.iterdir()] == ["copy"]
