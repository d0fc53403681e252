"""From a model's configuration to the model: one explicit map, imported only when a model is built."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from infra.config import Settings
from infra.errors import ConfigError

if TYPE_CHECKING:
    from train.protocol import FieldSpec, RankingModel, SequenceModel
    from train.table_shard import LargeTable

SEQUENCE_MODELS = {
    "popularity": "train.models.popularity:PopularityModel",
    "bigram": "train.models.bigram:BigramModel",
    "gru4rec": "train.models.gru4rec:GRU4Rec",
    "sasrec": "train.models.sasrec:SASRec",
    "adrec": "train.models.adrec:ADRec",
    "dreamrec": "train.models.dreamrec:DreamRec",
    "diffurec": "train.models.diffurec:DiffuRec",
    "comirec": "train.models.comirec:ComiRec",
    "mind": "train.models.mind:MIND",
    "dimerec": "train.models.dimerec:DimeRec",
}
RANKING_MODELS = {
    "dnn": "train.models.dnn:DNN",
    "dcnv2": "train.models.dcnv2:DCNv2",
    "deepfm": "train.models.deepfm:DeepFM",
    "finalmlp": "train.models.finalmlp:FinalMLP",
    "din": "train.models.din:DIN",
    "asymdiffrec": "train.models.asymdiffrec:AsymDiffRec",
    "feature_dropout": "train.models.feature_dropout:FeatureDropout",
    "cdae": "train.models.autoencoders:CDAE",
    "multvae": "train.models.autoencoders:MultVAE",
    "contrastive": "train.models.contrastive:Contrastive",
    "latent_diffusion": "train.models.latent_diffusion:LatentDiffusion",
}


def build_sequence(config: Settings, catalogue: int, items: LargeTable | None = None) -> SequenceModel:
    """The sequence model that `config.model` names, freshly initialised from torch's global generator.

    `catalogue` = V, rows of the item table, padding (0) and unknown (1) included. `items`: the table to use.
    Raises ConfigError for an unknown name.
    """
    given = () if items is None else (items,)
    return _find(config, SEQUENCE_MODELS)(config, catalogue, *given)


def build_ranking(config: Settings, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> RankingModel:
    """The ranking model that `config.model` names; `fields` in mask order, `table` of their values if not a fresh one.

    Raises ConfigError for an unknown name or for fields that no model can be built on.
    """
    given = () if table is None else (table,)
    return _find(config, RANKING_MODELS)(config, fields, *given)


def _find(config: Settings, models: dict[str, str]) -> Any:
    name = getattr(config, "model", None)
    if name not in models:
        raise ConfigError(f"model: unknown model {name!r} here; choose one of {', '.join(sorted(models))}")
    module, _, attribute = models[name].partition(":")
    return getattr(import_module(module), attribute)
