"""The forward process of AsymDiffRec. B samples, N fields."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.diffusion.dropping import drop

DRAWS = 40000


def dropped(fields: int, seed: int = 0) -> torch.Tensor:
    return drop(torch.zeros(DRAWS, fields, dtype=torch.bool), torch.Generator().manual_seed(seed))


def test_the_number_of_dropped_fields_is_uniform_from_none_to_all():
    count = dropped(4).sum(dim=1).bincount(minlength=5) / DRAWS
    assert count.tolist() == pytest.approx([0.2] * 5, abs=0.01)


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
