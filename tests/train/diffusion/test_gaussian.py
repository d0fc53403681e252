"""The Gaussian process under each schedule, and its own corner cases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError
from tests.train.diffusion.contract import GaussianProcessContract
from train.diffusion.gaussian import GaussianDiffusion, draw_noise, strided
from train.diffusion.schedules import alphas_cumprod


class TestTruncLin(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("trunc_lin", steps)


class TestLinear(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("linear", steps)


class TestCosine(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("cosine", steps)


class TestSqrt(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("sqrt", steps)


class TestTruncatedCosine(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("trunc_cos", steps)


class TestBeta(GaussianProcessContract):
    def alphas_cumprod(self, steps):
        return alphas_cumprod("beta", steps)


def test_two_steps_by_hand():
    # abar = (0.8, 0.4): beta = (0.2, 0.5), posterior variance at 1 = 0.5 * 0.2 / 0.6 = 1/6.
    process = GaussianDiffusion(torch.tensor([0.8, 0.4]))
    mean, log_variance = process.posterior(torch.ones(1, 1), torch.full((1, 1), 3.0), torch.tensor([1]))
    assert mean.item() == pytest.approx(0.5 * 0.8**0.5 / 0.6 + 3 * 0.2 * 0.5**0.5 / 0.6)
    assert log_variance.exp().item() == pytest.approx(1 / 6)


@given(st.integers(1, 300).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_strided_steps_are_distinct_and_end_at_the_noisiest(sizes):
    total, steps = sizes
    chosen = strided(total, steps).tolist()
    assert len(set(chosen)) == steps
    assert chosen == sorted(chosen)
    assert chosen[-1] == total - 1
    assert steps == 1 or chosen[0] == 0
    assert steps < total or chosen == list(range(total))


@pytest.mark.parametrize("abar", [[], [1.0], [0.5, 0.0], [[0.5]]])
def test_alphas_that_are_no_process_are_refused(abar):
    with pytest.raises(ConfigError, match="alphas_cumprod"):
        GaussianDiffusion(torch.tensor(abar))


def test_noise_is_standard_normal_and_belongs_to_its_generator():
    noise = draw_noise(torch.empty(200, 100), torch.Generator().manual_seed(3))
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    torch.manual_seed(0)
    assert torch.equal(noise, draw_noise(torch.empty(200, 100), torch.Generator().manual_seed(3)))
