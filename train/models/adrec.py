"""ADRec (arXiv 2505.19544): auto-regressive diffusion with an independent step for every token.

Read from papers.md 2.1-2.4. History -> CAM -> c. Every token of the shifted target sequence is noised
by its own step, r = c + lambda (x_t + temb(t)), and the denoiser ADM predicts x_0 at every position.
Differences from the published code, all deliberate: padding is masked as a key (config.seen_padding
restores the quirk), padding and unknown are no candidates, and the frozen table is really frozen.

Shapes: B batch, L length, D width, T steps, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from infra.errors import TrainingError
from infra.tables import FIRST_INDEX, PADDING
from train.configs import ADRecConfig
from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.diffusion.schedules import alphas_cumprod
from train.diffusion.time_embedding import TimeEmbedding
from train.item_table import ItemModel, ItemTable
from train.layers import CausalTransformer, HistoryEncoder, Visible
from train.protocol import LossParts, SequenceBatch, Stage, Term


class ADRec(ItemModel):
    """The model, its loss, its last-token sampler and its three stages."""

    def __init__(self, config: ADRecConfig, catalogue: int, items: ItemTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.cam = self._history_encoder()
        self.adm = CausalTransformer(config.width, config.denoiser_blocks, config.heads, config.dropout)
        self.time = TimeEmbedding(config.width, config.steps)
        self.diffusion = GaussianDiffusion(alphas_cumprod(config.schedule, config.steps))
        self.pretrain_encoder = self._history_encoder() if config.pretrain_share else None

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """0.5 * (CE + mse_weight * MSE), both of x0_hat (papers.md 2.3).

        CE: mean over targets. MSE: mean over a sequence's targets and D, then over sequences that have any.
        """
        visible = self._visible(batch)
        # One lookup: its gradient is as large as the table, and a sharded table's rows come in one exchange.
        shown_BLD, x0_BLD = self.items(torch.stack([batch.items_BL, _followers(batch)])).unbind()
        x_t_BLD, t_BL = self._noised(x0_BLD, batch.targets_BL, generator)
        c_BLD = self.cam(shown_BLD, visible)
        x0_hat_BLD = self._denoise(c_BLD, x_t_BLD, t_BL, visible)
        ce = self.cross_entropy_sum(x0_hat_BLD, batch.targets_BL, generator)
        error_BL = (x0_hat_BLD - x0_BLD).square().mean(dim=-1)
        mse = (error_BL * _share_of_sequence(batch)).sum()
        terms = {"ce": Term(ce, "targets", 0.5), "mse": Term(mse, "sequences", 0.5 * self.config.mse_weight)}
        return LossParts(terms, batch.counts)

    def pretrain_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Stage 1: next-item cross-entropy of a SASRec without positions on the same table."""
        if self.pretrain_encoder is None:
            raise TrainingError("pretrain_share is 0: this model has no pre-training stage; raise it to have one")
        c_BLD = self.pretrain_encoder(self.items(batch.items_BL), self._visible(batch))
        ce = self.cross_entropy_sum(c_BLD, batch.targets_BL, generator)
        return LossParts({"ce": Term(ce, "targets")}, batch.counts)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: x_0 of the last token, sampled in `steps` (None: T). Put the model in eval mode first.

        Earlier tokens of the shifted target sequence are known: they stay clean, at step 0, throughout.
        The last starts from N(0, I). The history is encoded once (papers.md 2.2).
        """
        batch = batch.latest(self.config.max_length)
        items_BL, visible = batch.items_BL, self._visible(batch)
        c_BLD = self.cam(self.items(items_BL), visible)
        # As in training, a padded position has no target, even where the first event follows it.
        known_BLD = self.items(items_BL[:, 1:] * visible.real_BL[:, :-1])
        known_t_BL = torch.zeros_like(items_BL[:, 1:])

        def denoise(x_t_BD: Tensor, t_B: Tensor) -> Tensor:
            x_t_BLD = torch.cat([known_BLD, x_t_BD[:, None]], dim=1)
            t_BL = torch.cat([known_t_BL, t_B[:, None]], dim=1)
            return self._denoise(c_BLD, x_t_BLD, t_BL, visible)[:, -1]

        start_BD = draw_noise(c_BLD[:, -1], generator)
        return self.diffusion.sample(denoise, start_BD, steps, generator)[:, None]

    def stages(self) -> list[Stage]:
        """pretrain (table and its own encoder), align (table frozen), finetune (papers.md 2.4).

        A stage whose share is 0 is left out.
        """
        pretrain, align = self.config.pretrain_share, self.config.align_share
        spent = () if self.pretrain_encoder is None else ("pretrain_encoder.",)
        stages = [
            Stage("pretrain", pretrain, self.pretrain_loss, frozen=("cam.", "adm.", "time.")),
            Stage("align", align, self.loss, frozen=("items.", *spent)),
            Stage("finetune", 1 - pretrain - align, self.loss, frozen=spent),
        ]
        return [stage for stage in stages if stage.share > 0]

    def _history_encoder(self) -> HistoryEncoder:
        c = self.config
        return HistoryEncoder(c.width, c.blocks, c.heads, c.dropout, c.embedding_dropout)

    def _visible(self, batch: SequenceBatch) -> Visible:
        return Visible.of(batch.items_BL, batch.place_BL, self.config.seen_padding)

    def _noised(self, x0_BLD: Tensor, targets_BL: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_t, t): t uniform and independent per token; padding keeps x_0 and t = 0."""
        t_BL = torch.randint(self.diffusion.steps, targets_BL.shape, generator=generator, device=generator.device).to(
            targets_BL.device
        )
        padded_BL = targets_BL == PADDING
        x_t_BLD = self.diffusion.q_sample(x0_BLD, t_BL, draw_noise(x0_BLD, generator))
        return torch.where(padded_BL[..., None], x0_BLD, x_t_BLD), t_BL.masked_fill(padded_BL, 0)

    def _denoise(self, c_BLD: Tensor, x_t_BLD: Tensor, t_BL: Tensor, visible: Visible) -> Tensor:
        """x0_hat_BLD = ADM(c + lambda (x_t + temb(t)))."""
        return self.adm(c_BLD + self.config.noise_scale * (x_t_BLD + self.time(t_BL)), visible)


def _followers(batch: SequenceBatch) -> Tensor:
    """next_BL: what follows each position in its sequence, target or not; a context event stands there clean,
    as it will when it is history. 0 at padding."""
    items_BL, place_BL = batch.items_BL, batch.place_BL
    goes_on_BL = F.pad(place_BL[:, 1:] > 0, (0, 1))
    return torch.where(goes_on_BL, F.pad(items_BL[:, 1:], (0, 1)), batch.targets_BL) * (items_BL != PADDING)


def _share_of_sequence(batch: SequenceBatch) -> Tensor:
    """share_BL: 1 / targets of the position's sequence where there is a target, else 0."""
    targets_BL = batch.targets_BL
    own_BL = batch.targets_per_sequence()[batch.sequence_of()].view_as(targets_BL)
    return (targets_BL >= FIRST_INDEX) / own_BL.clamp(min=1)
