"""Gaussian noise on the representation, as DiffRec (arXiv 2304.04971) puts it on a user's row, and no dropped fields.

z_0 = h(x_0), z_t ~ N(sqrt(abar_t) z_0, (1 - abar_t) I), z_0' = g([z_t; step t's vector]), which predicts z_0:

    L = L_main + recon_weight ||z_0' - z_0||^2 / D + aux_weight L_task(f(z_0')),  t uniform, z_0 in L_recon detached

As DiffRec is without noise at inference, so here: z_T = h(x), then the posterior's mean for T steps. Noise tells g
nothing of which fields are missing; that is what AsymDiffRec's s is for.

Shapes: B samples, D width of h(x), T steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.field_model import task_sum
from train.protocol import FieldSpec, LossParts, RankingBatch
from train.ranking_configs import LatentDiffusionConfig
from train.table_shard import LargeTable
from train.wrapped import Wrapped, samples, two_layers

STEP_WIDTH = 16


class LatentDiffusion(Wrapped):
    """The base, and a denoiser of what it makes of a sample."""

    def __init__(
        self, config: LatentDiffusionConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None
    ) -> None:
        super().__init__(config, fields, table)
        self.config = config
        self.steps = nn.Embedding(config.steps, STEP_WIDTH)
        self.denoiser = two_layers(self.base.width + STEP_WIDTH, config.hidden, self.base.width)
        noise_T = torch.linspace(
            config.noise / config.steps, config.noise, config.steps, dtype=torch.float64, device="cpu"
        )
        self.diffusion = GaussianDiffusion(1 - noise_T)

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """The task on the sample as logged, the restored representation, and the task on it."""
        z0_BD = self.base.encode(batch)
        t_B = torch.randint(self.config.steps, (len(z0_BD),), generator=generator, device=generator.device)
        t_B = t_B.to(z0_BD.device)
        restored_BD = self._denoise(self.diffusion.q_sample(z0_BD, t_B, draw_noise(z0_BD, generator)), t_B)
        error = (restored_BD - z0_BD.detach()).square().mean(dim=1).sum()
        terms = {
            "main": samples(task_sum(self.base.head(z0_BD), batch)),
            "recon": samples(error, self.config.recon_weight),
            "aux": samples(task_sum(self.base.head(restored_BD), batch), self.config.aux_weight),
        }
        return LossParts(terms, batch.counts)

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(z_0'). Put the model in eval mode before scoring."""
        z_BD = self.base.encode(batch)
        for step in reversed(range(self.config.steps)):
            t_B = torch.full((len(z_BD),), step, device=z_BD.device)
            z_BD = self.diffusion.reverse_step(self._denoise(z_BD, t_B), z_BD, t_B, None)
        return self.base.head(z_BD)

    def _denoise(self, z_BD: Tensor, t_B: Tensor) -> Tensor:
        z0_BD: Tensor = self.denoiser(torch.cat([z_BD, self.steps(t_B)], dim=1))
        return z0_BD
