"""The geodesic random walk. D width, T steps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import hyp1f1

from infra.errors import ConfigError
from train.diffusion.gaussian import draw_noise
from train.diffusion.geodesic import GeodesicDiffusion, random_points
from train.diffusion.schedules import SCHEDULES, alphas_cumprod
from train.diffusion.sphere import normalised

WIDE = [2, 3, 16, 64, 128, 512]
POINTS = 20_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process(schedule: str = "linear", steps: int = 32, literal: bool = False) -> GeodesicDiffusion:
    return GeodesicDiffusion(alphas_cumprod(schedule, steps), literal)


def cosine_at(walk: GeodesicDiffusion, t: int, width: int) -> float:
    """Of x_0 and x_t, mean over many draws."""
    x0 = random_points(torch.empty(POINTS, width), seeded(1))
    x_t = walk.q_sample(x0, torch.full((POINTS,), t), draw_noise(x0, seeded(2)))
    return (x0 * x_t).sum(dim=-1).mean().item()


@pytest.mark.parametrize("width", WIDE)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_corruption_is_monotone_and_ends_near_nothing(schedule, width):
    """Near sqrt(abar_T), which is 0 to 0.05 by schedule; in few dimensions lengths vary, and more is left."""
    walk = process(schedule)
    mean_T = walk.mean_cosine(width)
    assert (mean_T.diff() < 0).all()
    assert mean_T[0] > 0.3
    assert walk.signal_T[-1] < mean_T[-1] < walk.signal_T[-1] + 0.6 / width


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 300), st.integers(2, 300))
def test_corruption_is_monotone_for_any_number_of_steps(schedule, steps, width):
    if schedule == "pw_lin" and steps <= 10:
        return
    mean_T = process(schedule, steps).mean_cosine(width)
    assert ((mean_T > 0) & (mean_T < 1)).all()
    assert (mean_T.diff() < 0).all()


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.01, 1), st.sampled_from([2, 16, 64, 128, 4096]))
def test_corruption_is_monotone_at_any_share_of_the_signal(schedule, signal, width):
    """As DimeRec trains it: the target shows less from the first step on."""
    mean_T = GeodesicDiffusion(signal**2 * alphas_cumprod(schedule, 32)).mean_cosine(width)
    assert (mean_T.diff() < 0).all()
    assert 0 < mean_T[-1] < mean_T[0] < max(signal, 0.6 / width) + 0.6 / width


@pytest.mark.parametrize("width", [3, 64, 384])
def test_the_mean_cosine_is_kummers_function(width):
    """E[cos(s chi_k)] = M(k / 2, 1 / 2, -s^2 / 2)."""
    for literal in (False, True):
        walk = process(literal=literal)
        expected = hyp1f1((width - 1) / 2, 0.5, -(walk.scales(width).numpy() ** 2) / 2)
        torch.testing.assert_close(walk.mean_cosine(width), torch.from_numpy(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("literal", [False, True])
def test_it_is_finite_at_any_width(literal):
    for width in (512, 4096, 16384):
        assert process(literal=literal).mean_cosine(width).isfinite().all()


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("width", [2, 64])
def test_what_is_drawn_has_the_mean_cosine_that_is_said(width, literal):
    walk = process(literal=literal)
    said_T = walk.mean_cosine(width)
    for t in (0, 2, 8, 16, 31):
        assert cosine_at(walk, t, width) == pytest.approx(said_T[t].item(), abs=0.015)


def test_as_printed_the_walk_passes_the_antipode():
    """At D = 64 the angle is about sqrt(63 (1 - abar)): pi where 1 - abar = 0.157, after a few of the steps."""
    mean_T = process(literal=True).mean_cosine(64)
    assert mean_T.min() < -0.9
    assert mean_T.argmin() == 3
    assert not (mean_T.diff() < 0).all()
    assert mean_T[3:10].max() > 0.8, "and comes back to the target"


def test_at_a_width_of_64_the_cosine_is_the_signal_of_the_gaussian_process():
    walk = process("cosine")
    torch.testing.assert_close(walk.mean_cosine(64), walk.signal_T, rtol=0, atol=0.01)


@settings(deadline=None)
@given(st.integers(2, 100), st.integers(0, 1000), st.booleans())
def test_every_state_is_on_the_sphere(width, seed, literal):
    walk = process(literal=literal)
    x0 = draw_noise(torch.empty(5, width), seeded(seed))
    t = torch.randint(32, (5,), generator=seeded(seed))
    x_t = walk.q_sample(x0, t, draw_noise(x0, seeded(seed + 1)))
    there = walk.reverse_step(0.3 * x0, x_t, t, seeded(seed))
    for x in (x_t, there, walk.reverse_step(0 * x0, x_t, t, None), walk.implied_step(x0, x_t, t)):
        assert ((x.double().norm(dim=-1) - 1).abs() < 1e-5).all()


def test_a_target_of_zeros_is_finite():
    x_t = process().q_sample(torch.zeros(4, 8), torch.tensor([0, 3, 20, 31]), torch.randn(4, 8))
    assert x_t.isfinite().all()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [32, 5])
def test_sampling_visits_the_marginals_of_the_walk(schedule, steps):
    """With the true x_0 every visited x_t is as far from it as the forward walk is."""
    walk, seen = process(schedule), {}
    x0 = random_points(torch.empty(POINTS, 64), seeded(1))

    def denoise(x_t, t):
        seen[int(t[0])] = (x_t * x0).sum(dim=-1)
        return x0

    answer = walk.sample(denoise, random_points(x0, seeded(2)), steps, seeded(3))
    torch.testing.assert_close(answer, x0)
    expected_T = walk.mean_cosine(64)
    assert len(seen) == steps
    for t, cosine in seen.items():
        assert cosine.mean().item() == pytest.approx(expected_T[t].item(), abs=0.015)
        forward = walk.q_sample(x0, torch.full((POINTS,), t), draw_noise(x0, seeded(4)))
        assert cosine.std().item() == pytest.approx((forward * x0).sum(dim=-1).std().item(), abs=0.03)


def test_as_printed_a_step_adds_the_variance_times_noise():
    walk, x_t = process(literal=True), random_points(torch.empty(6, 16), seeded(1))
    x0_hat, t = random_points(x_t, seeded(2)), torch.full((6,), 20)
    mean, log_variance = walk.posterior(x0_hat, x_t, t)
    expected = normalised(mean + log_variance.exp() * draw_noise(x_t, seeded(3)))
    torch.testing.assert_close(walk.reverse_step(x0_hat, x_t, t, seeded(3)), expected)


def test_one_step_by_hand():
    """D = 2, abar = 1/2: the angle is pi/4 times the noise across, whatever there is along x_0."""
    walk = GeodesicDiffusion(torch.tensor([0.5]))
    x_t = walk.q_sample(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([[7.0, 2.0]]))
    torch.testing.assert_close(x_t, torch.tensor([[0.0, 1.0]]))
    printed = GeodesicDiffusion(torch.tensor([0.5]), literal=True)
    x_t = printed.q_sample(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([[7.0, 2.0]]))
    angle = 2 * math.sqrt(0.5)
    torch.testing.assert_close(x_t, torch.tensor([[math.cos(angle), math.sin(angle)]]))


def test_without_noise_it_needs_no_generator():
    walk = process(steps=8)
    x_T = random_points(torch.empty(5, 6), seeded(0))
    one, two = (walk.sample(lambda x, t: 0.5 * x, x_T, None, seeded(s), deterministic=True) for s in (1, 2))
    assert torch.equal(one, two)


def test_strided_sampling_keeps_the_kind_of_walk():
    walk = process(literal=True).respaced(torch.tensor([3, 20]))
    assert walk.literal
    assert walk.steps == 2
    with pytest.raises(ConfigError, match="steps"):
        walk.sample(lambda x, t: x, torch.ones(1, 2), 3, seeded())


def test_nothing_of_it_enters_a_checkpoint():
    assert not process().state_dict()
