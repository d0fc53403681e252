"""The geodesic random walk of DimeRec (arXiv 2408.12153, Algorithms 1 and 2): a diffusion process on the unit sphere.

Forward:  x_t = exp_{x_0}[ s_t eps' ],  eps' = eps - (eps . x_0) x_0,  eps ~ N(0, I)
Reverse:  x_{t-1} = normalised( mu~_t(x_t, x0_hat) + r_t eps ),  mu~_t the Gaussian process's posterior mean

As printed, s_t = sqrt(1 - abar_t) and r_t = beta~_t, the posterior variance itself (`literal`). But |eps'| is about
sqrt(D - 1), so the walk is as long as sqrt((1 - abar_t) (D - 1)): at D = 64 it passes the antipode of the target where
1 - abar_t = 0.157, and comes back. Here the walk is as long as the angle at which the cosine is the Gaussian process's
signal:

    s_t = arccos(sqrt(abar_t)) / sqrt(D - 1),   r_t = sqrt(beta~_t / (D - 1))

Then x_t is about sqrt(abar_t) x_0 + sqrt(1 - abar_t) u, u a tangent vector of about length 1: the Gaussian process with
noise of length 1 in the tangent space, whose reverse formulas hold. The mean cosine to x_0 falls in t for every
schedule and any D, and ends near sqrt(abar_T): at D = 64 0.007 above it, at D = 3, where lengths vary, 0.17.

Shapes: as of the Gaussian process; D at least 2, x_0 and x_t of length 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from train.diffusion.gaussian import GaussianDiffusion, _at, draw_noise
from train.diffusion.sphere import exp_map, normalised, tangent

_QUANTILES = 4096


class GeodesicDiffusion(GaussianDiffusion):
    """The walk with the Gaussian process's schedule; `literal`: its lengths as printed."""

    def __init__(self, alphas_cumprod: Tensor, literal: bool = False) -> None:
        super().__init__(alphas_cumprod)
        self.literal = literal

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, from `noise` ~ N(0, I); x_0 of any length is normalised first."""
        x0 = normalised(x0)
        return exp_map(x0, _at(self.scales(x0.shape[-1]), t, x0) * tangent(x0, noise))

    def reverse_step(self, x0_hat: Tensor, x_t: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """x_{t-1}: the posterior's mean, and noise if there is a generator, back on the sphere."""
        mean, _ = self.posterior(x0_hat, x_t, t)
        if generator is None:
            return normalised(mean)
        variance_T = self.log_variance_T.exp()
        spread_T = variance_T if self.literal else (variance_T / (x_t.shape[-1] - 1)).sqrt()
        # With noise it is of no special length, which is all that torch's own function asks, at a fifth of the time.
        return F.normalize(mean + _at(spread_T, t, x_t) * draw_noise(x_t, generator), dim=-1)

    def implied_step(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The Gaussian process's, back on the sphere."""
        return normalised(super().implied_step(x0_hat, x_t, t))

    def respaced(self, chosen: Tensor) -> GeodesicDiffusion:
        """The process that visits only the steps `chosen` (ascending) of this one."""
        return GeodesicDiffusion(self.alphas_cumprod[chosen], self.literal)

    def scales(self, width: int) -> Tensor:
        """s_T: length of the walk per length of its tangent noise, in D = `width` dimensions."""
        return self.noise_T if self.literal else torch.arccos(self.signal_T) / math.sqrt(width - 1)

    def mean_cosine(self, width: int) -> Tensor:
        """E[cos(x_0, x_t)] of every step: of cos(s chi), chi with D - 1 degrees of freedom, over its quantiles."""
        from scipy.stats import chi

        middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        length_Q = torch.from_numpy(chi.ppf(middles, width - 1))
        return torch.cos(self.scales(width).cpu()[:, None] * length_Q).mean(dim=1)


def random_points(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform on the sphere, shaped like `like`."""
    return normalised(draw_noise(like, generator))
