"""Noise schedules: alphas_cumprod (abar) of T steps, in float64.

abar_t = prod_{s<=t} (1 - beta_s); step index 0 is the least noisy. With few steps the betas are
stretched by 1000 / T, so that T steps carry about the noise that 1000 used to.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from infra.errors import ConfigError

MAX_BETA = 0.999


def alphas_cumprod(name: str, steps: int, signal: float = 1.0) -> Tensor:
    """abar_T of the schedule `name`: strictly falling, within (0, 1); float64. `signal`: the share that is left of
    sqrt(abar), the same at every step.

    Raises ConfigError for an unknown name or fewer than one step.

    >>> [round(a, 3) for a in alphas_cumprod("trunc_lin", 32)[[0, 3, 7, 15]].tolist()]
    [0.987, 0.837, 0.494, 0.052]
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule: unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ConfigError(f"steps: a diffusion process needs at least one step, not {steps}")
    with torch.device("cpu"):  # they are values, also where a model is built for its shapes alone (on "meta")
        return signal**2 * torch.cumprod(1 - SCHEDULES[name](steps), dim=0)


def _trunc_lin(steps: int) -> Tensor:
    """Linear from s/10000 + 0.01 to s/50 + 0.01, s = 1000/T; an end above 1 becomes s/1000 + 0.01.

    The schedule of the published ADRec and DiffuRec code.
    """
    scale = 1000 / steps
    start, end = scale * 0.0001 + 0.01, scale * 0.02 + 0.01
    if end > 1:
        end = scale * 0.001 + 0.01
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _trunc_cos(steps: int) -> Tensor:
    """abar_i = cos^2((i/T + 0.1) / 1.1 * pi/2): a cosine whose nearly noiseless beginning is cut off (Diffusion-LM)."""
    betas = _betas_from(lambda x: math.cos((x + 0.1) / 1.1 * math.pi / 2) ** 2, steps)
    first = 1 - math.cos(0.1 / 1.1 * math.pi / 2) ** 2
    return torch.cat([betas.new_tensor([first]), betas[:-1]])


def _pw_lin(steps: int) -> Tensor:
    """Ten steps linear down from s/10000 + 0.01 to s/10000, the others linear up to s/50 (Diffusion-LM)."""
    if steps <= 10:
        raise ConfigError(f"steps: schedule pw_lin needs more than 10 steps, not {steps}; choose another schedule")
    scale = 1000 / steps
    first = torch.linspace(scale * 0.0001 + 0.01, scale * 0.0001, 10, dtype=torch.float64)
    return torch.cat([first, torch.linspace(scale * 0.0001, scale * 0.02, steps - 10, dtype=torch.float64)]).clamp(
        max=MAX_BETA
    )


def _beta(steps: int) -> Tensor:
    """abar_i = the quantile 1 - (i + 1) / (T + 1) of Beta(0.3, 10), as published with ADRec; the grid is ours."""
    from scipy.stats import beta

    abar = beta.ppf(1 - np.arange(1, steps + 1) / (steps + 1), 0.3, 10)
    return torch.from_numpy(1 - abar / np.concatenate([[1.0], abar[:-1]]))


def _linear(steps: int) -> Tensor:
    """Linear from s/10000 to s/50 (Ho et al., 2020, stretched), held below 1 where T < 21."""
    scale = 1000 / steps
    betas = torch.linspace(scale * 0.0001, scale * 0.02, steps, dtype=torch.float64)
    return betas.clamp(max=MAX_BETA)


def _cosine(steps: int) -> Tensor:
    """abar(x) ~ cos^2((x + 0.008) / 1.008 * pi/2) (Nichol and Dhariwal, 2021)."""
    return _betas_from(lambda x: math.cos((x + 0.008) / 1.008 * math.pi / 2) ** 2, steps)


def _sqrt(steps: int) -> Tensor:
    """abar(x) ~ 1 - sqrt(x + 0.0001) (Diffusion-LM, Li et al., 2022)."""
    return _betas_from(lambda x: 1 - math.sqrt(x + 0.0001), steps)


def _betas_from(abar: Callable[[float], float], steps: int) -> Tensor:
    """beta_i = 1 - abar((i+1)/T) / abar(i/T), at most 0.999."""
    betas = [min(MAX_BETA, 1 - abar((i + 1) / steps) / abar(i / steps)) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "trunc_lin": _trunc_lin,
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,
    "trunc_cos": _trunc_cos,
    "pw_lin": _pw_lin,
    "beta": _beta,
}
