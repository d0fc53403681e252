"""DreamRec (arXiv 2310.20453): the next item's vector drawn by a diffusion that the history guides.

History -> causal encoder -> c. The target's vector is noised by its own step, f(x_t, c, t) = W [x_t; c; temb(t)] + b
predicts it, and the loss is the squared error alone: no negatives, and the targets are rows of the table that is
being learnt. In training c is replaced by a learnt null vector for some sequences, so that sampling can be guided:
f~ = (1 + w) f(x_t, c, t) - w f(x_t, null, t).
Differences from the published code (github.com/YangZhengyi98/DreamRec at 454133c), all deliberate: every position is
trained in one pass under the causal mask instead of one row per prefix, the encoder has post-LayerNorm blocks
(train/layers.py), a step's code is ADRec's, a user without a history has the null condition, and dropout is off at
inference (there it never is).

Shapes: B batch, L length, D width, T steps, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infra.tables import FIRST_INDEX, PADDING
from train.configs import DreamRecConfig
from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.diffusion.schedules import alphas_cumprod
from train.diffusion.time_embedding import TimeEmbedding
from train.layers import HistoryEncoder, Visible, initialise, item_embedding
from train.protocol import LossParts, SequenceBatch, Term


class DreamRec(nn.Module):
    """The model, its loss and its guided sampler. Item, place and null vectors start from N(0, I), as noise does."""

    def __init__(self, config: DreamRecConfig, catalogue: int) -> None:
        super().__init__()
        self.config = config
        self.items = item_embedding(catalogue, config.width)
        nn.init.normal_(self.items.weight.detach()[PADDING + 1 :])
        self.places = nn.Embedding(config.max_length, config.width)
        self.null = nn.Parameter(torch.randn(config.width))
        self.encoder = HistoryEncoder.of(config)
        self.time = TimeEmbedding(config.width, config.steps)
        self.denoiser = nn.Linear(3 * config.width, config.width).apply(initialise)
        self.diffusion = GaussianDiffusion(alphas_cumprod(config.schedule, config.steps))

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """MSE of x0_hat, mean over the batch's known targets and D."""
        # One lookup: its gradient is as large as the table.
        shown_BLD, x0_BLD = self.items(torch.stack([batch.items_BL, batch.targets_BL])).unbind()
        c_BLD = self._dropped(self._encode(batch, shown_BLD), batch, generator)
        x_t_BLD, t_BL = self._noised(x0_BLD, generator)
        error_BL = (self._denoise(x_t_BLD, c_BLD, self.time(t_BL)) - x0_BLD).square().mean(dim=-1)
        mse = (error_BL * (batch.targets_BL >= FIRST_INDEX)).sum()
        return LossParts({"mse": Term(mse, "targets")}, batch.counts)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: x_0, sampled in `steps` (None: T) from N(0, I). Put the model in eval mode first.

        The history is encoded once. f is affine in c, so guidance needs one call of it, not two: f~(x_t, c, t) =
        f(x_t, (1 + w) c - w null, t).
        """
        batch = batch.latest(self.config.max_length)
        c_BD = self._encode(batch, self.items(batch.items_BL))[:, -1]
        c_BD = torch.where(batch.items_BL[:, -1:] == PADDING, self.null, c_BD)
        guided_BD = (1 + self.config.guidance) * c_BD - self.config.guidance * self.null
        start_BD, code_TD = draw_noise(c_BD, generator), self.time.codes()
        x0_BD = self.diffusion.sample(lambda x, t: self._denoise(x, guided_BD, code_TD[t]), start_BD, steps, generator)
        return x0_BD[:, None]

    def item_table(self) -> Tensor:
        """E."""
        return self.items.weight

    def _encode(self, batch: SequenceBatch, shown_BLD: Tensor) -> Tensor:
        """c_BLD."""
        return self.encoder(shown_BLD + self.places(batch.place_BL), Visible.of(batch.items_BL, batch.place_BL))

    def _dropped(self, c_BLD: Tensor, batch: SequenceBatch, generator: torch.Generator) -> Tensor:
        """c, the null vector in its place throughout a share of the sequences."""
        draw_S = torch.rand(batch.items_BL.numel(), generator=generator, device=generator.device).to(c_BLD.device)
        null_BL = batch.of_sequence(draw_S) < self.config.guidance_drop
        return torch.where(null_BL[..., None], self.null, c_BLD)

    def _noised(self, x0_BLD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_t, t): t uniform and independent per target."""
        shape, device = x0_BLD.shape[:-1], generator.device
        t_BL = torch.randint(self.diffusion.steps, shape, generator=generator, device=device).to(x0_BLD.device)
        return self.diffusion.q_sample(x0_BLD, t_BL, draw_noise(x0_BLD, generator)), t_BL

    def _denoise(self, x_t: Tensor, c: Tensor, code: Tensor) -> Tensor:
        """f: x0_hat (..., D)."""
        return self.denoiser(torch.cat([x_t, c, code], dim=-1))
