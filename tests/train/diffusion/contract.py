"""What every Gaussian-type process keeps, inherited by one test class per process.

Shapes: B batch, L length, D width, T steps.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import ConfigError
from train.diffusion.gaussian import GaussianDiffusion, draw_noise

#: One property, run by every inheriting class: what this health check warns of is meant here.
PER_CLASS = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class GaussianProcessContract:
    """Inherit and give `alphas_cumprod(steps)`."""

    def alphas_cumprod(self, steps: int) -> torch.Tensor:
        raise NotImplementedError

    def process(self, steps: int = 32) -> GaussianDiffusion:
        return GaussianDiffusion(self.alphas_cumprod(steps))

    @pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 21, 32, 1000])
    def test_signal_falls_strictly_within_0_and_1(self, steps):
        abar = self.alphas_cumprod(steps)
        assert abar.shape == (steps,)
        assert abar.dtype == torch.float64
        assert (abar > 0).all()
        assert (abar < 1).all()
        assert (abar.diff() < 0).all()

    @PER_CLASS
    @given(st.integers(1, 40), st.data())
    def test_q_sample_is_the_formula_for_every_token(self, steps, data):
        process, abar = self.process(steps), self.alphas_cumprod(steps).tolist()
        x0, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
        t = torch.tensor([[data.draw(st.integers(0, steps - 1)) for _ in range(3)] for _ in range(2)])
        x_t = process.q_sample(x0, t, noise)
        for b in range(2):
            for position in range(3):
                a = abar[int(t[b, position])]
                expected = math.sqrt(a) * x0[b, position] + math.sqrt(1 - a) * noise[b, position]
                torch.testing.assert_close(x_t[b, position], expected)

    def test_one_step_per_sample_broadcasts(self):
        process, x0, noise = self.process(), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
        per_sample = process.q_sample(x0, torch.tensor([3, 20]), noise)
        per_token = process.q_sample(x0, torch.tensor([[3] * 3, [20] * 3]), noise)
        assert torch.equal(per_sample, per_token)

    @pytest.mark.parametrize("steps", [1, 2, 32])
    def test_at_step_0_the_posterior_mean_is_x0_exactly(self, steps):
        x0_hat, x_t = torch.randn(50, 4), 1e3 * torch.randn(50, 4)
        mean, log_variance = self.process(steps).posterior(x0_hat, x_t, torch.zeros(50, dtype=torch.int64))
        assert torch.equal(mean, x0_hat)
        assert log_variance.isfinite().all()

    @pytest.mark.parametrize("steps", [1, 2, 32])
    def test_at_step_0_the_implied_step_is_x0_exactly(self, steps):
        x0_hat, x_t = torch.randn(50, 4), torch.randn(50, 4)
        assert torch.equal(self.process(steps).implied_step(x0_hat, x_t, torch.zeros(50, dtype=torch.int64)), x0_hat)

    def test_implied_steps_follow_the_noise_that_was_added(self):
        """With the true x_0 the whole way down is x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps, eps never changing."""
        process, x0, noise = self.process(32), torch.randn(20, 4), torch.randn(20, 4)
        x = process.q_sample(x0, torch.full((20,), 20), noise)
        for s in range(19, 14, -1):
            x = process.implied_step(x0, x, torch.full((20,), s + 1))
            torch.testing.assert_close(x, process.q_sample(x0, torch.full((20,), s), noise), rtol=1e-3, atol=1e-4)

    def test_deterministic_sampling_needs_no_noise(self):
        process, x_T = self.process(8), torch.randn(5, 4)
        denoise = lambda x, t: 0.5 * x  # noqa: E731
        one, two = (
            process.sample(denoise, x_T, steps, seeded(s), deterministic=True) for s, steps in ((1, None), (2, 8))
        )
        assert torch.equal(one, two)

    def test_no_steps_are_one_pass_without_noise(self):
        process, asked = self.process(8), []

        def denoise(x, t):
            asked.append((x, t))
            return x + 3

        answer = process.sample(denoise, torch.randn(2, 4), 0, seeded(1))
        assert torch.equal(answer, torch.full((2, 4), 3.0))
        ((x, t),) = asked
        assert torch.equal(x, torch.zeros(2, 4))
        assert t.tolist() == [7, 7]

    @PER_CLASS
    @given(st.integers(2, 40), st.data())
    def test_posterior_is_bayes_rule(self, steps, data):
        """q(x_{t-1} | x_t, x_0) from the two Gaussians it is made of, precisions added."""
        t = data.draw(st.integers(1, steps - 1))
        abar = self.alphas_cumprod(steps).tolist()
        alpha, prior_variance = abar[t] / abar[t - 1], 1 - abar[t - 1]
        precision = alpha / (1 - alpha) + 1 / prior_variance
        x0, x_t = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
        weighted = math.sqrt(alpha) / (1 - alpha) * x_t + math.sqrt(abar[t - 1]) / prior_variance * x0
        mean, log_variance = self.process(steps).posterior(x0, x_t, torch.full((5,), t))
        torch.testing.assert_close(mean, weighted / precision)
        torch.testing.assert_close(log_variance, torch.full((5, 1), -math.log(precision), dtype=torch.float64))

    def test_the_first_log_variance_is_the_second(self):
        _, log_variance = self.process().posterior(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 1]))
        assert log_variance[0] == log_variance[1]

    @pytest.mark.parametrize("steps", [None, 32, 5, 2, 1])
    def test_an_oracle_denoiser_is_answered_with_its_own_x0(self, steps):
        x0 = torch.randn(6, 4)
        answer = self.process().sample(lambda x, t: x0, torch.randn(6, 4), steps, seeded(0))
        assert torch.equal(answer, x0)

    @pytest.mark.parametrize("steps", [32, 4])
    def test_sampling_visits_the_marginals_of_the_process(self, steps):
        """With the true x_0 every visited x_t has mean sqrt(abar_t) x_0 and variance 1 - abar_t."""
        process, abar = self.process(), self.alphas_cumprod(32).tolist()
        x0 = torch.full((40000, 1), 2.0)
        start = process.q_sample(x0, torch.full((40000,), 31), draw_noise(x0, seeded(1)))
        visited = {}

        def denoise(x_t, t):
            visited[int(t[0])] = x_t
            return x0

        process.sample(denoise, start, steps, seeded(2))
        assert len(visited) == steps
        for t, x_t in visited.items():
            assert x_t.mean().item() == pytest.approx(2 * math.sqrt(abar[t]), abs=0.03)
            assert x_t.var().item() == pytest.approx(1 - abar[t], abs=0.03)

    @pytest.mark.parametrize("steps", [32, 7, 1])
    def test_the_denoiser_hears_the_steps_of_the_full_process(self, steps):
        heard = []

        def denoise(x_t, t):
            assert t.shape == x_t.shape[:-1]
            heard.append(int(t.unique()))
            return x_t

        self.process().sample(denoise, torch.randn(2, 3, 4), steps, seeded(0))
        assert len(heard) == steps
        assert heard[0] == 31
        assert heard == sorted(set(heard), reverse=True)
        assert steps == 1 or heard[-1] == 0

    @pytest.mark.parametrize("steps", [None, 5])
    def test_a_process_may_be_stopped_on_its_way(self, steps):
        """What stands after n steps is what the denoiser is shown next."""
        seen, whole, x_T = [], self.process(), torch.randn(3, 4)
        whole.sample(lambda x, t: seen.append(x) or 0.5 * x, x_T, steps, seeded(1))
        for stop_after in (1, 3):
            stopped = self.process()
            stopped.stop_after = stop_after
            assert torch.equal(stopped.sample(_half, x_T, steps, seeded(1)), seen[stop_after])
        stopped.stop_after = 99
        assert torch.equal(stopped.sample(_half, x_T, steps, seeded(1)), whole.sample(_half, x_T, steps, seeded(1)))

    def test_one_generator_one_sample(self):
        def run(seed):
            return self.process().sample(_half, torch.ones(3, 4), None, seeded(seed))

        assert torch.equal(run(5), run(5))
        assert not torch.equal(run(5), run(6))

    @pytest.mark.parametrize("steps", [-1, 33])
    def test_steps_outside_the_process_are_refused(self, steps):
        with pytest.raises(ConfigError, match="steps"):
            self.process().sample(_half, torch.ones(1, 1), steps, seeded(0))

    def test_nothing_of_it_enters_a_checkpoint(self):
        assert not self.process().state_dict()


def _half(x, t):
    return 0.5 * x
