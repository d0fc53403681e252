"""What a recipe may ask of a model's training, told when it is parsed."""

import pytest
from pydantic import ValidationError

from pipelines.recipe import RankingModelRun, SequenceModelRun

SHARDED = {"sharded": True, "workers": 2}
SAMPLED = {"model": "sasrec", "negatives": 8192}


@pytest.mark.parametrize("model", ["sasrec", "adrec"])
def test_a_table_can_be_sharded(model):
    run = SequenceModelRun.model_validate({"config": {"model": model, "negatives": 8192}, "training": SHARDED})
    assert (run.config.negatives, run.training.sharded) == (8192, True)


@pytest.mark.parametrize("config", [{"model": "din"}, {"model": "asymdiffrec", "base": {"model": "dcnv2"}}])
def test_a_table_of_values_can_be_sharded(config):
    assert RankingModelRun.model_validate({"config": config, "training": SHARDED}).training.sharded


@pytest.mark.parametrize(
    ("kind", "run", "message"),
    [
        (SequenceModelRun, {"config": {"model": "sasrec"}}, r"training\.sharded: config\.negatives is 0.*8192"),
        (SequenceModelRun, {"config": {"model": "popularity"}}, r"training\.sharded: model popularity learns no"),
        (RankingModelRun, {"config": {"model": "deepfm"}}, r"training\.sharded: deepfm has a second table"),
        (RankingModelRun, {"config": {"model": "cdae", "base": {"model": "deepfm"}}}, r"training\.sharded: deepfm has"),
        (SequenceModelRun, {"config": SAMPLED, "training": {"compile": True}}, "compile does not go with sharded"),
        (SequenceModelRun, {"config": SAMPLED, "training": {"ema": 0.99}}, "ema does not go with sharded"),
        (SequenceModelRun, {"config": SAMPLED, "training": {"start": "champion"}}, "start: champion does not go with"),
        (SequenceModelRun, {"config": {**SAMPLED, "negatives": -1}}, r"config\.sasrec\.negatives"),
        (
            SequenceModelRun,
            {"config": SAMPLED, "search": {"trials": 1, "space": {"config.negatives": {"choice": [0, 64]}}}},
            r"search\.space: config\.negatives=0.*training\.sharded: config\.negatives is 0",
        ),
    ],
)
def test_a_table_that_cannot_be_sharded(kind, run, message):
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        kind.model_validate({**run, "training": {**SHARDED, **run.get("training", {})}})
