"""AsymDiffRec (arXiv 2508.12706): drop raw fields, restore the representation in latent space.

Around any base p = f(h(x)): T fields of x_0 are dropped, s marks the missing ones in x_T, and one call of a two-layer
network restores the latent: z_0' = g([s, h(x_T)]). No code is published; the equations are those that chapter 9
of github.com/datawhalechina/fun-rec has of the paper.

    L = L_main + recon_weight * L_recon + aux_weight * L_aux

Serving goes through g as well: logits = f(g([s, h(x)])) with s the really missing fields; T = 0 is
among the training draws, so g knows complete samples too.

Shapes: B samples, N fields, D width of h(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.errors import ConfigError
from train.diffusion.dropping import drop
from train.models import build_ranking
from train.protocol import Encodable, FieldSpec, LossParts, RankingBatch, Term
from train.ranking_configs import AsymDiffRecConfig


class AsymDiffRec(nn.Module):
    """The wrapper; the base only shows its `encode`, `head` and `width`."""

    def __init__(self, config: AsymDiffRecConfig, fields: Sequence[FieldSpec]) -> None:
        super().__init__()
        self.config = config
        base = build_ranking(config.base, fields)
        if not isinstance(base, Encodable):
            raise ConfigError(f"base: {config.base.model} has no encode and head for AsymDiffRec to wrap")
        self.base = base
        self.reverse = nn.Sequential(
            nn.Linear(len(fields) + base.width, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, base.width),
        )

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """L_main on the sample as logged, L_recon and L_aux on the sample with dropped fields.

        L_recon = mean over the batch of ||z_0' - z_0||^2 / D; z_0 = h(x_0) is detached when
        `stop_gradient` is set. L_aux is the task loss of f(z_0').
        """
        z0_BD = self.base.encode(batch)
        restored_BD = self._restore(batch.with_missing(drop(batch.missing_BN, generator)))
        main = F.binary_cross_entropy_with_logits(self.base.head(z0_BD), batch.label_B, reduction="sum")
        aux = F.binary_cross_entropy_with_logits(self.base.head(restored_BD), batch.label_B, reduction="sum")
        aim_BD = z0_BD.detach() if self.config.stop_gradient else z0_BD
        recon = (restored_BD - aim_BD).square().mean(dim=1).sum()
        terms = {
            "main": Term(main, "samples"),
            "recon": Term(recon, "samples", self.config.recon_weight),
            "aux": Term(aux, "samples", self.config.aux_weight),
        }
        return LossParts(terms, batch.counts)

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(g([s, h(x)])). Put the model in eval mode before scoring."""
        return self.base.head(self._restore(batch))

    def _restore(self, batch: RankingBatch) -> Tensor:
        """z_0'_BD = g([s, h(x)]), s = the batch's missing fields."""
        z_BD = self.base.encode(batch)
        return self.reverse(torch.cat([batch.missing_BN.to(z_BD.dtype), z_BD], dim=1))
