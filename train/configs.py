"""The models' configurations, apart from the models so that a recipe validates without torch.

One frozen pydantic model per architecture; `model` is the discriminator. A field's documentation
stands under it. `kind` says which protocol the model serves.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from train.architecture import Architecture, Layers, Steps, Width
from train.ranking_configs import (
    AsymDiffRecConfig,
    CDAEConfig,
    ContrastiveConfig,
    DCNv2Config,
    DeepFMConfig,
    DINConfig,
    DNNConfig,
    FeatureDropoutConfig,
    FinalMLPConfig,
    LatentDiffusionConfig,
    MultVAEConfig,
)


class PopularityConfig(Architecture):
    """Counts of training events; the floor every model has to beat."""

    kind: ClassVar[str] = "sequence"
    counted: ClassVar[bool] = True
    model: Literal["popularity"] = "popularity"


class BigramConfig(Architecture):
    """Counts of what follows what, then popularity; the floor every sequence model has to beat."""

    kind: ClassVar[str] = "sequence"
    counted: ClassVar[bool] = True
    model: Literal["bigram"] = "bigram"
    followers: Width = 256
    """M: so many of an item's followers, the most frequent ones, are kept: 12 M bytes for each item."""


class HistoryShape(Architecture):
    """Shape shared by the models that learn item vectors."""

    width: Width = 64
    """D: width of item vectors and of every block."""
    max_length: Width = 50
    """L: the latest events of a history that the model sees."""
    embedding_dropout: float = Field(0.3, ge=0, lt=1)
    """On the history's item vectors."""


class SoftmaxShape(HistoryShape):
    """Shape shared by the models with a softmax over their item table."""

    negatives: int = Field(0, ge=0)
    """Softmax over so many items drawn for each rank's micro-batch, each for its popularity^0.75 among the training
    targets, instead of the whole catalogue (0). For catalogues past about a million items: a step's time and memory
    then no longer grow with the catalogue (with `training.sharded`: at all)."""


class BlockShape(HistoryShape):
    """Shape shared by the models with Transformer blocks."""

    blocks: Layers = 2
    """Number of Transformer blocks of the history encoder."""
    heads: Width = 2
    """Attention heads; must divide `width`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Inside the blocks."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; change one of them")
        return self


class TransformerShape(BlockShape, SoftmaxShape):
    """Shape shared by the Transformer models with a softmax."""


class GRU4RecConfig(SoftmaxShape):
    """GRU4Rec (Hidasi et al., 2016) with cross-entropy at every position."""

    kind: ClassVar[str] = "sequence"
    model: Literal["gru4rec"] = "gru4rec"
    hidden: Width = 128
    """Width of the recurrent state; if it is not that of the item vectors, a linear layer follows."""
    layers: Layers = 1
    """Recurrent layers, one on the other."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the output of every recurrent layer."""


