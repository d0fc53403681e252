"""AsymDiffRec (arXiv 2508.12706): drop raw fields, restore the representation in latent space.

Around any base p = f(h(x)): T fields of x_0 are dropped, s marks the missing ones in x_T, and one call of a two-layer
network restores the latent: z_0' = g([s, h(x_T)]). No code is published; the equations are those that chapter 9
of github.com/datawhalechina/fun-rec has of the paper. By default g gives what is to be added (`residual`):

    z_0' = z_T + sqrt(|s| / N) g([s, z_T])

    L = L_main + recon_weight * L_recon + aux_weight * L_aux

Serving goes that way too: logits = f(z_0') with s the really missing fields. A complete sample has none, and its z_0'
is z_0, so that with `shared_head` the base answers; without `residual` g knows complete samples from training, where T
may be 0. Where the paper is silent there are switches (train/ranking_configs.py).

Shapes: B samples, N fields, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.diffusion.dropping import drop
from train.field_model import task_sum
from train.protocol import FieldSpec, LossParts, RankingBatch
from train.ranking_configs import AsymDiffRecConfig
from train.table_shard import LargeTable
from train.wrapped import Wrapped, samples, two_layers


class AsymDiffRec(Wrapped):
    """The wrapper; of the base it takes `encode`, `head` and `width`."""

    def __init__(self, config: AsymDiffRecConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.config = config
        self.reverse = two_layers(len(fields) + self.base.width, config.hidden, self.base.width)
        self.own_head = None if config.shared_head else nn.Linear(self.base.width, 1)
        rates_N = torch.tensor([spec.missing_rate for spec in fields])
        self.weight_N = rates_N if config.drop_by == "missing_rate" else None  # no buffer: it stays with the generator

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """L_main on the sample as logged, L_recon and L_aux on the sample with dropped fields.

        L_recon = mean over the batch of ||z_0' - z_0||^2 / D; z_0 = h(x_0) is detached when
        `stop_gradient` is set. L_aux is the task loss of f(z_0').
        """
        config = self.config
        missing_BN = drop(batch.missing_BN, generator, config.count_missing, self.weight_N, config.drop_power)
        z0_BD = self.base.encode(batch)
        restored_BD = self._restore(batch.with_missing(missing_BN))
        aim_BD = z0_BD.detach() if config.stop_gradient else z0_BD
        terms = {
            "main": samples(task_sum(self.base.head(z0_BD), batch)),
            "recon": samples((restored_BD - aim_BD).square().mean(dim=1).sum(), config.recon_weight),
            "aux": samples(task_sum(self._head(restored_BD), batch), config.aux_weight),
        }
        return LossParts(terms, batch.counts)

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(z_0'). Put the model in eval mode before scoring."""
        return self._head(self._restore(batch))

    def _restore(self, batch: RankingBatch) -> Tensor:
        """z_0'_BD of z_T = h(x), s = the batch's missing fields."""
        z_BD = self.base.encode(batch)
        s_BN = self.base.fields.missing(batch).to(z_BD.dtype)
        g_BD: Tensor = self.reverse(torch.cat([s_BN, z_BD], dim=1))
        return z_BD + s_BN.mean(dim=1, keepdim=True).sqrt() * g_BD if self.config.residual else g_BD

    def _head(self, z_BD: Tensor) -> Tensor:
        return self.base.head(z_BD) if self.own_head is None else self.own_head(z_BD)[:, 0]
