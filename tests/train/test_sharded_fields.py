"""Ranking models whose fields' values are one table over several ranks.

Shapes: B samples, V rows of the table.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from tests.train import sharded_runs
from tests.train.models.contract import FIELDS, impressions, seeded
from tests.train.sharded_ranks import on_ranks
from tests.train.sharded_runs import CPU, TOLD_OF_RANKING, trained
from tests.train.tables import write_samples
from tests.train.test_item_table import Answer, of, whole
from tests.train.test_loop import job
from tests.train.test_trainer import request_for
from train import checkpoint, trainer, validation
from train.artifact import build
from train.fields import blocks_of, rows_of
from train.job import Job, opened
from train.ranking_configs import AsymDiffRecConfig, CDAEConfig, DCNv2Config, DINConfig, DNNConfig, FinalMLPConfig
from train.settings import TrainingSettings
from train.sharded import ShardedTable, sharded_tables

SMALL = {"embedding_width": 4, "hidden": (8,)}
DNN = DNNConfig(**SMALL, dropout=0)
DIN = DINConfig(**SMALL, dropout=0, behaviour="tags", target="colour")
NOISY = AsymDiffRecConfig(base=DNNConfig(**SMALL, dropout=0.5), hidden=8)
VERSIONS = {"samples": 0, "fields": 0}
SIZES = (9, 0, 9, 4)
"""Of colour, price, tags and shop: 22 rows, or 13 where colour and tags share theirs."""


def rows(count: int, seed: int) -> list[dict]:
    """Label and price say something of the colour; some cells are empty, some lists have no value."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        colour, label = int(rng.integers(1, 9)), int(rng.integers(2))
        missing = int(rng.integers(16)) & int(rng.integers(16))
        row = {
            "f_colour": 2 + colour % 3 + 3 * label if colour > 2 else colour,
            "f_price": float(label + rng.normal()),
            "f_tags": rng.integers(1, 9, int(rng.integers(4))).tolist(),
            "f_shop": int(rng.integers(1, 4)),
        }
        gone = {name: None for bit, name in enumerate(row) if missing >> bit & 1}
        found.append({**row, **gone, "label": label, "missing": missing})
    return found


def fields_job(root: Path, model: train.ModelConfig = DNN, run: str = "run", **settings) -> Job:
    """Four epochs of three steps; nine samples to validate, so that one of two ranks has one batch less."""
    if not (root / "samples").exists():
        write_samples(root, rows(24, 1) + [{**row, "split": "valid"} for row in rows(9, 2)], SIZES)
    what = job(root, model, run, **{"sharded": True, "table_learning_rate": 0.1, **settings})
    return replace(what, versions=VERSIONS, catalogue=None)


@pytest.fixture(scope="module")
def two(root: Path) -> list[Answer]:
    """What two ranks found in all the runs."""
    runs = [
        ("dnn", False, fields_job(root, DNN, "dnn"), 0),
        ("din", False, fields_job(root, DIN, "din"), 0),
        ("straight", False, fields_job(root, NOISY, "straight"), 0),
        ("killed", False, fields_job(root, NOISY, "killed"), 2),
        ("resumed", False, fields_job(root, NOISY, "killed"), 0),
    ]
    return on_ranks(2, root / "ranks", sharded_runs.several, runs)


