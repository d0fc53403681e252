"""ADRec (arXiv 2505.19544): auto-regressive diffusion with an independent step for every token.

Published code: github.com/Nemo-1024/ADRec at 0a30ef7. History -> CAM -> c. Every token of the shifted target sequence
is noised by its own step, r = c + lambda (x_t + temb(t)), and the denoiser ADM predicts x_0 at every position.
Differences from that code, all deliberate: padding is masked as a key (config.seen_padding restores the quirk),
padding and unknown are no candidates, the frozen table is really frozen, GELU is exact.

Shapes: B batch, L length, D width, T steps, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.tables import FIRST_INDEX, PADDING
from train.configs import ADRecConfig
from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.diffusion.schedules import alphas_cumprod
from train.diffusion.time_embedding import TimeEmbedding
from train.item_table import ItemModel
from train.layers import (
    EMBEDDING_STD,
    LAYER_NORM_EPS,
    CausalTransformer,
    HistoryEncoder,
    Kept,
    Visible,
    initialise,
    place_embedding,
)
from train.protocol import LossParts, SequenceBatch, Stage, Term
from train.table_shard import LargeTable

_PUBLISHED_DECAY = 1e-5


class MLPDenoiser(nn.Module):
    """ADM without attention: D -> 4D -> D with SiLU, then LayerNorm, as published; each token for itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.apply(initialise)

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """y_BLD."""
        return self.norm(self.mlp(x_BLD))

    def prefill(self, x_BCD: Tensor, visible: Visible) -> Kept:
        """Nothing: the last token reads no other."""
        return Kept([], None, visible.real_BL[:, -1:])

    def extend(self, x_BD: Tensor, kept: Kept) -> Tensor:
        """y_BD of the last token."""
        return self.norm(self.mlp(x_BD))