class SASRecConfig(TransformerShape):
    """SASRec with cross-entropy at every position."""

    kind: ClassVar[str] = "sequence"
    model: Literal["sasrec"] = "sasrec"
    positions: bool = True
    """Learned positions, counted from the first event of the (cut) history."""
    pretrain_share: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs in which the item table is pre-trained as the published ADRec's is, under an encoder without
    positions that is then left behind. 0 = not at all."""

    @property
    def stage_count(self) -> int:
        """Stages that a run goes through; it needs at least as many epochs."""
        return 1 + (self.pretrain_share > 0)


class ADRecConfig(TransformerShape):
    """ADRec (arXiv 2505.19544); the defaults are the published code's where it has one."""

    kind: ClassVar[str] = "sequence"
    model: Literal["adrec"] = "adrec"
    denoiser: Literal["attention", "mlp"] = "attention"
    """ADM: causal Transformer blocks, or D -> 4D -> D at each position."""
    denoiser_blocks: Layers = 2
    """Blocks of the attention denoiser."""
    positions: bool = True
    """Learned positions beside the history's items; the published code has none."""
    steps: Steps = 32
    """T: steps of the diffusion process."""
    schedule: Literal["trunc_lin", "linear", "cosine", "sqrt", "trunc_cos", "pw_lin", "beta"] = "trunc_lin"
    """Noise schedule (train/diffusion/schedules.py)."""
    independent: bool = True
    """A step of its own for every token, as published; False draws one for each sequence."""
    sampler: Literal["ancestral", "ddim"] = "ancestral"
    """How a reverse step is made: with fresh noise, as published, or without (DDIM)."""
    noise_scale: float = Field(0.001, gt=0)
    """lambda: weight of the noisy target and its time code beside the history's encoding; 0.001 as published, with
    which the process does nothing: one pass without noise finds the same items."""
    noise_scaling: Literal["fixed", "learned", "normalised"] = "fixed"
    """lambda as it stands; or trained, beginning there; or relative to the history's encoding: targets are brought to
    the noise's length, sqrt(D), and lambda 1 to that of the encoding."""
    self_conditioning: bool = False
    """The denoiser also sees its own last answer (Chen et al., 2022); in training of every second token."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance: x0_hat = without history + guidance * (with - without); 1 is none."""
    guidance_drop: float = Field(0.3, ge=0, lt=1)
    """Share of the sequences whose history is hidden in training, if `guidance` is not 1."""
    ce_weight: float = Field(1.0, ge=0)
    """Weight of the cross-entropy; the total is 0.5 * (ce_weight * CE + mse_weight * MSE), at 1 and 1 that of the
    published code."""
    mse_weight: float = Field(1.0, ge=0)
    """Weight of the MSE to the target's vector."""
    combine: Literal["average", "project"] = "average"
    """The two gradients as they are (published code), or each without what is against the other (PCGrad, the paper)."""
    denoiser_start: Literal["identity", "random"] = "identity"
    """Blocks of the attention denoiser begin by passing on what comes in; or at random, as published."""
    pretrain_share: float = Field(0.3, ge=0, lt=1)
    """Share of the epochs for stage 1, next-item cross-entropy without a process. 0 skips it."""
    pretrain: Literal["encoder", "table"] = "encoder"
    """What stage 1 leaves to the others: history encoder and item table; or, as published, the table alone, from a
    SASRec without positions."""
    align_share: float = Field(0.1, ge=0, lt=1)
    """Share of the epochs for stage 2: everything but the item table, which is frozen. 0 skips it."""
    align_loss: Literal["both", "mse"] = "both"
    """Stage 2 on the whole loss (published code) or on the MSE alone (the paper, by one account)."""
    align: Literal["frozen", "shrinking"] = "frozen"
    """Stage 2 leaves the item table as it is; or, as the published code does by mistake, takes about the step size off
    every weight at each step."""
    seen_padding: bool = False
    """True repeats the published mask, under which real positions attend to padding."""

    @property
    def stage_count(self) -> int:
        """Stages that a run goes through; it needs at least as many epochs."""
        return 1 + (self.pretrain_share > 0) + (self.align_share > 0)

    @model_validator(mode="after")
    def _steps_fit_the_schedule(self) -> ADRecConfig:
        if self.schedule == "pw_lin" and self.steps <= 10:
            raise ValueError(f"schedule pw_lin needs more than 10 steps, not {self.steps}; choose another schedule")
        return self

    @model_validator(mode="after")
    def _stages_leave_room(self) -> ADRecConfig:
        if self.pretrain_share + self.align_share >= 1:
            raise ValueError("pretrain_share + align_share must stay below 1: the rest is the fine-tuning stage")
        return self

    @model_validator(mode="after")
    def _an_objective(self) -> ADRecConfig:
        if not self.ce_weight and not self.mse_weight:
            raise ValueError("ce_weight and mse_weight are both 0: nothing is left to train on; raise one of them")
        if self.align_share and self.align_loss == "mse" and not self.mse_weight:
            raise ValueError("align_loss: mse needs mse_weight above 0; raise it, or set align_loss: both")
        if self.combine == "project" and not (self.ce_weight and self.mse_weight):
            raise ValueError("combine: project needs both ce_weight and mse_weight; set combine: average")
        return self