@pytest.mark.parametrize(("name", "model", "table"), [("dnn", DNN, 22), ("din", DIN, 13)])
class TestTwoRanks:
    def test_train_what_one_trains(self, root, two, name, model, table):
        alone = trained(0, 1, fields_job(root, model, f"{name}-alone"))
        one = [{f"{name}/{key}": value for key, value in alone.items()}]
        torch.testing.assert_close(two[0][f"{name}/loss"], one[0][f"{name}/loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(whole(two, name), whole(one, name), rtol=1e-4, atol=1e-5)
        assert len(whole(two, name)) == table
        assert two[0][f"{name}/loss"][-1] < two[0][f"{name}/loss"][0]

    def test_validate_what_the_whole_model_scores(self, root, two, name, model, table):
        with opened(fields_job(root, model), 0, 1) as splits:
            dense = build(model, None, splits.fields)
            parameters = {key: value for key, value in of(two[0], name).items() if key in dense.state_dict()}
            dense.load_state_dict({**parameters, "fields.table.weight": whole(two, name)})
            expected = validation.validate(dense, splits.valid, TrainingSettings(batch_size=8), 0, 1, CPU)[1]
        for answer in two:
            assert answer[f"{name}/valid_log_loss"][-1].item() == pytest.approx(expected, rel=1e-6)


def test_two_ranks_resume_bit_for_bit(two):
    for answer in two:
        straight, killed, resumed = (of(answer, name) for name in ("straight", "killed", "resumed"))
        for name in TOLD_OF_RANKING:
            assert torch.equal(torch.cat([killed[name], resumed[name]]), straight[name])
        for name in straight.keys() - {*TOLD_OF_RANKING, "tables"}:
            assert torch.equal(straight[name], resumed[name]), name


@pytest.mark.parametrize(
    "config",
    [
        DNN, DCNv2Config(**SMALL, dropout=0), FinalMLPConfig(**SMALL, second=(8,), dropout=0),
        AsymDiffRecConfig(base=DNN, hidden=8), CDAEConfig(base=DNN),
    ],
    ids=lambda config: config.model,
)  # fmt: skip
def test_a_sharded_table_answers_and_learns_as_the_whole_one(config):
    torch.manual_seed(0)
    whole_model = build(config, None, FIELDS)
    table = ShardedTable(rows_of(blocks_of(FIELDS)), SMALL["embedding_width"])
    sharded = build(config, None, FIELDS, table)
    name, *others = sharded_tables(sharded)
    assert not others
    sharded.load_state_dict(whole_model.state_dict())
    batch = impressions(16)
    torch.testing.assert_close(sharded.logits(batch), whole_model.logits(batch))
    for model in (whole_model, sharded):
        model.loss(batch, seeded()).total.backward()
    expected = dict(whole_model.named_parameters())
    for parameter, value in sharded.named_parameters():
        grad = value.grad.to_dense() if parameter == name else value.grad
        torch.testing.assert_close(grad, expected[parameter].grad, msg=parameter)


def test_the_artifact_has_the_whole_table_of_the_best_validation(tmp_path, monkeypatch):
    scores = iter([0.7, 0.5, 0.6, 0.6])
    monkeypatch.setattr("train.loop.validate", lambda *args: ("valid_log_loss", next(scores)))
    seen = {}
    monkeypatch.setattr(trainer, "_run_workers", lambda what, use_gpu, tracker: seen.update(trained(0, 1, what)))
    monkeypatch.setattr(trainer, "require_resources", lambda settings: False)
    fields_job(tmp_path)
    request = replace(request_for(tmp_path, NOISY, sharded=True, epochs=4), versions=VERSIONS)
    assert trainer.fit(request, tmp_path / "m", tmp_path / "runs")["best_epoch"] == 2
    last = checkpoint.latest_valid(checkpoint.candidates(tmp_path / "runs" / "run"))[1]
    assert not [name for name in last.body.model if "table" in name]
    loaded = train.load(tmp_path / "m").model
    assert torch.equal(loaded.base.fields.table.weight, seen["tables"][1])
    assert not torch.equal(seen["tables"][1], seen["tables"][3])


def test_numbers_alone_need_no_table(tmp_path):
    """A model of numeric fields: nothing to look up."""
    numbers = [spec for spec in FIELDS if spec.kind == "numeric"]
    model = build(DNN, None, numbers)
    assert model.fields.table.weight.shape == (0, 4)
    batch = impressions(4)
    alone = replace(batch, categorical_BF=batch.categorical_BF[:, :0], multi=(), missing_BN=batch.missing_BN[:, :1])
    assert model.logits(alone).shape == (4,)
    model.loss(alone, seeded()).total.backward()