class ADRec(ItemModel):
    """The model, its loss, its last-token sampler and its three stages."""

    def __init__(self, config: ADRecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        if config.seen_padding:
            # Where padding is seen, a zero vector would stay zero from LayerNorm to LayerNorm, each of which multiplies
            # its gradient by 1e6. The row still gets none itself.
            nn.init.normal_(self.items.weight.detach()[PADDING], std=EMBEDDING_STD)
        self.cam = HistoryEncoder.of(config)
        self.adm: CausalTransformer | MLPDenoiser = MLPDenoiser(config.width)
        if config.denoiser == "attention":
            self.adm = CausalTransformer(config.width, config.denoiser_blocks, config.heads, config.dropout)
            if config.denoiser_start == "identity":
                self.adm.start_as_identity()
        self.time = TimeEmbedding(config.width, config.steps)
        self.diffusion = GaussianDiffusion(alphas_cumprod(config.schedule, config.steps))
        self.places = place_embedding(config.max_length, config.width) if config.positions else None
        self.own_answer = nn.Linear(config.width, config.width, bias=False) if config.self_conditioning else None
        learned = config.noise_scaling == "learned"
        self.noise_scale = nn.Parameter(torch.tensor(config.noise_scale)) if learned else config.noise_scale
        own_encoder = config.pretrain_share and config.pretrain == "table"
        self.pretrain_encoder = HistoryEncoder.of(config) if own_encoder else None

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """0.5 * (ce_weight * CE + mse_weight * MSE), both of x0_hat: the published mean of two gradients.

        CE: mean over targets. MSE: mean over a sequence's targets and D, then over sequences that have any.
        """
        visible = self._visible(batch)
        # One lookup: its gradient is as large as the table, and a sharded table's rows come in one exchange.
        shown_BLD, target_BLD = self.items(torch.stack([batch.items_BL, _followers(batch)])).unbind()
        x_t_BLD, t_BL = self._noised(self._in_process(target_BLD), batch, generator)
        c_BLD = self._hidden_for_some(self.cam(self._placed(shown_BLD, batch), visible), batch, generator)
        own_BLD = None
        if self.own_answer is not None:
            # Of some tokens: in sampling those before the last have none.
            told_BL = torch.rand(t_BL.shape, generator=generator, device=generator.device).to(t_BL.device) < 0.5
            with torch.no_grad():
                own_BLD = self._in_process(self._denoise(c_BLD, x_t_BLD, t_BL, visible)) * told_BL[..., None]
        x0_hat_BLD = self._denoise(c_BLD, x_t_BLD, t_BL, visible, own_BLD)
        terms = {}
        if self.config.ce_weight:
            ce = self.cross_entropy_sum(x0_hat_BLD, batch.targets_BL, generator)
            terms["ce"] = Term(ce, "targets", 0.5 * self.config.ce_weight)
        if self.config.mse_weight:
            error_BL = (x0_hat_BLD - target_BLD).square().mean(dim=-1)
            mse = (error_BL * _share_of_sequence(batch)).sum()
            terms["mse"] = Term(mse, "sequences", 0.5 * self.config.mse_weight)
        return LossParts(terms, batch.counts)

    def pretrain_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Stage 1: next-item cross-entropy of a SASRec on the same table, which is CAM itself or (as published) an
        encoder without positions that is then left behind."""
        visible, shown_BLD = self._visible(batch), self.items(batch.items_BL)
        if self.pretrain_encoder is None:
            return self.next_item_loss(self.cam(self._placed(shown_BLD, batch), visible), batch, generator)
        return self.next_item_loss(self.pretrain_encoder(shown_BLD, visible), batch, generator)

    def align_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Stage 2: the loss, or its MSE alone."""
        parts = self.loss(batch, generator)
        if self.config.align_loss == "both":
            return parts
        return LossParts({"mse": parts.terms["mse"]}, parts.counts)

    def shrinking_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Stage 2 with a table that gets no gradient but 1e-5 E, the published weight decay: Adam, which divides a
        gradient by its size, makes a whole step towards 0 of it."""
        self.items.weight.requires_grad_(False)
        parts = self.align_loss(batch, generator)
        self.items.weight.requires_grad_(True)
        # A mean over the global batch's sequences, so that shares of ranks and micro-batches add up to it once.
        decay = 0.5 * self.items.weight.square().sum() * parts.counts["sequences"]
        return LossParts({**parts.terms, "decay": Term(decay, "sequences", _PUBLISHED_DECAY)}, parts.counts)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: x_0 of the last token, sampled in `steps` (None: T). Put the model in eval mode first.

        Earlier tokens of the shifted target sequence are known: they stay clean, at step 0, throughout, as
        published, so the denoiser reads them once, and a reverse step costs one token. The last starts from N(0, I), or
        with 0 steps from 0, and is then read once.
        """
        batch = batch.latest(self.config.max_length)
        if self.config.seen_padding:
            batch = batch.widened(self.config.max_length)
        # One lookup: ranks that share a table have to make as many of them.
        shown_BLD = self.items(batch.items_BL)
        # What sees padding has to be given all of it.
        parts = [(slice(None), batch)] if self.config.seen_padding else batch.by_length()
        code_TD = self.time.codes()
        readers = [
            (places, _Reader(self, part, shown_BLD[places, -part.items_BL.shape[1] :], code_TD))
            for places, part in parts
        ]

        def denoise(x_t_BD: Tensor, t_B: Tensor) -> Tensor:
            x0_hat_BD = torch.empty_like(x_t_BD)
            for places, reader in readers:
                x0_hat_BD[places] = reader.x0_hat(x_t_BD[places], t_B[places])
            return x0_hat_BD

        deterministic = self.config.sampler == "ddim"
        start_BD = draw_noise(shown_BLD[:, -1], generator)
        return self.diffusion.sample(denoise, start_BD, steps, generator, deterministic)[:, None]

    def stages(self) -> list[Stage]:
        """pretrain (table and its own encoder), align (table frozen), finetune: three programs in the published code.

        A stage whose share is 0 is left out.
        """
        pretrain, align = self.config.pretrain_share, self.config.align_share
        pretrained = {"items", "pretrain_encoder"} if self.pretrain_encoder else {"items", "cam", "places"}
        others = {name.split(".")[0] for name, _ in self.named_parameters()} - pretrained
        project = self.config.combine == "project"
        spent = () if self.pretrain_encoder is None else ("pretrain_encoder.",)
        shrinking = self.config.align == "shrinking"
        aligned, left = (self.shrinking_loss, spent) if shrinking else (self.align_loss, ("items.", *spent))
        both = project and self.config.align_loss == "both"
        stages = [
            Stage("pretrain", pretrain, self.pretrain_loss, frozen=tuple(sorted(others))),
            # The published stages are programs of their own: what Adam knew of the table is gone.
            Stage("align", align, aligned, left, both, forgets=("items.",) if shrinking else ()),
            Stage("finetune", 1 - pretrain - align, self.loss, spent, project),
        ]
        return [stage for stage in stages if stage.share > 0]

    def _visible(self, batch: SequenceBatch) -> Visible:
        return Visible.of(batch.items_BL, batch.place_BL, self.config.seen_padding)

    def _placed(self, shown_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        return shown_BLD if self.places is None else shown_BLD + self.places(batch.place_BL)

    def _in_process(self, x: Tensor) -> Tensor:
        """Target vectors as the process has them: with `normalised`, of length sqrt(D)."""
        if self.config.noise_scaling != "normalised":
            return x
        return F.normalize(x, dim=-1) * math.sqrt(self.config.width)

    def _noised(self, x0_BLD: Tensor, batch: SequenceBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_t, t): t uniform, of each token or each sequence; padding keeps x_0 and t = 0."""
        t_BL = torch.randint(self.diffusion.steps, batch.items_BL.shape, generator=generator, device=generator.device)
        t_BL = t_BL.to(x0_BLD.device)
        if not self.config.independent:
            t_BL = batch.of_sequence(t_BL)
        padded_BL = batch.targets_BL == PADDING
        x_t_BLD = self.diffusion.q_sample(x0_BLD, t_BL, draw_noise(x0_BLD, generator))
        return torch.where(padded_BL[..., None], x0_BLD, x_t_BLD), t_BL.masked_fill(padded_BL, 0)

    def _hidden_for_some(self, c_BLD: Tensor, batch: SequenceBatch, generator: torch.Generator) -> Tensor:
        """With guidance, zeros for some sequences: the model learns to answer without a history too."""
        if self.config.guidance == 1:
            return c_BLD
        chance_BL = torch.rand(batch.items_BL.shape, generator=generator, device=generator.device).to(c_BLD.device)
        return c_BLD * (batch.of_sequence(chance_BL) >= self.config.guidance_drop)[..., None]

    def _entering(self, x_t: Tensor, code: Tensor, own: Tensor | None = None) -> Tensor:
        """What comes in beside c: lambda (x_t + temb(t)), and with self-conditioning the denoiser's own last answer."""
        entering = self.noise_scale * (x_t + code)
        if self.config.noise_scaling == "normalised":
            entering = entering * self.cam.size().detach()
        return entering if own is None or self.own_answer is None else entering + self.own_answer(own)

    def _denoise(
        self, c_BLD: Tensor, x_t_BLD: Tensor, t_BL: Tensor, visible: Visible, own_BLD: Tensor | None = None
    ) -> Tensor:
        """x0_hat_BLD of all tokens at once, as in training."""
        return self.adm(c_BLD + self._entering(x_t_BLD, self.time(t_BL), own_BLD), visible)


class _Reader:
    """The denoiser at the last token of some users, everything before it read once."""

    def __init__(self, model: ADRec, batch: SequenceBatch, shown_BLD: Tensor, code_TD: Tensor) -> None:
        self.model, self.code_TD = model, code_TD
        visible = model._visible(batch)
        c_BLD = model.cam(model._placed(shown_BLD, batch), visible)
        # As in training, padding stands for the target of a padded position, even where the first event follows it.
        known_BCD = torch.where(visible.real_BL[:, :-1, None], shown_BLD[:, 1:], shown_BLD[:, :-1])
        entering_BCD = model._entering(model._in_process(known_BCD), code_TD[0])
        self.c_BD = c_BLD[:, -1]
        self.kept = model.adm.prefill(c_BLD[:, :-1] + entering_BCD, visible)
        self.unguided = model.adm.prefill(entering_BCD, visible) if model.config.guidance != 1 else None
        self.own_BD: Tensor | None = None

    def x0_hat(self, x_t_BD: Tensor, t_B: Tensor) -> Tensor:
        """x0_hat_BD of the last token at steps t_B, as the process has it."""
        model = self.model
        entering_BD = model._entering(x_t_BD, self.code_TD[t_B], self.own_BD)
        x0_hat_BD = model.adm.extend(self.c_BD + entering_BD, self.kept)
        if self.unguided is not None:
            without_BD = model.adm.extend(entering_BD, self.unguided)
            x0_hat_BD = without_BD + model.config.guidance * (x0_hat_BD - without_BD)
        self.own_BD = model._in_process(x0_hat_BD)
        return self.own_BD


def _followers(batch: SequenceBatch) -> Tensor:
    """next_BL: what follows each position in its sequence, target or not; a context event stands there clean,
    as it will when it is history. 0 at padding."""
    items_BL, place_BL = batch.items_BL, batch.place_BL
    goes_on_BL = F.pad(place_BL[:, 1:] > 0, (0, 1))
    return torch.where(goes_on_BL, F.pad(items_BL[:, 1:], (0, 1)), batch.targets_BL) * (items_BL != PADDING)


def _share_of_sequence(batch: SequenceBatch) -> Tensor:
    """share_BL: 1 / targets of the position's sequence where there is a target, else 0."""
    own_BL = batch.of_sequence(batch.targets_per_sequence())
    return (batch.targets_BL >= FIRST_INDEX) / own_BL.clamp(min=1)
