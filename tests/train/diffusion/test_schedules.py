"""Schedules against printed and hand-worked values."""

import math

import pytest
import torch

from infra.errors import ConfigError
from train.diffusion.schedules import alphas_cumprod


def test_trunc_lin_at_32_steps_has_the_printed_values():
    """Computed from the published code."""
    abar = alphas_cumprod("trunc_lin", 32)[[0, 3, 7, 15, 23, 31]].tolist()
    assert abar == pytest.approx([0.987, 0.837, 0.494, 0.052, 8.0e-4, 9.9e-7], rel=0.01)
    assert abar[0] == pytest.approx(1 - 0.013125, abs=1e-12)


def test_trunc_lin_shortens_an_end_above_one():
    # T = 10: s = 100, beta from 0.02 to 2.01 > 1, hence to 0.11 in steps of 0.01.
    expected = math.prod(1 - 0.01 * i for i in range(2, 12))
    assert alphas_cumprod("trunc_lin", 10)[-1].item() == pytest.approx(expected)


def test_one_step_by_hand():
    assert alphas_cumprod("trunc_lin", 1).tolist() == pytest.approx([1 - 0.11])
    assert alphas_cumprod("linear", 1).tolist() == pytest.approx([1 - 0.1])
    assert alphas_cumprod("cosine", 1).tolist() == pytest.approx([0.001])
    assert alphas_cumprod("sqrt", 1).tolist() == pytest.approx([0.001])


def test_linear_at_1000_steps_is_the_classic():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(alphas_cumprod("linear", 1000), (1 - betas).cumprod(0))


def test_cosine_and_sqrt_follow_their_curves():
    half = alphas_cumprod("cosine", 100)[49].item()
    zero = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert half == pytest.approx(math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / zero)
    assert alphas_cumprod("sqrt", 100)[49].item() == pytest.approx((1 - math.sqrt(0.5001)) / 0.99)


def test_trunc_cos_follows_its_curve_from_a_tenth():
    def curve(x: float) -> float:
        return math.cos((x + 0.1) / 1.1 * math.pi / 2) ** 2

    abar = alphas_cumprod("trunc_cos", 10)
    assert abar.tolist() == pytest.approx([curve(i / 10) for i in range(10)])


def test_pw_lin_falls_for_ten_steps_and_rises_for_the_others():
    abar = alphas_cumprod("pw_lin", 20)  # s = 50: from 0.015 to 0.005, then from 0.005 to 1, held below 1
    betas = 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    expected = [0.015 - 0.01 * i / 9 for i in range(10)] + [min(0.999, 0.005 + 0.995 * i / 9) for i in range(10)]
    assert betas.tolist() == pytest.approx(expected, rel=1e-6)


def test_beta_is_the_quantile_function():
    from scipy.stats import beta

    abar = alphas_cumprod("beta", 3).tolist()
    assert beta.cdf(abar, 0.3, 10) == pytest.approx([0.75, 0.5, 0.25])


@pytest.mark.parametrize(("name", "steps"), [("geometric", 8), ("linear", 0), ("pw_lin", 10)])
def test_unusable_settings_are_named(name, steps):
    with pytest.raises(ConfigError, match=r"schedule: |steps: "):
        alphas_cumprod(name, steps)
