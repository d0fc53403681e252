"""Chunked cross-entropy against the plain formula, written out with logsumexp."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train import losses
from train.losses import catalogue_cross_entropy

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def plain(x, e, targets):
    """Mean of logsumexp over candidates minus the target's logit, one position at a time."""
    terms = []
    for vector, target in zip(x.reshape(-1, x.shape[-1]), targets.flatten().tolist(), strict=True):
        if target >= 2:
            logits = e[2:] @ vector
            terms.append(torch.logsumexp(logits, 0) - logits[target - 2])
    return sum(terms) / len(terms)


def inputs(dtype, batch, length, catalogue, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, 6, generator=g, dtype=dtype, requires_grad=True)
    e = torch.randn(catalogue, 6, generator=g, dtype=dtype, requires_grad=True)
    return x, e, torch.randint(0, catalogue, (batch, length), generator=g)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(3, 20),
    st.sampled_from([None, 1, 3, 1000]),
    st.integers(0, 99),
)
def test_value_and_gradient_equal_the_plain_formula(dtype, batch, length, catalogue, chunk, seed):
    x, e, targets = inputs(dtype, batch, length, catalogue, seed)
    targets[0, 0] = 2
    loss = catalogue_cross_entropy(x, e, targets, chunk)
    expected = plain(x, e, targets)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for got, want in zip(torch.autograd.grad(loss, (x, e)), torch.autograd.grad(expected, (x, e)), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_rows_0_and_1_are_no_candidates():
    x, e, targets = inputs(torch.float32, 2, 3, 9)
    targets.fill_(4)
    before = catalogue_cross_entropy(x, e, targets)
    moved = e.detach().clone()
    moved[:2] = 1000.0
    assert catalogue_cross_entropy(x, moved, targets) == before


def test_padding_and_unknown_are_no_targets():
    x, e, _ = inputs(torch.float32, 1, 3, 9)
    loss = catalogue_cross_entropy(x, e, torch.tensor([[0, 1, 5]]))
    torch.testing.assert_close(loss, plain(x[:, 2:], e, torch.tensor([[5]])))
    gradient = torch.autograd.grad(loss, x)[0]
    assert gradient[0, :2].abs().max() == 0


@pytest.mark.parametrize("targets", [torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)])
def test_without_valid_targets_the_loss_is_a_zero_with_a_graph(targets):
    x, e, _ = inputs(torch.float32, 2, 3, 9)
    loss = catalogue_cross_entropy(x, e, targets)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.abs().sum() == 0
    assert e.grad.abs().sum() == 0


def test_uniform_scores_cost_the_logarithm_of_the_candidates():
    loss = catalogue_cross_entropy(torch.zeros(4, 3), torch.randn(12, 3), torch.full((4,), 7))
    assert loss.item() == pytest.approx(math.log(10))


def test_never_more_logits_than_the_chunk_and_none_kept_for_backward(monkeypatch):
    seen = []
    inner = losses._summed

    def spy(x, e, t):
        seen.append(len(x))
        return inner(x, e, t)

    monkeypatch.setattr(losses, "_summed", spy)
    x, e, targets = inputs(torch.float32, 5, 4, 9)
    targets.fill_(3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        loss = catalogue_cross_entropy(x, e, targets, chunk=6)
    assert seen == [6, 6, 6, 2]
    assert all(n <= max(x.numel(), e.numel()) for n in saved)
    loss.backward()
    assert len(seen) == 8  # every chunk once more, recomputed
