"""The Gaussian diffusion process: noising, its posterior, and sampling with an x0-predicting denoiser.

Ho et al. (2020), with the published ADRec code's choices: fixed posterior variance
whose first entry is replaced by the second, no noise at t = 0. Step indices run from 0 (least noisy)
to T-1. A step may be given per sample or per token: t has the leading shape of x.

Shapes: T steps; x (..., D) and t (...) or any leading part of it, e.g. x_BLD with t_B or t_BL.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from infra.errors import ConfigError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> x0_hat, with t int64 of shape x_t.shape[:-1]."""


def draw_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, I) shaped like x, drawn where the generator lives and then moved: one seed, one noise."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return noise.to(x.device)


def strided(steps_of_process: int, steps: int) -> Tensor:
    """`steps` step indices spread evenly over the process, ascending; the last is always T-1.

    Raises ConfigError unless 1 <= steps <= T.

    >>> strided(32, 4).tolist(), strided(32, 1).tolist()
    ([0, 10, 21, 31], [31])
    """
    if not 1 <= steps <= steps_of_process:
        raise ConfigError(f"steps: {steps} reverse steps asked of a process that has {steps_of_process}")
    if steps == 1:
        return torch.tensor([steps_of_process - 1])
    return torch.linspace(0, steps_of_process - 1, steps, dtype=torch.float64).round().long()


class GaussianDiffusion(nn.Module):
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), abar falling within (0, 1).

    Its coefficients are float64 buffers that move with the model and stay out of its checkpoint.
    """

    signal_T: Tensor
    noise_T: Tensor
    signal_before_T: Tensor
    noise_before_T: Tensor
    of_x0_T: Tensor
    of_xt_T: Tensor
    log_variance_T: Tensor
    stop_after: int | None = None
    """So many reverse steps are made and no more, to look at a process on its way; None: all."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        abar_T = alphas_cumprod.double()
        if abar_T.ndim != 1 or not len(abar_T) or not (abar_T > 0).all() or not (abar_T < 1).all():
            raise ConfigError("schedule: alphas_cumprod must be a non-empty vector within (0, 1)")
        self.alphas_cumprod = abar_T
        before_T = torch.cat([abar_T.new_ones(1), abar_T[:-1]])
        alpha_T = abar_T / before_T
        beta_T = 1 - alpha_T
        variance_T = beta_T * (1 - before_T) / (1 - abar_T)
        # No noise is added at t = 0; the stand-in only keeps its logarithm finite.
        variance_T[0] = variance_T[1] if len(variance_T) > 1 else beta_T[0]
        for name, value in {
            "signal_T": abar_T.sqrt(),
            "noise_T": (1 - abar_T).sqrt(),
            "signal_before_T": before_T.sqrt(),
            "noise_before_T": (1 - before_T).sqrt(),
            "of_x0_T": beta_T * before_T.sqrt() / (1 - abar_T),
            "of_xt_T": (1 - before_T) * alpha_T.sqrt() / (1 - abar_T),
            "log_variance_T": variance_T.log(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
        return _at(self.signal_T, t, x0) * x0 + _at(self.noise_T, t, x0) * noise

    def posterior(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance) of q(x_{t-1} | x_t, x_0 = x0_hat); at t = 0 the mean is x0_hat itself.

        mean = beta_t sqrt(abar_{t-1}) / (1 - abar_t) x0_hat
             + (1 - abar_{t-1}) sqrt(alpha_t) / (1 - abar_t) x_t
        variance = beta_t (1 - abar_{t-1}) / (1 - abar_t); the log variance broadcasts over D.
        """
        mean = _at(self.of_x0_T, t, x_t) * x0_hat + _at(self.of_xt_T, t, x_t) * x_t
        return mean, _at(self.log_variance_T, t, x_t)

    def implied_step(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """x_{t-1} along the noise that x_t and x0_hat imply, without new noise (DDIM, Song et al. 2021, eta = 0).

        eps = (x_t - sqrt(abar_t) x0_hat) / sqrt(1 - abar_t); x_{t-1} = sqrt(abar_{t-1}) x0_hat + sqrt(1 - abar_{t-1})
        eps, abar before step 0 being 1: then it is x0_hat.
        """
        eps = (x_t - _at(self.signal_T, t, x_t) * x0_hat) / _at(self.noise_T, t, x_t)
        return _at(self.signal_before_T, t, x_t) * x0_hat + _at(self.noise_before_T, t, x_t) * eps

    def sample(
        self,
        denoise: Denoiser,
        x_T: Tensor,
        steps: int | None,
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> Tensor:
        """x_0 from x_T by ancestral sampling, or `deterministic` (DDIM); `steps` below T samples the strided process,
        None all T; 0 is one pass without noise: x0_hat of x = 0 at the last step, whatever `x_T` is.

        With `stop_after` steps it is what stands after those, noisy as it is.
        The strided process keeps abar at the chosen steps and takes its own betas and posterior from
        them; the denoiser still hears the step indices of the full process.
        Raises ConfigError unless 0 <= steps <= T.
        """
        if steps == 0:
            last = torch.full(x_T.shape[:-1], self.steps - 1, dtype=torch.int64, device=x_T.device)
            return denoise(torch.zeros_like(x_T), last)
        chosen = strided(self.steps, self.steps if steps is None else steps)
        process = self if len(chosen) == self.steps else self.respaced(chosen).to(x_T.device)
        x = x_T
        for i in [*reversed(range(len(chosen)))][: self.stop_after]:
            t = torch.full(x.shape[:-1], int(chosen[i]), dtype=torch.int64, device=x.device)
            own_t = torch.full_like(t, i)
            x0_hat = denoise(x, t)
            if deterministic:
                x = process.implied_step(x0_hat, x, own_t)
            else:
                x = process.reverse_step(x0_hat, x, own_t, generator if i > 0 else None)
        return x

    def reverse_step(self, x0_hat: Tensor, x_t: Tensor, t: Tensor, generator: torch.Generator | None) -> Tensor:
        """x_{t-1} drawn from the posterior; its mean without a generator, as at t = 0."""
        mean, log_variance = self.posterior(x0_hat, x_t, t)
        return mean if generator is None else mean + (0.5 * log_variance).exp() * draw_noise(x_t, generator)

    def respaced(self, chosen: Tensor) -> GaussianDiffusion:
        """The process that visits only the steps `chosen` (ascending) of this one."""
        return GaussianDiffusion(self.alphas_cumprod[chosen])


def _at(table_T: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] in the type of `like`, with trailing axes so that it broadcasts against it."""
    values = table_T[t].to(like.dtype)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
