"""DiffuRec (arXiv 2304.00686): the noisy target is added to every item of the history.

z_i = LN(e_i) + lambda_i (x_t + temb(t)), each of lambda_i's D components from N(delta, delta); z -> Transformer in
both directions -> x0_hat, read at the last event; cross-entropy of x0_hat . E alone. Items have no positions.
Every target needs a pass over the history before it (train/prefixes.py), and every reverse step one over the whole
history: what it adds to the last step's result reaches all positions, so nothing can be kept from one to the next.
Differences from the published code (github.com/WHUIR/DiffuRec at f6f70c9), all deliberate: padding is never attended,
padding and unknown are no candidates, and targets may be drawn (config.prefixes).

Shapes: B batch, L length, D width, N prefixes, C rows and P width of the packed prefixes, R = 1 vector per user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infra.tables import PADDING
from train.configs import DiffuRecConfig
from train.diffusion.gaussian import GaussianDiffusion, draw_noise
from train.diffusion.schedules import alphas_cumprod
from train.diffusion.time_embedding import TimeEmbedding
from train.dropout import Dropout
from train.item_table import ItemModel
from train.layers import LAYER_NORM_EPS, Block, Visible, initialise
from train.prefixes import prefixes_of
from train.protocol import LossParts, SequenceBatch, Term
from train.table_shard import LargeTable


class PreNormBlock(Block):
    """x <- x + attention(LN(x)), then x <- x + feed_forward(LN(x)); who reads whom is the mask's to say."""

    def forward(self, x_BLD: Tensor, visible: Visible) -> Tensor:
        """x_BLD of the next block."""
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), visible))
        return x_BLD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BLD)))


class DiffuRec(ItemModel):
    """The model, its loss and its sampler."""

    def __init__(self, config: DiffuRecConfig, catalogue: int, items: LargeTable | None = None) -> None:
        super().__init__(config, catalogue, items)
        self.config = config
        self.embedding_dropout = Dropout(config.embedding_dropout)
        self.embedding_norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(
            PreNormBlock(config.width, config.heads, config.dropout) for _ in range(config.blocks)
        ).apply(initialise)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.time = TimeEmbedding(config.width, config.steps)
        self.diffusion = GaussianDiffusion(alphas_cumprod(config.schedule, config.steps))

    def loss(self, batch: SequenceBatch, generator: torch.Generator) -> LossParts:
        """Cross-entropy of x0_hat, mean over the batch's known targets, or an unbiased estimate from drawn ones."""
        counts = batch.counts
        p = prefixes_of(batch, self.config.max_length, self.config.prefixes, generator)
        # One lookup: its gradient is as large as the table, and a sharded table's rows come in one exchange.
        rows_TD = self.items(torch.cat([p.items_CP.flatten(), p.target_N]))
        shown_CPD, x0_ND = rows_TD[: p.items_CP.numel()].view(*p.items_CP.shape, -1), rows_TD[p.items_CP.numel() :]
        noisy_ND = self._noised(x0_ND, generator)
        shown_CPD = self._shown(shown_CPD)
        weight_CPD = draw_noise(shown_CPD, generator)
        y_CPD = self._denoise(shown_CPD, noisy_ND[p.owner_CP], weight_CPD, both_ways(p.items_CP, p.place_CP))
        x0_hat_ND = self.dropout(self.norm(y_CPD.flatten(0, 1)[p.last_N]))
        ce = self.cross_entropy_sum(x0_hat_ND, p.target_N, generator) * (counts["targets"] / len(p.target_N))
        return LossParts({"ce": Term(ce, "targets")}, counts)

    @torch.no_grad()
    def user_vectors(self, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
        """u_B1D: x_0, sampled in `steps` (None: T) from N(0, I). Put the model in eval mode first."""
        batch = batch.latest(self.config.max_length)
        shown_BLD = self._shown(self.items(batch.items_BL))
        parts = [
            (places, shown_BLD[places, -part.items_BL.shape[1] :], both_ways(part.items_BL, part.place_BL))
            for places, part in batch.by_length()
        ]
        code_TD = self.time.codes()

        def denoise(x_t_BD: Tensor, t_B: Tensor) -> Tensor:
            # As many draws however much padding there is: an event's are those of its place from the end.
            draws = shown_BLD.new_zeros(len(x_t_BD), self.config.max_length, self.config.width)
            draws = draws if steps == 0 else draw_noise(draws, generator)
            noisy_B1D, x0_hat_BD = (x_t_BD + code_TD[t_B])[:, None], torch.empty_like(x_t_BD)
            for places, part_BLD, visible in parts:
                part_draws = draws[places, -part_BLD.shape[1] :]
                x0_hat_BD[places] = self._denoise(part_BLD, noisy_B1D[places], part_draws, visible)[:, -1]
            return self.norm(x0_hat_BD)

        start_BD = draw_noise(shown_BLD[:, -1], generator)
        return self.diffusion.sample(denoise, start_BD, steps, generator)[:, None]

    def _shown(self, e_BLD: Tensor) -> Tensor:
        return self.embedding_norm(self.embedding_dropout(e_BLD))

    def _noised(self, x0_ND: Tensor, generator: torch.Generator) -> Tensor:
        """x_t + temb(t), t uniform and independent per target."""
        t_N = torch.randint(self.diffusion.steps, x0_ND.shape[:1], generator=generator, device=generator.device)
        t_N = t_N.to(x0_ND.device)
        return self.diffusion.q_sample(x0_ND, t_N, draw_noise(x0_ND, generator)) + self.time(t_N)

    def _denoise(self, shown_BLD: Tensor, noisy_BLD: Tensor, draws_BLD: Tensor, visible: Visible) -> Tensor:
        """y_BLD of z = shown + lambda noisy, where lambda = delta (1 + draws)."""
        z_BLD = shown_BLD + self.config.noise_scale * (1 + draws_BLD) * noisy_BLD
        for block in self.blocks:
            z_BLD = block(z_BLD, visible)
        return z_BLD


def both_ways(items_BL: Tensor, place_BL: Tensor) -> Visible:
    """A position may read all of its own sequence; padding, at place 0 each, itself alone.

    >>> both_ways(torch.tensor([[7, 8, 0]]), torch.tensor([[0, 1, 0]])).mask_B1LL.int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    own_BL = (place_BL == 0).cumsum(dim=1)
    return Visible((own_BL[:, :, None] == own_BL[:, None])[:, None], items_BL != PADDING)
