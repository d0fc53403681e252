"""Ranking models on the samples of a workspace: real tables, real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.cluster import RaySettings, cluster
from infra.config import read_yaml
from infra.errors import ConfigError, UsageError
from pipelines import workbench
from pipelines.progress import Progress
from pipelines.ranked import SETTINGS, replicate, settings_of, show
from pipelines.workbench import Replication
from tests.pipelines.commands import logs2rec
from tests.pipelines.test_planted_samples import workspace

SMALL = [
    "config.base.embedding_width=2", "config.base.hidden=[4]", "config.hidden=3", "training.epochs=2",
    "training.batch_size=16", "evaluation.missingness={rates: [0.5]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=2, object_store_mb=100)):
        yield


def carried_out(data: Path, kept: Path | None, *overrides: str, seed: int = 3) -> Replication:
    with Progress(2) as progress:
        return replicate("asymdiffrec", data, settings_of("asymdiffrec", [*SMALL, *overrides], seed), kept, progress)


@pytest.mark.usefixtures("ray_cluster")
def test_trained_once_and_evaluated_as_often_as_asked(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = carried_out(samples, tmp_path / "w", "planting.rate=0.3")
    summary = first.summary
    assert (summary["seed"], summary["epochs"], summary["training"]["workers"]) == (3, 2, 2)
    assert (summary["planting"]["rate"], summary["planting"]["seed"]) == (0.3, 3)
    assert summary["samples"] == {"train": 60, "valid": 60, "test": 60}
    assert {"as_planted", "at_random_50", "by_activity", "without_price"} <= set(summary)
    assert 0 <= summary["as_planted"]["auc"] <= 1
    assert first.users["at_random_50"].tolist() == sorted({f"u{i}" for i in range(12)})
    for name in ("as_planted/auc", "at_random_50/uauc", "at_random/auc_area"):
        assert np.nanmean(first.per_user[name]) == pytest.approx(first.metrics[name])
    assert "NaN" not in json.dumps(summary)
    show({"model": "asymdiffrec", "data": "here", **summary})

    other = carried_out(samples, tmp_path / "w", "planting.rate=0.6")
    assert other.summary["as_planted"] != summary["as_planted"]

    # Published: no training, no Ray, and the same figures.
    import train.trainer

    monkeypatch.setattr(train.trainer, "fit", None)
    monkeypatch.setattr(workbench, "cluster", None)
    again = carried_out(samples, tmp_path / "w", "planting.rate=0.3", "training.workers=1")
    assert again.metrics["at_random_50/auc"] == first.metrics["at_random_50/auc"]
    with pytest.raises(TypeError, match="not callable"):
        carried_out(samples, tmp_path / "w", "planting.rate=0.3", seed=4)


class TestSettings:
    @pytest.mark.parametrize("model", read_yaml(SETTINGS))
    def test_every_section_is_valid_and_takes_a_seed(self, model: str) -> None:
        settings = settings_of(model, seed=9)
        assert settings.evaluation.missingness is not None
        assert (settings.training.seed, settings.planting.seed, settings.evaluation.missingness.seed) == (9, 9, 9)

    def test_without_scenarios(self) -> None:
        assert settings_of("dnn", ["evaluation.missingness=null"], seed=9).evaluation.missingness is None

    def test_another_base(self) -> None:
        assert settings_of("asymdiffrec", ["config.base.model=dcnv2"]).config.base.model == "dcnv2"  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("planting.rate=1", r"ranked\.yaml: dnn: planting\.rate"),
            ("planting.pattern=by_night", r"planting\.pattern"),
            ("config.widht=3", r"config\.dnn\.widht"),
            ("training.start=champion", r"training\.start: a replication is one fresh run"),
            ("name=x", r"name: a replication is one fresh run"),
        ],
    )
    def test_what_is_refused(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            settings_of("dnn", [override])

    def test_a_model_without_a_section(self) -> None:
        with pytest.raises(UsageError, match="choose one of dnn, dcnv2"):
            settings_of("sasrec")


class TestCommand:
    def test_a_model_that_is_none(self, samples: Path) -> None:
        done = logs2rec("replicate", "--model", "asymdiffrek", "--data", samples, "--json")
        assert done.code == 2
        assert "dimerec" in done.json["error"]
        assert "asymdiffrec" in done.json["error"]

    def test_one_seed(self, samples: Path) -> None:
        given = ("--seed", 1, "--set", "planting.seed=2")
        done = logs2rec("replicate", "--model", "dnn", "--data", samples, "--json", *given)
        assert done.code == 2
        assert "--set planting.seed=2: --seed 1 says it for all" in done.json["error"]

    def test_what_nobody_has_is_shown_as_a_dash(self, capsys: pytest.CaptureFixture[str]) -> None:
        figures = {"auc": None, "uauc": None, "log_loss": 0.5, "calibration_error": 0.1}
        about = {"model": "dnn", "data": "w", "users": 3, "seed": 0, "planting": {"rate": 0.0, "pattern": "at_random"}}
        trained = {"valid": {"log_loss": 0.5}, "best_epoch": 1, "epochs": 2, "train_seconds": 1.0}
        show({**about, "as_planted": figures, "at_random": {"auc_area": None, "uauc_area": None}, **trained})
        assert "at_random: area under AUC -, UAUC -" in capsys.readouterr().out

    def test_categories_are_of_lists_of_items(self, samples: Path) -> None:
        done = logs2rec("replicate", "--model", "dnn", "--data", samples, "--categories", "x", "--json")
        assert done.code == 2
        assert "--categories: dnn is a ranking model" in done.json["error"]

    def test_a_folder_without_samples(self, tmp_path: Path) -> None:
        done = logs2rec("replicate", "--model", "dnn", "--data", tmp_path, "--json")
        assert done.code == 2
        assert "no samples are published there" in done.json["error"]
