"""The forward process of AsymDiffRec. B samples, N fields."""

import math
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.diffusion.dropping import drop, drop_each

DRAWS = 40000


def dropped(fields: int, seed: int = 0) -> torch.Tensor:
    return drop(torch.zeros(DRAWS, fields, dtype=torch.bool), torch.Generator().manual_seed(seed))


def test_the_number_of_dropped_fields_is_uniform_from_none_to_all():
    count = dropped(4).sum(dim=1).bincount(minlength=5) / DRAWS
    assert count.tolist() == pytest.approx([0.2] * 5, abs=0.01)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_a_power_makes_the_number_small_or_large(power):
    """P(T >= t) = P(u >= (t / (N + 1))^(1 / power))."""
    none = torch.zeros(DRAWS, 4, dtype=torch.bool)
    count = drop(none, torch.Generator().manual_seed(0), power=power).sum(dim=1).bincount(minlength=5) / DRAWS
    below = [(t / 5) ** (1 / power) for t in range(6)]
    assert count.tolist() == pytest.approx([b - a for a, b in pairwise(below)], abs=0.01)


def test_every_field_is_dropped_half_of_the_time():
    assert dropped(4).float().mean(dim=0).tolist() == pytest.approx([0.5] * 4, abs=0.01)


def test_sets_of_one_size_are_equally_likely():
    rows = dropped(4, seed=1)
    codes = (rows[rows.sum(dim=1) == 2].long() * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    share = codes.bincount(minlength=16)[[3, 5, 6, 9, 10, 12]] / len(codes)
    assert share.tolist() == pytest.approx([1 / 6] * 6, abs=0.015)


def test_samples_are_drawn_independently():
    counts = dropped(4, seed=2).sum(dim=1).float()
    assert torch.corrcoef(torch.stack([counts[:-1], counts[1:]]))[0, 1].abs() < 0.03


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 1000))
def test_really_missing_fields_stay_missing_and_the_input_is_untouched(batch, fields, seed):
    g = torch.Generator().manual_seed(seed)
    missing = torch.rand(batch, fields, generator=g) < 0.5
    before = missing.clone()
    after = drop(missing, g)
    assert after.dtype == torch.bool
    assert (after | ~missing).all()
    assert torch.equal(missing, before)


def test_one_generator_one_draw():
    assert torch.equal(dropped(3, seed=4), dropped(3, seed=4))
    assert not torch.equal(dropped(3, seed=4), dropped(3, seed=5))


class TestFieldsThatAreThere:
    MISSING = torch.tensor([False, True, False, True])

    def test_the_number_of_them_that_goes_is_uniform(self):
        missing = self.MISSING.expand(DRAWS, 4)
        after = drop(missing, torch.Generator().manual_seed(0), counted=False)
        gone = (after & ~missing).sum(dim=1).bincount(minlength=5) / DRAWS
        assert gone.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0], abs=0.01)
        assert after[:, ::2].float().mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)

    def test_counted_among_the_missing_ones_fewer_go(self):
        """T of {0, ..., 4} of four places, two of them missing already: a field that is there goes half of the time."""
        after = drop(self.MISSING.expand(DRAWS, 4), torch.Generator().manual_seed(0))
        gone = after[:, ::2].sum(dim=1).bincount(minlength=3) / DRAWS
        by_hand = [
            sum(math.comb(2, k) * math.comb(2, t - k) / math.comb(4, t) for t in range(k, 5)) / 5 for k in range(3)
        ]
        assert gone.tolist() == pytest.approx(by_hand, abs=0.01)


class TestWeights:
    def drawn(self, weights):
        empty = torch.zeros(DRAWS, len(weights), dtype=torch.bool)
        return drop(empty, torch.Generator().manual_seed(0), weight_N=torch.tensor(weights))

    def test_the_first_field_is_drawn_by_its_weight(self):
        rows = self.drawn([0.6, 0.1, 0.3])
        first = rows[rows.sum(dim=1) == 1].float().mean(dim=0)
        assert first.tolist() == pytest.approx([0.6, 0.1, 0.3], abs=0.015)

    def test_the_second_among_those_that_are_left(self):
        rows = self.drawn([0.6, 0.1, 0.3])
        spared = 1 - rows[rows.sum(dim=1) == 2].float().mean(dim=0)
        by_hand = [
            sum(a * b / (1 - a) for a, b in permutations((0.6, 0.1, 0.3), 2) if {a, b} == {0.6, 0.1, 0.3} - {left})
            for left in (0.6, 0.1, 0.3)
        ]
        assert spared.tolist() == pytest.approx(by_hand, abs=0.015)

    def test_what_is_never_missing_goes_last_and_by_equal_chance(self):
        rows = self.drawn([0.5, 0.0, 0.2, 0.0])
        two = rows[rows.sum(dim=1) == 2]
        assert two[:, [0, 2]].all()
        assert not two[:, [1, 3]].any()
        three = rows[rows.sum(dim=1) == 3].float().mean(dim=0)
        assert three.tolist() == pytest.approx([1, 0.5, 1, 0.5], abs=0.02)

    def test_no_weight_at_all_is_no_weight(self):
        assert torch.equal(self.drawn([0.0, 0.0, 0.0]), dropped(3))


@given(st.floats(0, 1), st.integers(0, 1000))
def test_each_by_itself(rate, seed):
    missing = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed)) < 0.5
    after = drop_each(missing, rate, torch.Generator().manual_seed(seed))
    assert (after | ~missing).all()
    if rate in (0.0, 1.0):
        assert torch.equal(after, missing | torch.tensor(rate == 1.0))


def test_the_rate_of_each():
    empty = torch.zeros(DRAWS, 3, dtype=torch.bool)
    after = drop_each(empty, 0.2, torch.Generator().manual_seed(0))
    assert after.float().mean(dim=0).tolist() == pytest.approx([0.2] * 3, abs=0.01)