class DreamRecConfig(BlockShape):
    """DreamRec (arXiv 2310.20453); the defaults are the published code's, but for the longer history.

    It has no softmax, so no `negatives`.
    """

    kind: ClassVar[str] = "sequence"
    model: Literal["dreamrec"] = "dreamrec"
    blocks: Layers = 1
    """Number of Transformer blocks of the history encoder."""
    heads: Width = 1
    """Attention heads; must divide `width`."""
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    """On the history's item vectors."""
    steps: Steps = 200
    """T: steps of the diffusion process; the published code's default, its README has 500 to 2000 by data set."""
    schedule: Literal["trunc_lin", "linear", "cosine", "sqrt"] = "linear"
    """Noise schedule (train/diffusion/schedules.py)."""
    guidance: float = Field(2.0, ge=0)
    """w: how far beyond the conditional prediction, away from the unconditional one; 0 = no guidance."""
    guidance_drop: float = Field(0.1, ge=0, lt=1)
    """Share of the training sequences whose history is replaced by the null condition."""


class DiffuRecConfig(TransformerShape):
    """DiffuRec (arXiv 2304.00686); the defaults are the published code's, but for `prefixes`."""

    kind: ClassVar[str] = "sequence"
    model: Literal["diffurec"] = "diffurec"
    width: Width = 128
    """D: width of item vectors and of every block."""
    blocks: Layers = 4
    """Number of Transformer blocks."""
    heads: Width = 4
    """Attention heads; must divide `width`."""
    steps: Steps = 32
    """T: steps of the diffusion process."""
    schedule: Literal["trunc_lin", "linear", "cosine", "sqrt"] = "trunc_lin"
    """Noise schedule (train/diffusion/schedules.py)."""
    noise_scale: float = Field(0.001, gt=0)
    """delta: mean and standard deviation of lambda, the weight of the noisy target in every history item."""
    prefixes: int = Field(4, ge=0)
    """Targets drawn for each sequence and pass, on average; each is a pass over the history before it. 0 = all of
    them, as published: time and memory of a step then grow with the square of the length."""


class InterestShape(SoftmaxShape):
    """Shape shared by the models with several interests per user."""

    interests: Layers = 4
    """K: interests of a user."""
    temperature: float | None = Field(0.1, gt=0)
    """Scores are cosines over it; null: inner products, in which items keep their length."""


class ComiRecConfig(InterestShape):
    """ComiRec (arXiv 2005.09347), of its two forms the self-attentive or the routed one."""

    kind: ClassVar[str] = "sequence"
    model: Literal["comirec"] = "comirec"
    extraction: Literal["attention", "routing"] = "attention"
    """ComiRec-SA, or ComiRec-DR (dynamic routing)."""
    recency: bool = True
    """Of ComiRec-SA: an event is also weighed by how far back it is; False: by its place alone, as published."""


class MINDConfig(InterestShape):
    """MIND (arXiv 1904.08030)."""

    kind: ClassVar[str] = "sequence"
    model: Literal["mind"] = "mind"
    adaptive: bool = True
    """Of a history of n events, log2 n interests (at least 1, at most K), as published."""
    sharpness: float | None = Field(None, gt=0)
    """Of the label-aware attention in training: softmax(sharpness * g . e) over the interests; null = the best alone,
    which is its limit and what ComiRec's authors use."""


