"""ADRec the straightforward way, as published code runs it: every position through everything, at every step.

An oracle for what train.models.adrec computes at the cost of one token, and what the benchmarks measure it beside.

Shapes: B batch, L length, D width, V catalogue rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from infra.tables import FIRST_INDEX
from train.diffusion.gaussian import draw_noise
from train.diffusion.time_embedding import sinusoid
from train.models.adrec import ADRec
from train.protocol import SequenceBatch


def entering(model: ADRec, x_t_BLD: Tensor, t_BL: Tensor, own_BLD: Tensor | None) -> Tensor:
    """lambda (x_t + temb(t)), the code of the step worked out for every token."""
    time_BLD = model.time.mlp(sinusoid(t_BL * (1000 / model.config.steps), model.config.width))
    entering_BLD = model.noise_scale * (x_t_BLD + time_BLD)
    if model.config.noise_scaling == "normalised":
        norm = model.cam.transformer.blocks[-1].feed_forward_norm
        entering_BLD = entering_BLD * torch.cat([norm.weight, norm.bias]).norm() / model.config.width**0.5
    return entering_BLD if own_BLD is None else entering_BLD + model.own_answer(own_BLD)


@torch.no_grad()
def user_vectors(model: ADRec, batch: SequenceBatch, steps: int | None, generator: torch.Generator) -> Tensor:
    """u_B1D: all L positions through CAM once, and through ADM once for each of the reverse steps."""
    batch = batch.latest(model.config.max_length)
    if model.config.seen_padding:
        batch = batch.widened(model.config.max_length)
    visible, shown_BLD = model._visible(batch), model.items(batch.items_BL)
    c_BLD = model.cam(model._placed(shown_BLD, batch), visible)
    known_BLD = model._in_process(model.items(batch.items_BL[:, 1:] * visible.real_BL[:, :-1]))
    own_BLD: list[Tensor | None] = [None]

    def denoise(x_t_BD: Tensor, t_B: Tensor) -> Tensor:
        x_t_BLD = torch.cat([known_BLD, x_t_BD[:, None]], dim=1)
        t_BL = torch.cat([torch.zeros_like(batch.items_BL[:, 1:]), t_B[:, None]], dim=1)
        entering_BLD = entering(model, x_t_BLD, t_BL, own_BLD[0])
        x0_hat_BD = model.adm(c_BLD + entering_BLD, visible)[:, -1]
        if model.config.guidance != 1:
            without_BD = model.adm(entering_BLD, visible)[:, -1]
            x0_hat_BD = without_BD + model.config.guidance * (x0_hat_BD - without_BD)
        x0_hat_BD = model._in_process(x0_hat_BD)
        if model.own_answer is not None:
            own_BLD[0] = F.pad(x0_hat_BD[:, None], (0, 0, batch.items_BL.shape[1] - 1, 0))
        return x0_hat_BD

    start_BD = draw_noise(c_BLD[:, -1], generator)
    return model.diffusion.sample(denoise, start_BD, steps, generator, model.config.sampler == "ddim")[:, None]


def stir(model: ADRec, size: float) -> ADRec:
    """As if trained: no bias is 0, no gain 1, and no block passes on what it is given."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name != "items.weight":
                weights += size * torch.randn_like(weights)
    return model


def loss(model: ADRec, batch: SequenceBatch, generator: torch.Generator) -> Tensor:
    """0.5 (CE + MSE) over left-padded rows: all logits at once, the code of the step worked out for every token."""
    visible = model._visible(batch)
    target_BLD = model.items(batch.targets_BL)
    t_BL = torch.randint(model.config.steps, batch.items_BL.shape, generator=generator)
    noisy_BLD = model.diffusion.q_sample(target_BLD, t_BL, draw_noise(target_BLD, generator))
    real_BL1 = (batch.targets_BL != 0)[..., None]
    x_t_BLD = torch.where(real_BL1, noisy_BLD, target_BLD)
    c_BLD = model.cam(model._placed(model.items(batch.items_BL), batch), visible)
    x0_hat_BLD = model.adm(c_BLD + entering(model, x_t_BLD, t_BL * real_BL1[..., 0], None), visible)
    logits_BLV = x0_hat_BLD @ model.items.weight[FIRST_INDEX:].T
    wanted_BL = torch.where(batch.targets_BL >= FIRST_INDEX, batch.targets_BL - FIRST_INDEX, -100)
    ce = F.cross_entropy(logits_BLV.flatten(0, 1), wanted_BL.flatten(), ignore_index=-100)
    valid_BL = batch.targets_BL >= FIRST_INDEX
    error_BL = (x0_hat_BLD - target_BLD).square().mean(dim=-1) * valid_BL
    mse_B = error_BL.sum(dim=1) / valid_BL.sum(dim=1).clamp(min=1)
    return 0.5 * (ce + mse_B[valid_BL.any(dim=1)].mean())
