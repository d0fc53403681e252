"""The configurations of the ranking models, apart from the models so that a recipe validates without torch.

One frozen pydantic model per architecture; `model` is the discriminator. A field's documentation stands under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from train.architecture import Architecture, Layers, Steps, Width

Widths = Annotated[tuple[Width, ...], Field(min_length=1, max_length=64)]
"""Of the hidden layers of a perceptron; the last one is the width of what comes out."""


class FieldShape(Architecture):
    """Shape shared by the models over feature fields."""

    kind: ClassVar[str] = "ranking"
    embedding_width: Width = 16
    """Width of each field's vector."""
    hidden: Widths = (128, 64)
    """Widths of the hidden layers of the perceptron on all fields' vectors."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """After each hidden layer."""
    missing: Literal["learned", "zero"] = "learned"
    """A missing field's vector: a learned row of its own, or zeros. One convention for training and serving."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Fields whose values are those of another one, and share its rows."""
        return {}

    @property
    def encoder(self) -> FieldShape:
        """The configuration that says how fields become vectors."""
        return self


class DNNConfig(FieldShape):
    """Embeddings of every field, concatenated, into a multi-layer perceptron."""

    model: Literal["dnn"] = "dnn"


class DCNv2Config(FieldShape):
    """DCN-V2 (arXiv 2008.13535), cross network and perceptron side by side."""

    model: Literal["dcnv2"] = "dcnv2"
    crosses: Layers = 3
    """Cross layers; so many fields, plus one, meet in a product."""
    rank: Width | None = None
    """The cross layers' matrices as products of two so thin ones; null: as they are, all fields' width squared."""


class DeepFMConfig(FieldShape):
    """DeepFM (arXiv 1703.04247): a factorisation machine and a perceptron on the same vectors."""

    model: Literal["deepfm"] = "deepfm"


class FinalMLPConfig(FieldShape):
    """FinalMLP (arXiv 2304.00902): two perceptrons, each on the fields that its gate lets through, fused bilinearly."""

    model: Literal["finalmlp"] = "finalmlp"
    second: Widths = (128, 64)
    """Widths of the second perceptron; `hidden` are those of the first."""
    contexts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Fields that each gate is told, the user's and the item's for example; none: a learned vector."""
    gate: Width = 64
    """Width of the hidden layer of a gate."""
    heads: Width = 1
    """Blocks of the bilinear fusion; must divide the last width of both perceptrons."""

    @model_validator(mode="after")
    def _heads_divide_the_widths(self) -> Self:
        for name, widths in (("hidden", self.hidden), ("second", self.second)):
            if widths[-1] % self.heads:
                raise ValueError(f"{name}: last width {widths[-1]} is not divisible by heads {self.heads}")
        return self


class DINConfig(FieldShape):
    """DIN (arXiv 1706.06978): what of the history counts depends on the item."""

    model: Literal["din"] = "din"
    behaviour: str = "history"
    """The multi-valued field that is attended to (`samples.history` makes it)."""
    target: str = "item"
    """The categorical field that attends; both are looked up in its table."""
    attention: Widths = (36,)
    """Widths of the hidden layers of the attention's perceptron."""

    @property
    def tied(self) -> Mapping[str, str]:
        """History and item are looked up in the item's rows."""
        return {self.behaviour: self.target}


def _dnn_if_unsaid(value: Any) -> Any:
    return {"model": "dnn", **value} if isinstance(value, dict) else value


BaseConfig = Annotated[
    Annotated[DNNConfig | DCNv2Config | DeepFMConfig | FinalMLPConfig | DINConfig, Field(discriminator="model")],
    BeforeValidator(_dnn_if_unsaid),
]
"""What AsymDiffRec can wrap; a DNN where `model` is left out."""


class WrapperShape(Architecture):
    """Shape shared by the models around a base p = f(h(x)), which are trained to do without some of its fields."""

    kind: ClassVar[str] = "ranking"
    base: BaseConfig = DNNConfig()
    """The model that is wrapped."""

    @property
    def encoder(self) -> FieldShape:
        """That of the base."""
        return self.base

    @property
    def meets_missing(self) -> bool:
        """Training takes each of the fields away, so that what answers has met it missing."""
        return True


def _require_one(config: AsymDiffRecConfig | AutoencoderShape | LatentDiffusionConfig, what: str) -> None:
    if config.recon_weight == config.aux_weight == 0:
        raise ValueError(f"recon_weight: with aux_weight 0 too nothing trains {what}; give one of them a weight")


