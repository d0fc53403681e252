"""What lists miss that a ranking model never learned to miss: a real artifact and table."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurize.contract import Contract
from infra.errors import UsageError
from infra.tables import Kind
from pipelines.scoring_tasks import unlearned_fields
from tests.featurize.warehouse import FORM
from tests.train.tables import AS_OF, write_samples
from train.artifact import build, save
from train.configs import ModelConfig
from train.protocol import FieldSpec
from train.ranking_configs import (
    AsymDiffRecConfig,
    ContrastiveConfig,
    DNNConfig,
    FeatureDropoutConfig,
    LatentDiffusionConfig,
)

DNN = DNNConfig(embedding_width=2, hidden=(3,))
#: The fields of tests.train.tables: colour and price belong to the event, tags to the item; shop is never missing.
SPECS = (
    FieldSpec("colour", Kind.CATEGORICAL, 6),
    FieldSpec("price", Kind.NUMERIC, 0, 0.5, 2.0, 0.2),
    FieldSpec("tags", Kind.MULTI, 9),
    FieldSpec("shop", Kind.CATEGORICAL, 4),
)
CONTRACT = Contract.model_validate(
    {
        **FORM,
        "label": {"column": "r", "at_least": 1},
        "items": {"path": "items.csv", "format": "csv", "key": "id"},
        "fields": [
            {"name": "colour", "kind": "categorical"},
            {"name": "price", "kind": "numeric"},
            {"name": "tags", "kind": "multi", "source": "items"},
            {"name": "shop", "kind": "categorical", "source": "time", "column": "hour"},
        ],
    }
)


def unlearned(root: Path, config: ModelConfig, specs: tuple[FieldSpec, ...] = SPECS) -> list[str]:
    lake = write_samples(root, [{"f_colour": 2, "label": 0, "missing": 14}])
    model = build(config, None, specs)
    save(root / "model", model, config, lineage={}, vocabulary_hash="", metrics={}, fields=specs)
    return unlearned_fields(root / "model", lake, CONTRACT, {"fields": 0}, AS_OF)


def test_fields_of_the_event_that_training_never_missed(tmp_path: Path) -> None:
    assert unlearned(tmp_path, DNN) == ["colour", "shop"]


def test_a_model_that_drops_fields_in_training_knows_them(tmp_path: Path) -> None:
    assert unlearned(tmp_path / "dropout", FeatureDropoutConfig(base=DNN)) == []
    assert unlearned(tmp_path / "ours", AsymDiffRecConfig(base=DNN)) == []


@pytest.mark.parametrize(
    "config",
    [LatentDiffusionConfig(base=DNN), ContrastiveConfig(base=DNN), AsymDiffRecConfig(base=DNN, drop_by="missing_rate")],
    ids=lambda config: config.model,
)
def test_not_everything_around_a_base_meets_missing_fields(tmp_path: Path, config: ModelConfig) -> None:
    assert unlearned(tmp_path, config) == ["colour", "shop"]


def test_a_model_of_other_fields_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shop"):
        unlearned(tmp_path, DNN, SPECS[:3])
