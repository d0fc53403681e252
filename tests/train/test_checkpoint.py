"""A checkpoint is complete or refused, and gives back exactly what was saved."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from infra.errors import ArtifactError
from train import checkpoint
from train.checkpoint import Body, TrainState


def state(**changes) -> TrainState:
    values = {
        "epoch": 3, "step": 12, "stage": "main", "finished": False, "world": 1, "config_hash": "abc",
        "input_versions": {"sequences": 4}, "best_metric": 0.25, "best_epoch": 2, "bad_validations": 1,
        "seconds": 1.5, "train_seconds": 1.0, "examples": 30,
    }  # fmt: skip
    return TrainState(**{**values, **changes})


def rewrite_state(path: Path, version: int, **changes) -> None:
    """Seal the checkpoint anew, of another version and with other fields; None takes one out."""
    (path / checkpoint.MANIFEST).unlink()
    raw = {**json.loads((path / "state.json").read_text()), **changes}
    checkpoint.write_json(path / "state.json", {k: v for k, v in raw.items() if v is not None})
    checkpoint.write_manifest(path, checkpoint.CHECKPOINT_FORMAT, version)


def nothing() -> None:
    pass


def write(path: Path, **changes) -> Path:
    generator = torch.Generator().manual_seed(7)
    body = Body(
        state=state(**changes),
        model={"w": torch.tensor([[1.0, 2.0]]), "count": torch.tensor(3)},
        optimizer={"exp_avg.w": torch.tensor([[0.1, 0.2]])},
        best={"w": torch.tensor([[5.0, 6.0]]), "count": torch.tensor(2)},
    )
    checkpoint.save(path, 0, {"generator": generator.get_state()}, body, nothing)
    return path


def test_what_was_saved_comes_back(tmp_path):
    loaded = checkpoint.load(write(tmp_path / "c"))
    assert loaded.body.state == state()
    assert loaded.body.model["w"].tolist() == [[1.0, 2.0]]
    assert loaded.body.model["count"].item() == 3
    assert loaded.body.best["w"].tolist() == [[5.0, 6.0]]
    assert loaded.body.optimizer["exp_avg.w"].tolist() == [[torch.tensor(0.1).item(), torch.tensor(0.2).item()]]
    generator = torch.Generator()
    generator.set_state(loaded.rng[0]["generator"])
    expected = torch.rand(3, generator=torch.Generator().manual_seed(7))
    assert torch.equal(torch.rand(3, generator=generator), expected)


def test_the_history_of_validations_comes_back(tmp_path):
    history = [{"epoch": 1, "valid_ndcg_20": 0.125, "embedding_isotropy": 0.5}]
    assert checkpoint.load(write(tmp_path / "c", validations=history)).body.state.validations == history


def test_the_version_before_is_read(tmp_path):
    path = write(tmp_path / "c")
    rewrite_state(path, version=2, validations=None, peak_memory_bytes=None)
    assert checkpoint.load(path).body.state == state()


@pytest.mark.parametrize("changes", [{"epoch": None}, {"input_versions": None}, {"colour": 1}])
def test_fields_that_are_not_those_of_the_state(tmp_path, changes):
    path = write(tmp_path / "c")
    rewrite_state(path, version=3, **changes)
    with pytest.raises(ArtifactError, match=r"state\.json: not the fields of format version 3"):
        checkpoint.load(path)


def test_the_manifest_is_the_last_file_and_waits_for_every_rank(tmp_path):
    class KilledError(Exception):
        pass

    def barrier() -> None:
        raise KilledError

    body = Body(state(), {"w": torch.zeros(1)}, {}, {})
    with pytest.raises(KilledError):
        checkpoint.save(tmp_path / "c", 0, {}, body, barrier)
    with pytest.raises(ArtifactError, match=r"incomplete.*no MANIFEST\.json"):
        checkpoint.load(tmp_path / "c")


def test_every_rank_has_its_own_random_state(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, 1, {"generator": torch.tensor([1], dtype=torch.uint8)}, None, nothing)
    body = Body(state(world=2), {}, {}, {})
    checkpoint.save(path, 0, {"generator": torch.tensor([0], dtype=torch.uint8)}, body, nothing)
    assert [r["generator"].item() for r in checkpoint.load(path).rng] == [0, 1]


NAMES = ("model.safetensors", "optimizer.safetensors", "best.safetensors", "rng-00000.safetensors", "state.json")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named(tmp_path, name):
    file = write(tmp_path / "c") / name
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: its SHA-256"):
        checkpoint.load(tmp_path / "c")
    file.write_bytes(data[:-3])
    with pytest.raises(ArtifactError, match=rf"{name}: \d+ bytes, the manifest says"):
        checkpoint.load(tmp_path / "c")
    file.unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: missing"):
        checkpoint.load(tmp_path / "c")


def test_links_and_strangers_are_refused(tmp_path):
    path = write(tmp_path / "c")
    (path / "extra.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"extra\.bin: not in the manifest"):
        checkpoint.load(path)
    (path / "extra.bin").unlink()
    (path / "model.safetensors").rename(tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not a regular file"):
        checkpoint.load(path)


def edit_manifest(path: Path, **changes) -> None:
    file = path / checkpoint.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", "MANIFEST.json", ".hidden", ""])
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = write(tmp_path / "c")
    edit_manifest(path, files={name: {"size": 1, "sha256": "0"}})
    with pytest.raises(ArtifactError, match="not a plain file name"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "format"),
        ({"format": "logs2rec-model"}, "format"),
        ({"files": ["state.json"]}, "no list of files"),
    ],
)
def test_another_format_is_refused(tmp_path, changes, message):
    path = write(tmp_path / "c")
    edit_manifest(path, **changes)
    with pytest.raises(ArtifactError, match=message):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_manifest_that_is_no_json_object(tmp_path, text):
    path = write(tmp_path / "c")
    (path / checkpoint.MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="JSON"):
        checkpoint.load(path)


def test_candidates_are_newest_first_and_the_newest_valid_one_wins(tmp_path):
    for *place, attempt in ((1, 7, 5), (2, 0, 5), (2, 0, 9), (10, 0, 5)):
        write(tmp_path / checkpoint.directory_name(*place, attempt), epoch=place[0], seconds=float(attempt))
    (tmp_path / "epoch-000099-5.txt").write_text("no directory")
    paths = checkpoint.candidates(tmp_path)
    assert [checkpoint.place_of(p) for p in paths] == [[10, 0, 5], [2, 0, 9], [2, 0, 5], [1, 7, 5]]
    (paths[0] / "MANIFEST.json").unlink()
    (paths[1] / "state.json").write_text("{}")
    path, loaded = checkpoint.latest_valid(paths)
    assert (path, loaded.body.state.epoch, loaded.body.state.seconds) == (paths[2], 2, 5.0)
    assert checkpoint.latest_valid([]) is None
    assert checkpoint.candidates(tmp_path / "nowhere") == []


def test_one_that_cannot_be_read_costs_only_itself(tmp_path, monkeypatch, caplog):
    older, newer = (write(tmp_path / checkpoint.directory_name(epoch, 0, 5)) for epoch in (1, 2))
    digest = checkpoint.file_digest

    def failing(path: Path) -> str:
        if path.parent == newer:
            raise OSError(5, "Input/output error", str(path))
        return digest(path)

    monkeypatch.setattr(checkpoint, "file_digest", failing)
    assert checkpoint.latest_valid(checkpoint.candidates(tmp_path))[0] == older
    assert f"not readable, trying the one before: {newer}: [Errno 5] Input/output error" in caplog.text


def test_a_newer_programs_checkpoint_is_not_given_up(tmp_path):
    older, newer = (write(tmp_path / checkpoint.directory_name(epoch, 0, 5)) for epoch in (1, 2))
    edit_manifest(newer, format_version=checkpoint.FORMAT_VERSION + 1)
    with pytest.raises(ArtifactError, match=rf"continue with the program that wrote it, or move {newer} away"):
        checkpoint.latest_valid(checkpoint.candidates(tmp_path))
    edit_manifest(newer, format_version=1)
    assert checkpoint.latest_valid(checkpoint.candidates(tmp_path))[0] == older


def test_what_is_set_aside_keeps_its_files(tmp_path):
    older, newer = (write(tmp_path / checkpoint.directory_name(epoch, 0, 5)) for epoch in (1, 2))
    checkpoint.set_aside_beyond(tmp_path, checkpoint.place_of(older))
    assert checkpoint.latest_valid([newer, older])[0] == older
    (newer / checkpoint.SET_ASIDE).rename(newer / checkpoint.MANIFEST)
    assert checkpoint.latest_valid([newer, older])[0] == newer


def test_what_cannot_be_set_aside_is_named(tmp_path):
    path = write(tmp_path / checkpoint.directory_name(1, 0, 5))
    (path / checkpoint.SET_ASIDE).mkdir()
    with pytest.raises(ArtifactError, match=rf"{path}: not usable, and cannot be set aside .*; move it away"):
        checkpoint.set_aside_beyond(tmp_path, [0, 0, 0])


def test_an_optimizer_continues_bit_for_bit(tmp_path):
    def made() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(1)
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)

    def steps(model: nn.Linear, optimizer: torch.optim.AdamW, inputs: range) -> None:
        for i in inputs:
            optimizer.zero_grad()
            model(torch.full((1, 3), float(i))).square().sum().backward()
            optimizer.step()

    straight, straight_optimizer = made()
    steps(straight, straight_optimizer, range(6))
    first, first_optimizer = made()
    steps(first, first_optimizer, range(3))
    names = ["weight", "bias"]
    tensors = checkpoint.named({name: first_optimizer.state[p] for name, p in first.named_parameters()})
    assert set(tensors) == {f"{slot}.{name}" for slot in ("step", "exp_avg", "exp_avg_sq") for name in names}
    body = Body(state(), dict(first.state_dict()), tensors)
    checkpoint.save(tmp_path / "c", 0, {}, body, nothing)

    loaded = checkpoint.load(tmp_path / "c").body
    second, second_optimizer = made()
    second.load_state_dict(loaded.model)
    for name, slots in checkpoint.by_parameter(loaded.optimizer, names).items():
        second_optimizer.state[second.get_parameter(name)] = slots
    steps(second, second_optimizer, range(3, 6))
    assert torch.equal(straight.weight, second.weight)
    assert torch.equal(straight.bias, second.bias)
    with pytest.raises(ArtifactError, match="belongs to no trained parameter"):
        checkpoint.by_parameter(loaded.optimizer, ["weight", "other"])


def test_no_number_that_json_does_not_know(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "c", best_metric=float("nan"))
    assert not (tmp_path / "c" / checkpoint.MANIFEST).exists()
