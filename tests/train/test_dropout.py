"""Dropout's masks on a CPU: chances, independence, scale, and attention beside torch's own."""

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from train.dropout import Dropout, attention, dropout, factors


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.9])
def test_each_element_is_dropped_with_its_chance(p):
    torch.manual_seed(0)
    mask = factors(torch.Size((40_000, 25)), p)
    assert mask.shape == (40_000, 25)
    dropped = int((mask == 0).sum())
    assert stats.binomtest(dropped, mask.numel(), p).pvalue > 1e-3


def test_the_four_elements_of_a_draw_are_independent():
    torch.manual_seed(1)
    mask = factors(torch.Size((100_000, 4)), 0.5).double() / 2
    assert (mask.mean(dim=0) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(mask.T) - torch.eye(4)).abs().max() < 0.02


def test_what_is_left_keeps_its_mean_and_gets_the_gradient():
    torch.manual_seed(2)
    x = torch.ones(300_000, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.6], rel=1e-4)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(x.grad, y.detach())


def test_a_seed_gives_the_same_mask_and_nothing_is_drawn_without_need():
    torch.manual_seed(3)
    first = dropout(torch.ones(7, 3), 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(7, 3), 0.3), first)
    state = torch.get_rng_state()
    assert torch.equal(dropout(first, 0), first)
    assert torch.equal(Dropout(0.5).eval()(first), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("elements", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_number_of_elements_in_any_precision(elements, dtype):
    y = dropout(torch.ones(elements, dtype=dtype), 0.5)
    assert (y.shape, y.dtype) == ((elements,), dtype)
    assert set(y.tolist()) <= {0.0, 2.0}


def test_even_the_highest_chance_keeps_a_finite_scale():
    assert dropout(torch.ones(1000), 1 - 1e-9).isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_torchs_where_next_to_nothing_is_dropped(causal):
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 2, 2, 6, 8).unbind()
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    seen[0, :, 3:, :3] = False
    mask = None if causal else seen
    expected = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    torch.testing.assert_close(attention(q, k, v, mask, 1e-9), expected)


def test_attention_drops_weights_not_values():
    torch.manual_seed(5)
    v = torch.eye(5).expand(4000, 1, 5, 5)  # y is then the weights themselves
    q = torch.zeros(4000, 1, 5, 5)
    y = attention(q, q, v, None, 0.4)[:, 0, -1]
    assert y.unique().tolist() == pytest.approx([0, 0.2 / 0.6], rel=1e-4)
    assert y.mean().item() == pytest.approx(0.2, abs=0.005)
