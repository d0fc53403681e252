"""The lazy map from names to models."""

import subprocess
import sys
import typing

import pytest

from infra.config import Settings
from infra.errors import ConfigError
from tests.train.models.contract import FIELDS
from train.configs import AsymDiffRecConfig, BigramConfig, DNNConfig, ModelConfig, PopularityConfig, SASRecConfig
from train.models import RANKING_MODELS, SEQUENCE_MODELS, build_ranking, build_sequence


class Unheard(Settings):
    model: str = "unheard"


def test_importing_the_map_imports_no_torch():
    code = "import sys, train.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_configuration_has_a_model_of_its_kind():
    for config in typing.get_args(ModelConfig):
        name = config.model_fields["model"].default
        assert (name in SEQUENCE_MODELS) == (config.kind == "sequence")
        assert (name in RANKING_MODELS) == (config.kind == "ranking")


def test_names_build_what_they_say():
    assert type(build_sequence(SASRecConfig(width=8, max_length=4), 10)).__name__ == "SASRec"
    assert type(build_sequence(PopularityConfig(), 10)).__name__ == "PopularityModel"
    assert type(build_sequence(BigramConfig(), 10)).__name__ == "BigramModel"
    assert type(build_ranking(DNNConfig(), FIELDS)).__name__ == "DNN"
    assert type(build_ranking(AsymDiffRecConfig(), FIELDS)).__name__ == "AsymDiffRec"


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'unheard'.*adrec, bigram, .*popularity, sasrec"):
        build_sequence(Unheard(), 10)
    with pytest.raises(ConfigError, match=r"'sasrec'.*asymdiffrec, .*dcnv2, deepfm, din, dnn, .*multvae"):
        build_ranking(SASRecConfig(), FIELDS)