class DimeRecConfig(InterestShape):
    """DimeRec (arXiv 2408.12153). The paper gives no values: what stands here was chosen by validation (changelog)."""

    kind: ClassVar[str] = "sequence"
    model: Literal["dimerec"] = "dimerec"
    gem: Literal["attention", "routing", "latest"] = "attention"
    """Its guidance: ComiRec-SA (the paper's main form), ComiRec-DR, or the last K items."""
    recency: bool = True
    """Of self-attentive guidance: an event is also weighed by how far back it is; False: by its place alone."""
    blocks: int = Field(0, ge=0, le=1_024)
    """Transformer blocks between the items and GEM; 0 = none, as published."""
    heads: Width = 4
    """Attention heads of the blocks; must divide `width`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Inside the blocks and on the denoiser's hidden layer."""
    hidden: Width = 512
    """Width of the denoiser's hidden layer."""
    steps: Steps = 32
    """T: steps of the diffusion process."""
    schedule: Literal["trunc_lin", "linear", "cosine", "sqrt", "beta"] = "beta"
    """Noise schedule (train/diffusion/schedules.py)."""
    signal: float = Field(0.1, gt=0, le=1)
    """Of the schedule's signal so much is left: abar is multiplied by its square. With 1 an early step shows which item
    the target is, and a reverse process draws one item instead of ranking all that may follow (changelog)."""
    process: Literal["geodesic", "literal", "gaussian"] = "geodesic"
    """The walk on the sphere; the same with its lengths as printed, which pass the antipode; or the Gaussian process
    without a sphere (train/diffusion)."""
    gem_weight: float = Field(1.0, ge=0)
    """Weight of L_gem; 1 in the paper."""
    recon_weight: float = Field(1.0, ge=0)
    """lambda: weight of L_recon, the squared distance to the target's vector."""
    ssm_weight: float = Field(1.0, ge=0)
    """mu: weight of L_ssm."""
    pretrain_share: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs for a stage before: next-item cross-entropy of the blocks alone, for table and blocks."""

    @property
    def stage_count(self) -> int:
        """Stages that a run goes through; it needs at least as many epochs."""
        return 1 + (self.pretrain_share > 0)

    @model_validator(mode="after")
    def _something_to_pretrain(self) -> Self:
        if self.pretrain_share and not self.blocks:
            raise ValueError("pretrain_share needs blocks, which it pre-trains; raise blocks, or set it to 0")
        return self

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.blocks and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; change one of them")
        return self

    @model_validator(mode="after")
    def _on_a_sphere(self) -> Self:
        if self.process != "gaussian" and self.width < 2:
            raise ValueError("width 1: a sphere needs at least 2 dimensions; raise it, or set process: gaussian")
        return self

    @model_validator(mode="after")
    def _the_denoiser_is_trained(self) -> Self:
        if not self.recon_weight and not self.ssm_weight:
            raise ValueError("recon_weight and ssm_weight are both 0: nothing trains the denoiser; raise one of them")
        return self


SequenceConfig = Annotated[
    PopularityConfig
    | BigramConfig
    | GRU4RecConfig
    | SASRecConfig
    | ADRecConfig
    | DreamRecConfig
    | DiffuRecConfig
    | ComiRecConfig
    | MINDConfig
    | DimeRecConfig,
    Field(discriminator="model"),
]
RankingConfig = Annotated[
    DNNConfig
    | DCNv2Config
    | DeepFMConfig
    | FinalMLPConfig
    | DINConfig
    | AsymDiffRecConfig
    | FeatureDropoutConfig
    | CDAEConfig
    | MultVAEConfig
    | ContrastiveConfig
    | LatentDiffusionConfig,
    Field(discriminator="model"),
]
ModelConfig = (
    PopularityConfig | BigramConfig | GRU4RecConfig | SASRecConfig | ADRecConfig | DreamRecConfig | DiffuRecConfig
    | ComiRecConfig | MINDConfig | DimeRecConfig
    | DNNConfig | DCNv2Config | DeepFMConfig | FinalMLPConfig | DINConfig | AsymDiffRecConfig | FeatureDropoutConfig
    | CDAEConfig | MultVAEConfig | ContrastiveConfig | LatentDiffusionConfig
)  # fmt: skip
