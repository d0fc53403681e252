"""Sampled softmax against the plain formula, the full softmax and the distribution that it draws from."""

import math
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from infra.errors import TrainingError
from train import losses
from train.losses import catalogue_cross_entropy_sum
from train.sampled_softmax import Proposal, sampled_cross_entropy_sum, table_sampled_cross_entropy_sum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(e):
    return partial(F.embedding, weight=e)


def plain(x, target_e, negative_e, targets, negatives, log_q_targets, log_q_negatives):
    """One position at a time."""
    k, terms = len(negatives), []
    for i, target in enumerate(targets.tolist()):
        if target >= 2:
            own = x[i] @ target_e[i] - min(0.0, math.log(k) + log_q_targets[i].item())
            others = [
                x[i] @ negative_e[j] - math.log(k) - log_q_negatives[j]
                for j in range(k)
                if negatives[j].item() != target
            ]
            terms.append(torch.logsumexp(torch.stack([own, *others]), 0) - own)
    return sum(terms)


def inputs(dtype, positions, catalogue, k, seed=0, width=6):
    """(x, rows of targets, rows of negatives), (targets, negatives, log q of either), the first three free."""
    g = seeded(seed)
    x, target_e, negative_e = (
        torch.randn(n, width, generator=g, dtype=dtype).requires_grad_() for n in (positions, positions, k)
    )
    targets, negatives = (torch.randint(lo, catalogue, (n,), generator=g) for lo, n in ((0, positions), (2, k)))
    log_q = torch.rand(catalogue, generator=g, dtype=dtype).log()
    log_q[:2] = -torch.inf
    return (x, target_e, negative_e), (targets, negatives, log_q[targets], log_q[negatives])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([(torch.float64, 1e-6), (torch.float32, 1e-4)]),
    st.integers(1, 12),
    st.integers(3, 20),
    st.integers(1, 20),
    st.sampled_from([4, 30, 2**24]),
    st.integers(0, 99),
)
def test_value_and_gradient_equal_the_plain_formula(precision, positions, catalogue, k, logits, seed):
    dtype, tolerance = precision
    free, given_ = inputs(dtype, positions, catalogue, k, seed)
    given_[0][0], given_[2][0] = 2, -1.0
    with patch.dict(losses.LOGITS_AT_ONCE, cpu=logits):
        loss, count = sampled_cross_entropy_sum(*free, *given_)
        got = torch.autograd.grad(loss * 3, free)
    expected = plain(*free, *given_)
    assert count == (given_[0] >= 2).sum()
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    wanted = torch.autograd.grad(expected * 3, free, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_under_autocast():
    free, given_ = inputs(torch.float32, 80, 500, 200, width=32)
    free = tuple((t.detach() * 0.3).requires_grad_() for t in free)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = sampled_cross_entropy_sum(*free, *given_)
    expected = plain(*free, *given_)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for ours, theirs in zip(torch.autograd.grad(loss, free), torch.autograd.grad(expected, free), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


def test_gradcheck():
    free, given_ = inputs(torch.float64, 5, 9, 7)
    assert torch.autograd.gradcheck(lambda *tensors: sampled_cross_entropy_sum(*tensors, *given_)[0], free)


def test_frozen_rows_get_no_gradient():
    (x, target_e, negative_e), given_ = inputs(torch.float64, 5, 9, 7)
    want = torch.autograd.grad(sampled_cross_entropy_sum(x, target_e, negative_e, *given_)[0], x)[0]
    sampled_cross_entropy_sum(x, target_e.detach(), negative_e.detach(), *given_)[0].backward()
    torch.testing.assert_close(x.grad, want)


def catalogue_inputs(positions=10, catalogue=30, width=6, seed=0):
    g = seeded(seed)
    x = torch.randn(positions, width, generator=g, dtype=torch.float64).requires_grad_()
    e = torch.randn(catalogue, width, generator=g, dtype=torch.float64).requires_grad_()
    return x, e, torch.randint(0, catalogue, (positions,), generator=g)


def test_with_the_whole_catalogue_drawn_once_it_is_the_full_softmax():
    x, e, targets = catalogue_inputs()
    negatives = torch.arange(2, 30)
    log_q = torch.full((30,), -math.log(28), dtype=torch.float64)
    loss, count = sampled_cross_entropy_sum(
        x, e[targets], e[negatives], targets, negatives, log_q[targets], log_q[negatives]
    )
    full, full_count = catalogue_cross_entropy_sum(x, e, targets)
    assert count == full_count
    torch.testing.assert_close(loss, full)
    for ours, theirs in zip(torch.autograd.grad(loss, (x, e)), torch.autograd.grad(full, (x, e)), strict=True):
        torch.testing.assert_close(ours, theirs)


def mean_gradient_error(k: int, draws: int, corrected: bool) -> float:
    """Of the mean over draws of negatives from a skewed proposal, relative to the full softmax's gradient."""
    x, e, targets = catalogue_inputs()
    proposal = Proposal(torch.arange(30).flip(0) ** 3)
    g, total = seeded(7), torch.zeros_like(e)
    for _ in range(draws):
        negatives = proposal.draw(k, g)
        uniform = torch.tensor(-math.log(28))
        log_q = [proposal.log_q(i) if corrected else uniform.expand(len(i)) for i in (targets, negatives)]
        loss, _ = sampled_cross_entropy_sum(x, e[targets], e[negatives], targets, negatives, *log_q)
        total += torch.autograd.grad(loss, e)[0]
    full = torch.autograd.grad(catalogue_cross_entropy_sum(x, e, targets)[0], e)[0]
    return ((total / draws - full).norm() / full.norm()).item()


def test_the_bias_of_the_expected_gradient_shrinks_as_negatives_grow_in_number():
    errors = [mean_gradient_error(k, 300, corrected=True) for k in (8, 64, 512, 4096)]
    assert errors[1] < 0.75 * errors[0]
    assert errors[2] < 0.5 * errors[1]
    assert errors[3] < 0.02


def test_without_the_correction_a_skewed_proposal_stays_biased():
    assert mean_gradient_error(4096, 20, corrected=False) > 0.3


def test_nothing_but_accidental_hits_costs_nothing():
    x, e, _ = catalogue_inputs(positions=2)
    negatives, log_q = torch.full((4,), 5), torch.full((4,), -1.0)
    targets = negatives[:2]
    loss, count = sampled_cross_entropy_sum(x, e[targets], e[negatives], targets, negatives, log_q[:2], log_q)
    assert (loss.item(), count.item()) == (0, 2)
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(loss, (x, e)))


@pytest.mark.parametrize("logits", [4, 2**24])
def test_padding_and_unknown_are_no_targets_whatever_stands_there(logits):
    x, e, _ = catalogue_inputs(positions=3)
    proposal = Proposal(torch.arange(30))
    with torch.no_grad():
        x[0], x[1] = torch.nan, 1e30
    with patch.dict(losses.LOGITS_AT_ONCE, cpu=logits):
        loss, count = table_sampled_cross_entropy_sum(x, rows_of(e), torch.tensor([0, 1, 5]), proposal, 6, seeded())
        dx, de = torch.autograd.grad(loss, (x, e))
        alone, _ = table_sampled_cross_entropy_sum(x[2:], rows_of(e), torch.tensor([5]), proposal, 6, seeded())
    assert count == 1
    torch.testing.assert_close(loss, alone)
    assert dx[:2].abs().sum() == 0
    assert de[:2].abs().sum() == 0
    assert de.isfinite().all()
    assert dx[2].abs().sum() > 0


def test_a_table_at_hand_is_looked_up():
    x, e, targets = catalogue_inputs()
    proposal = Proposal(torch.arange(30))
    negatives = proposal.draw(12, seeded(3))
    log_q = proposal.log_q(torch.arange(30))
    by_rows = sampled_cross_entropy_sum(
        x, e[targets], e[negatives], targets, negatives, log_q[targets], log_q[negatives]
    )
    by_table = table_sampled_cross_entropy_sum(
        x.view(2, 5, -1), rows_of(e), targets.view(2, 5), proposal, 12, seeded(3)
    )
    assert by_table == by_rows
    got, want = (torch.autograd.grad(loss, (x, e)) for loss, _ in (by_table, by_rows))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


def q_of(counts, alpha=0.75, smoothing=1.0):
    weights = [0.0, 0.0, *((n + smoothing) ** alpha for n in counts[2:])]
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=40), st.sampled_from([0.0, 0.75, 1.0]))
def test_q_is_the_smoothed_power_of_the_counts(counts, alpha):
    log_q = Proposal(torch.tensor(counts), alpha).log_q(torch.arange(len(counts)))
    torch.testing.assert_close(log_q, q_of(counts, alpha).log().float())
    assert (log_q[:2] == -torch.inf).all()


