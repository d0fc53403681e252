"""DimeRec (arXiv 2408.12153): interests of the history guide a diffusion of the next item on the unit sphere.

GEM   H = E[items] -> g, K interests: self-attentive (the main form), routed, or the last K items (train/interests.py)
DAM   x0_hat = f(x_t, t, g) = W2 silu(W1 [x_t; s_t; g_1; ...; g_K] + b1) + b2, s_t a row of a step-embedding table
Loss  L_gem + lambda L_recon + mu L_ssm (Eq. 23): L_gem the cross-entropy of the target under the interest that scores
      it highest, L_recon = |x_0 - x0_hat|^2, L_ssm the cross-entropy under x0_hat.

Training is Algorithm 1: x_0 the target's vector on the sphere, t uniform, x_t by the geodesic walk
(train/diffusion/geodesic.py, which says where it differs from the printed formula); sampling is Algorithm 2 from a
random point. Of what the paper leaves open: the guidance is flattened, in the order of its interests; every position is
a target; the softmax is over the catalogue unless `negatives` are drawn; gradients reach the targets' vectors and the
guidance. Ours: a bias of GEM for how far back an event is (`recency`), cosines over a `temperature`, and a `signal`
below 1 in the default; Transformer `blocks` between items and GEM, pre-trained for a share of the epochs, as a choice.

Shapes: B batch, L length, D width, K interests, H hidden, T steps, R = 1 vector per user, V catalogue rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.tables import FIRST_INDEX
from train.configs import DimeRecConfig
from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.diffusion.geodesic import GeodesicDiffusion, random_points
from train.diffusion.schedules import alphas_cumprod
from train.diffusion.sphere import normalised
from train.dropout import Dropout
from train.interests import History, Interests, LatestItems, RoutedInterests, SelfAttentiveInterests
from train.item_table import CosineItemModel
from train.layers import HistoryEncoder, Visible, initialise, place_embedding
from train.protocol import LossParts, SequenceBatch, Stage, Term
from train.table_shard import LargeTable

_USERS_AT_ONCE = 2048
"""All steps for so many users before the next ones."""


class Denoiser(nn.Module):
    """f: the first layer in three parts, so that a reverse process pays for x_t alone."""

    def __init__(self, width: int, interests: int, hidden: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.steps = nn.Embedding(steps, width)
        self.first = nn.Linear((2 + interests) * width, hidden).apply(initialise)
        self.dropout = Dropout(dropout)
        self.second = nn.Linear(hidden, width).apply(initialise)

    def forward(self, x_t: Tensor, t: Tensor, guidance: Tensor) -> Tensor:
        """x0_hat (..., D) of x_t (..., D), t (...) and guidance (..., K, D)."""
        return self.answer(x_t, self.codes()[t] + self.guided(guidance))

    def codes(self) -> Tensor:
        """W1's part for the step, (T, H)."""
        of_step = self.first.weight[:, self.width : 2 * self.width]
        return F.linear(self.steps.weight, of_step)

    def guided(self, guidance: Tensor) -> Tensor:
        """W1's part for the guidance and b1, (..., H)."""
        return F.linear(guidance.flatten(-2), self.first.weight[:, 2 * self.width :], self.first.bias)

    def answer(self, x_t: Tensor, known: Tensor) -> Tensor:
        """x0_hat, the other two parts being `known`."""
        hidden = F.silu(known + F.linear(x_t, self.first.weight[:, : self.width]))
        return self.second(self.dropout(hidden))

    def repeated(self, known_BH: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """x0_hat (B, D) of x_t and the step's code (1, H), for a reverse process: in evaluation, without a gradient.

        The hidden layer has one place in memory for all steps. A CPU gets large blocks anew from the system each time,
        page by page, which takes longer than the products.
        """
        of_x_DH, hidden_BH = self.first.weight[:, : self.width].T, torch.empty_like(known_BH)

        def answer(x_t_BD: Tensor, code_1H: Tensor) -> Tensor:
            torch.add(known_BH, code_1H, out=hidden_BH).addmm_(x_t_BD, of_x_DH)
            return self.second(F.silu(hidden_BH, inplace=True))

        return answer


class DimeRec(CosineItemModel):
    """The model, its loss and its sampler."""

    def __init__(self, config: DimeRecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        shape = (config.width, config.interests, config.max_length)
        self.places = place_embedding(config.max_length, config.width) if config.blocks else None
        blocks = (config.width, config.blocks, config.heads, config.dropout, config.embedding_dropout)
        self.encoder: nn.Module = HistoryEncoder(*blocks) if config.blocks else Dropout(config.embedding_dropout)
        self.gem: nn.Module = {
            "attention": lambda: SelfAttentiveInterests(*shape, config.recency),
            "routing": lambda: RoutedInterests(*shape, shared=False),
            "latest": lambda: LatestItems(config.interests),
        }[config.gem]()
        self.dam = Denoiser(config.width, config.interests, config.hidden, config.steps, config.dropout)
        abar_T = alphas_cumprod(config.schedule, config.steps, config.signal)
        self.on_sphere = config.process != "gaussian"
        self.diffusion = (
            GeodesicDiffusion(abar_T, literal=config.process == "literal")
            if self.on_sphere
            else GaussianDiffusion(abar_T)
        )

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """The three terms, each a mean over the batch's known targets."""
        # One lookup: its gradient is as large as the table.
        shown_BLD, e_BLD = self.items(torch.stack([batch.items_BL, batch.targets_BL])).unbind()
        found = self.interests(shown_BLD, batch)
        x0_BLD = normalised(e_BLD) if self.on_sphere else e_BLD
        x_t_BLD, t_BL = self._noised(x0_BLD, generator)
        x0_hat_BLD = self.dam(x_t_BLD, t_BL, found.g_BQKD)
        error_BL = (x0_hat_BLD - x0_BLD).square().sum(dim=-1)
        error = (error_BL * (batch.targets_BL >= FIRST_INDEX)).sum()
        matching_BLD = found.changed(self.asking).matching(self.candidates(e_BLD))
        config, targets_BL = self.config, batch.targets_BL
        terms = {"recon": Term(error, "targets", config.recon_weight)}
        if config.gem_weight:
            gem = self.cross_entropy_sum(matching_BLD, targets_BL, generator)
            terms["gem"] = Term(gem, "targets", config.gem_weight)
        if config.ssm_weight:
            # Of length 1, as x_0 is, an inner product would tell items little apart: as long as a LayerNorm's output.
            scale = math.sqrt(config.width) if self.on_sphere and self.temperature is None else 1.0
            ssm = self.cross_entropy_sum(scale * self.asking(x0_hat_BLD), targets_BL, generator)
            terms["ssm"] = Term(ssm, "targets", config.ssm_weight)
        return LossParts(terms, batch.counts)

    def pretrain_loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of the next item under the blocks' latest output: of a SASRec with these scores."""
        c_BLD = self._history(self.items(batch.items_BL), batch)
        return self.next_item_loss(self.asking(c_BLD), batch, generator)

    def stages(self) -> list[Stage]:
        """One, or with `pretrain_share` table and blocks first."""
        share = self.config.pretrain_share
        if not share:
            return [Stage("main", 1.0, self.loss)]
        waiting = ("dam.", "gem.") if [*self.gem.parameters()] else ("dam.",)
        return [Stage("pretrain", share, self.pretrain_loss, frozen=waiting), Stage("main", 1 - share, self.loss)]

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: x_0, sampled in `steps` (None: T); on the sphere of length 1. Put the model in eval mode first."""
        batch = batch.latest(self.config.max_length)
        # One lookup: ranks that share a table have to make as many of them.
        shown_BLD = self.items(batch.items_BL)
        known_BH = shown_BLD.new_empty(len(shown_BLD), self.config.hidden)
        for places, part in batch.by_length():
            found = self.interests(shown_BLD[places, -part.items_BL.shape[1] :], part, latest=True)
            known_BH[places] = self.dam.guided(found.g_BQKD[:, 0])
        return torch.cat([self._sampled(known, steps, generator) for known in known_BH.split(_USERS_AT_ONCE)])[:, None]

    def _sampled(self, known_BH: Tensor, steps: int | None, generator: torch.Generator) -> Tensor:
        """x_0 (B, D)."""
        like_BD = known_BH.new_empty(len(known_BH), self.config.width)
        start_BD = (random_points if self.on_sphere else draw_noise)(like_BD, generator)
        answer, code_TH = self.dam.repeated(known_BH), self.dam.codes()
        # All users are at one step.
        x0_BD = self.diffusion.sample(lambda x, t: answer(x, code_TH[t[:1]]), start_BD, steps, generator)
        return normalised(x0_BD) if self.on_sphere or self.temperature is not None else x0_BD

    def interests(self, shown_BLD: Tensor, batch: SequenceBatch, latest: bool = False) -> Interests:
        """GEM's, of every position or of the `latest` alone."""
        found: Interests = self.gem(History.of(self._history(shown_BLD, batch), batch, latest))
        return found

    def _history(self, shown_BLD: Tensor, batch: SequenceBatch) -> Tensor:
        """H_BLD: the item vectors, or behind the blocks what each position knows."""
        if self.places is None:
            h_BLD: Tensor = self.encoder(shown_BLD)
        else:
            visible = Visible.of(batch.items_BL, batch.place_BL)
            h_BLD = self.encoder(shown_BLD + self.places(batch.place_BL), visible)
        return h_BLD

    def _noised(self, x0_BLD: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x_t, t): t uniform and independent per target."""
        shape, device = x0_BLD.shape[:-1], generator.device
        t_BL = torch.randint(self.diffusion.steps, shape, generator=generator, device=device).to(x0_BLD.device)
        return self.diffusion.q_sample(x0_BLD, t_BL, draw_noise(x0_BLD, generator)), t_BL