class AsymDiffRecConfig(WrapperShape):
    """AsymDiffRec (arXiv 2508.12706)."""

    model: Literal["asymdiffrec"] = "asymdiffrec"
    recon_weight: float = Field(64.0, ge=0)
    """Weight of L_recon, which is taken per dimension of h(x). The paper writes the sum without a weight, which this is
    where h(x) is 64 wide; at the width of DCN-V2's (224) the sum takes too much from the task (CHANGELOG)."""
    aux_weight: float = Field(1.0, ge=0)
    """Weight of L_aux."""
    residual: bool = True
    """z_0' = z_T + sqrt(share of fields missing) g([s, z_T]), so that a complete sample is served as the base serves
    it (with a shared head); False: z_0' = g([s, z_T]), as the paper writes it."""
    drop_power: float = Field(2.0, gt=0)
    """T = floor((N + 1) u^drop_power, u uniform in [0, 1): 1 is the paper's uniform T, more drops fewer fields."""
    hidden: Width = 64
    """Width of the one hidden layer of the two-layer reverse network g."""
    stop_gradient: bool = True
    """Detach z_0 in L_recon (the paper is silent; without it L_recon can shrink h)."""
    shared_head: bool = True
    """f of L_aux and of serving is that of L_main; False: a linear layer of its own."""
    count_missing: bool = True
    """T counts all fields, so that some of those drawn may be missing already; False: only those that are there."""
    drop_by: Literal["uniform", "missing_rate"] = "uniform"
    """Every field is as likely to be dropped as any other; or in proportion to how often the log misses it, those
    that it never misses last (uniform if it misses none)."""

    @property
    def meets_missing(self) -> bool:
        """Not where fields that the log never misses are dropped last."""
        return self.drop_by == "uniform"

    @model_validator(mode="after")
    def _trained(self) -> Self:
        if self.aux_weight == 0 and not self.shared_head:
            raise ValueError(
                "shared_head: with aux_weight 0 nothing trains a head of its own, which serves; set it true"
            )
        _require_one(self, "g, which serves incomplete samples")
        return self


class DroppingShape(WrapperShape):
    """Shape shared by the wrappers that are trained on samples with holes."""

    later: ClassVar[tuple[str, ...]] = ("drop_power",)
    rate: float | None = Field(None, gt=0, lt=1)
    """Share of the fields that is dropped, each by itself; null: T fields."""
    drop_power: float = Field(1.0, gt=0)
    """T = floor((N + 1) u^drop_power), u uniform in [0, 1), where `rate` is null: 1 is T uniform on {0, ..., N}, 2 what
    AsymDiffRec drops."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.rate is not None and self.drop_power != 1:
            raise ValueError(f"drop_power: means nothing where each field is dropped with rate {self.rate}; rate: null")
        return self


class FeatureDropoutConfig(DroppingShape):
    """The base, trained on samples with dropped fields alone: the plainest way to robustness."""

    model: Literal["feature_dropout"] = "feature_dropout"
    rate: float | None = Field(0.2, gt=0, lt=1)
    """Share of the fields that is dropped, each by itself; null: T fields."""


class AutoencoderShape(DroppingShape):
    """Shape shared by the wrappers that restore the fields' vectors, not what the base makes of them."""

    code: Width = 64
    """Width of what is between encoder and decoder."""
    recon_weight: float = Field(1.0, ge=0)
    """Weight of the squared error of the restored vectors, per dimension."""
    aux_weight: float = Field(1.0, ge=0)
    """Weight of the task's loss on the restored sample."""

    @model_validator(mode="after")
    def _trained(self) -> Self:
        _require_one(self, "what restores the fields")
        return self


class CDAEConfig(AutoencoderShape):
    """A denoising autoencoder after CDAE (Wu et al., 2016)."""

    model: Literal["cdae"] = "cdae"


class MultVAEConfig(AutoencoderShape):
    """A variational autoencoder after MultVAE (arXiv 1802.05814)."""

    model: Literal["multvae"] = "multvae"
    beta: float = Field(0.2, ge=0)
    """Weight of the divergence from the prior; the published one is annealed up to 0.2."""


class ContrastiveConfig(DroppingShape):
    """The base with a self-supervised second task after Yao et al. (arXiv 2007.12865)."""

    model: Literal["contrastive"] = "contrastive"
    group: int = Field(256, ge=2)
    """Samples that are told apart from each other: a worker's share of a batch is cut into groups of them, so that the
    task is the same however many workers there are, if each has whole groups."""
    temperature: float = Field(0.1, gt=0)
    """Of the cosines between views."""
    weight: float = Field(0.1, ge=0)
    """Weight of the second task."""

    @property
    def meets_missing(self) -> bool:
        """The second task has, f has not."""
        return False


class LatentDiffusionConfig(WrapperShape):
    """Gaussian noise on h(x) after DiffRec (arXiv 2304.04971)."""

    model: Literal["latent_diffusion"] = "latent_diffusion"
    steps: Steps = 5
    """T: steps of the diffusion process; DiffRec's best are few."""
    noise: float = Field(0.1, gt=0, lt=1)
    """1 - abar at the last step; it grows by the same amount at each."""
    recon_weight: float = Field(1.0, ge=0)
    """Weight of the squared error of z_0', per dimension."""
    aux_weight: float = Field(1.0, ge=0)
    """Weight of the task's loss on z_0'."""
    hidden: Width = 64
    """Width of the hidden layer of the denoiser."""

    @property
    def meets_missing(self) -> bool:
        """Noise takes no field away."""
        return False

    @model_validator(mode="after")
    def _trained(self) -> Self:
        _require_one(self, "the denoiser, which serves")
        return self