def test_frequencies_follow_q():
    counts = [10**9, 10**9, *(i * i for i in range(48))]
    draws = 200_000
    found = torch.bincount(Proposal(torch.tensor(counts)).draw(draws, seeded()), minlength=50)
    expected = q_of(counts) * draws
    assert found[:2].sum() == 0
    chi_square = ((found - expected)[2:] ** 2 / expected[2:]).sum()
    assert chi_square < 84  # 47 degrees of freedom: exceeded once in a thousand seeds


def test_the_first_candidate_and_the_last_bound_the_draw():
    proposal = Proposal(torch.zeros(5))
    for uniform, drawn in ((0.0, 2), (1.0, 4)):
        with patch.object(torch, "rand", return_value=torch.tensor([uniform], dtype=torch.float64)):
            assert proposal.draw(1, seeded()).tolist() == [drawn]


def test_the_same_generator_draws_the_same():
    proposal = Proposal(torch.arange(1000))
    assert proposal.draw(50, seeded(4)).equal(proposal.draw(50, seeded(4)))
    assert not proposal.draw(50, seeded(4)).equal(proposal.draw(50, seeded(5)))


def test_catalogues_beyond_what_multinomial_takes():
    rows = 2**24 + 10
    counts = torch.zeros(rows)
    counts[-1] = 1e10
    proposal = Proposal(counts)
    share = 1e10**0.75 / (1e10**0.75 + rows - 3)
    assert proposal.log_q(torch.tensor(rows - 1)).exp().item() == pytest.approx(share, rel=1e-5)
    assert (proposal.draw(1000, seeded()) == rows - 1).float().mean().item() == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("counts", [[], [3, 4], [0, 0, 5, -1], [0.0, 0.0, math.nan]])
def test_counts_that_nothing_can_be_drawn_from_are_refused(counts):
    with pytest.raises(TrainingError, match="no negatives can be drawn"):
        Proposal(torch.tensor(counts))


def test_the_counts_are_left_as_they_were():
    counts = torch.ones(5, dtype=torch.float64)
    Proposal(counts)
    assert (counts == 1).all()
