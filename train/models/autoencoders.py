"""Restoring the fields' vectors before the base encodes them, as CDAE and MultVAE would.

CDAE (Wu et al., 2016) and MultVAE (Liang et al., 2018, arXiv 1802.05814) restore a user's row of interactions from a
row with holes. As a part of a ranking model what has holes is a sample's fields, and what is restored their vectors e:

    c = act(W1 [e(x_T); s] + b1),   e' = W2 c + b2,   v_n = e'_n where field n is missing, else e_n,   p = f(h(v))

    L = L_main(x_0) + recon_weight |e' - e(x_0)|^2 / (N W) + aux_weight L_task(f(h(v of x_T)))

the aim not differentiated, only fields counted that x_0 has. MultVAE draws c from N(mu, sigma^2), both linear in a
tanh layer, and adds beta KL(N(mu, sigma^2) | N(0, 1)) / C; it is served with c = mu. CDAE's vector for a user is that
of the user's field, where there is one. AsymDiffRec's argument against both: what is restored is encoded again, and
each of the two loses something.

Shapes: B samples, N fields, W embedding width, C width of the code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.diffusion.gaussian import draw_noise
from train.field_model import task_sum
from train.protocol import FieldSpec, LossParts, RankingBatch, Term
from train.ranking_configs import AutoencoderShape, CDAEConfig, MultVAEConfig
from train.table_shard import LargeTable
from train.wrapped import Wrapped, dropped, samples


class FieldAutoencoder(Wrapped):
    """What both share; they say how a code is made."""

    def __init__(self, config: AutoencoderShape, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.shape = config
        self.inputs = self.base.flat + len(fields)
        self.decode = nn.Linear(config.code, self.base.flat)

    @abstractmethod
    def code(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Term]]:
        """c_BC of [e; s], drawn if there is a generator, and terms of the loss that are the code's own."""

    def loss(self, batch: RankingBatch, generator: torch.Generator) -> LossParts:
        """The task on the sample as logged, the restored vectors, and the task on them."""
        batch = batch.with_missing(self.base.fields.missing(batch))
        e_BNW = self.base.fields(batch)
        holed = dropped(batch, self.shape, generator)
        restored_BNW, filled_BNW, own = self._restored(holed, generator)
        error_BN = (restored_BNW - e_BNW.detach()).square().mean(dim=2) * ~batch.missing_BN
        terms = {
            "main": samples(task_sum(self.base.head(self.base.encode_fields(e_BNW, batch)), batch)),
            "recon": samples(error_BN.mean(dim=1).sum(), self.shape.recon_weight),
            "aux": samples(
                task_sum(self.base.head(self.base.encode_fields(filled_BNW, holed)), batch), self.shape.aux_weight
            ),
        }
        return LossParts(terms | own, batch.counts)

    def logits(self, batch: RankingBatch) -> Tensor:
        """y_B = f(h(v)). Put the model in eval mode before scoring."""
        batch = batch.with_missing(self.base.fields.missing(batch))
        _, filled_BNW, _ = self._restored(batch, None)
        return self.base.head(self.base.encode_fields(filled_BNW, batch))

    def _restored(
        self, batch: RankingBatch, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, dict[str, Term]]:
        """(e', v, terms of the code), each vector (B, N, W)."""
        e_BNW = self.base.fields(batch)
        c_BC, own = self.code(torch.cat([e_BNW.flatten(1), batch.missing_BN.to(e_BNW.dtype)], dim=1), generator)
        restored_BNW = self.decode(c_BC).view_as(e_BNW)
        return restored_BNW, torch.where(batch.missing_BN[..., None], restored_BNW, e_BNW), own


class CDAE(FieldAutoencoder):
    """One hidden layer."""

    def __init__(self, config: CDAEConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.hidden = nn.Linear(self.inputs, config.code)

    def code(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Term]]:
        """c = relu(W1 x + b1)."""
        return self.hidden(x).relu(), {}


class MultVAE(FieldAutoencoder):
    """A code from a distribution, as wide as its hidden layer."""

    def __init__(self, config: MultVAEConfig, fields: Sequence[FieldSpec], table: LargeTable | None = None) -> None:
        super().__init__(config, fields, table)
        self.beta = config.beta
        self.hidden = nn.Linear(self.inputs, config.code)
        self.moments = nn.Linear(config.code, 2 * config.code)

    def code(self, x: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Term]]:
        """c = mu + sigma eps; without a generator mu."""
        mu_BC, log_variance_BC = self.moments(self.hidden(x).tanh()).chunk(2, dim=1)
        if generator is None:
            return mu_BC, {}
        divergence_BC = (mu_BC.square() + log_variance_BC.exp() - 1 - log_variance_BC) / 2
        c_BC = mu_BC + (log_variance_BC / 2).exp() * draw_noise(mu_BC, generator)
        return c_BC, {"divergence": samples(divergence_BC.mean(dim=1).sum(), self.beta)}
