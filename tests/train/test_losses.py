"""Cross-entropy over the catalogue against the plain formula, written out with logsumexp."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from train import losses
from train.losses import Tiling, catalogue_cross_entropy_sum

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}

#: Logits at once: one tile of everything, tiles of all rows, square tiles.
TILINGS = [2**24, 120, 16]


def catalogue_cross_entropy(x, e, targets):
    """The mean; 0, with a graph, without any valid target."""
    total, count = catalogue_cross_entropy_sum(x, e, targets)
    return total / count.clamp(min=1)


def plain(x, e, targets):
    """Sum of logsumexp over candidates minus the target's logit, one position at a time."""
    terms = []
    for vector, target in zip(x.reshape(-1, x.shape[-1]), targets.flatten().tolist(), strict=True):
        if target >= 2:
            logits = e[2:] @ vector
            terms.append(torch.logsumexp(logits, 0) - logits[target - 2])
    return sum(terms)


def inputs(dtype, batch, length, catalogue, seed=0, width=6):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, width, generator=g, dtype=dtype, requires_grad=True)
    e = torch.randn(catalogue, width, generator=g, dtype=dtype, requires_grad=True)
    return x, e, torch.randint(0, catalogue, (batch, length), generator=g)


def tiled(logits):
    return patch.dict(losses.LOGITS_AT_ONCE, cpu=logits)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(3, 20),
    st.sampled_from([None, 1, 3, 1000]),
    st.sampled_from(TILINGS),
    st.integers(0, 99),
)
def test_value_and_gradient_equal_the_plain_formula(dtype, batch, length, catalogue, chunk, tiling, seed):
    x, e, targets = inputs(dtype, batch, length, catalogue, seed)
    targets[0, 0] = 2
    with tiled(tiling):
        loss, count = catalogue_cross_entropy_sum(x, e, targets, chunk)
        got = torch.autograd.grad(loss * 3, (x, e))
    expected = plain(x, e, targets)
    tolerance = TOLERANCE[dtype]
    assert count == (targets >= 2).sum()
    assert count.dtype == loss.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(got, torch.autograd.grad(expected * 3, (x, e)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tiling", [2**24, 2**14, 2**12])
def test_under_autocast_products_are_bfloat16_and_the_rest_is_float32(tiling):
    x, e, targets = inputs(torch.float32, 8, 10, 500, width=32)
    x, e = (x.detach() * 0.3).requires_grad_(), (e.detach() * 0.3).requires_grad_()
    with tiled(tiling), torch.autocast("cpu", torch.bfloat16), patch.object(torch, "mm", wraps=torch.mm) as mm:
        loss, _ = catalogue_cross_entropy_sum(x, e, targets)
    with tiled(tiling):
        got = torch.autograd.grad(loss, (x, e))
    assert {a.dtype for call in mm.call_args_list for a in call.args} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    expected = plain(x, e, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    for ours, theirs in zip(got, torch.autograd.grad(expected, (x, e)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 1e-2 * theirs.norm()


def test_a_bfloat16_x_meets_a_float32_table():
    x, e, targets = inputs(torch.float32, 2, 3, 9)
    x16 = x.detach().bfloat16().requires_grad_()
    expected = torch.autograd.grad(plain(x16.float(), e, targets), (x16, e))
    for ours, theirs in zip(
        torch.autograd.grad(catalogue_cross_entropy_sum(x16, e, targets)[0], (x16, e)), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("tiling", TILINGS)
def test_gradcheck(tiling):
    x, e, targets = inputs(torch.float64, 2, 3, 9)
    with tiled(tiling):
        assert torch.autograd.gradcheck(lambda x, e: catalogue_cross_entropy_sum(x, e, targets)[0], (x, e))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("frozen", ["x", "e"])
def test_what_is_frozen_gets_no_gradient_and_the_other_the_same(tiling, frozen):
    x, e, targets = inputs(torch.float64, 2, 3, 9)
    want = dict(zip("xe", torch.autograd.grad(plain(x, e, targets), (x, e)), strict=True))
    tensors = {"x": x, "e": e}
    tensors[frozen] = tensors[frozen].detach()
    with tiled(tiling):
        catalogue_cross_entropy_sum(tensors["x"], tensors["e"], targets)[0].backward()
    assert tensors.pop(frozen).grad is None
    ((name, moving),) = tensors.items()
    torch.testing.assert_close(moving.grad, want[name])


@pytest.mark.parametrize("tiling", TILINGS)
def test_a_second_backward_pass_gives_the_same_gradient(tiling):
    x, e, targets = inputs(torch.float64, 2, 3, 9)
    with tiled(tiling):
        loss = catalogue_cross_entropy(x, e, targets)
        first, second = (torch.autograd.grad(loss, (x, e), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_0_and_1_are_no_candidates():
    x, e, targets = inputs(torch.float32, 2, 3, 9)
    targets.fill_(4)
    before = catalogue_cross_entropy(x, e, targets)
    moved = e.detach().clone()
    moved[:2] = 1000.0
    assert catalogue_cross_entropy(x, moved, targets) == before
    assert torch.autograd.grad(before, e)[0][:2].abs().max() == 0


@pytest.mark.parametrize("tiling", TILINGS)
def test_padding_and_unknown_are_no_targets_whatever_stands_there(tiling):
    x, e, _ = inputs(torch.float32, 1, 3, 9)
    with torch.no_grad():
        x[:, 0], x[:, 1] = torch.nan, 1e30
    with tiled(tiling):
        loss = catalogue_cross_entropy(x, e, torch.tensor([[0, 1, 5]]))
        dx, de = torch.autograd.grad(loss, (x, e))
    expected = plain(x[:, 2:], e, torch.tensor([[5]]))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(de, torch.autograd.grad(expected, e)[0])
    assert dx[0, :2].abs().max() == 0


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("target", [0, 1])
def test_without_valid_targets_the_loss_is_a_zero_with_a_graph(tiling, target):
    x, e, _ = inputs(torch.float32, 2, 3, 9)
    with tiled(tiling):
        loss = catalogue_cross_entropy(x, e, torch.full((2, 3), target))
        loss.backward()
    assert loss.item() == 0
    assert x.grad.abs().sum() == 0
    assert e.grad.abs().sum() == 0


def test_the_mean_of_a_batch_is_that_of_its_parts():
    x, e, targets = inputs(torch.float64, 4, 5, 9)
    parts = [catalogue_cross_entropy_sum(x[rows], e, targets[rows]) for rows in ([0], [1, 2, 3])]
    total, count = (sum(values) for values in zip(*parts, strict=True))
    torch.testing.assert_close(total / count, catalogue_cross_entropy(x, e, targets))


def test_uniform_scores_cost_the_logarithm_of_the_candidates():
    loss = catalogue_cross_entropy(torch.zeros(4, 3), torch.randn(12, 3), torch.full((4,), 7))
    assert loss.item() == pytest.approx(math.log(10))


def test_a_target_beyond_the_table_is_no_finite_loss():
    x, e, targets = inputs(torch.float32, 2, 3, 9)
    targets[1, 1] = 9
    assert catalogue_cross_entropy(x, e, targets).isnan()


@settings(deadline=None)
@given(
    st.integers(0, 300),
    st.integers(3, 300),
    st.integers(1, 4),
    st.sampled_from([None, 1, 7]),
    st.sampled_from([16, 100, 5000]),
)
def test_tiles_cover_everything_once_and_never_hold_too_much(positions, rows, width, chunk, logits):
    seen = torch.zeros(positions, rows)
    x, e = torch.zeros(positions, width), torch.zeros(rows, width)
    with tiled(logits):
        for tile in Tiling(torch.float32, chunk, first=2).tiles(x, e):
            seen[tile.n, tile.c] += 1
            assert len(tile.logits_PC) <= (chunk or positions)
            assert max(tile.logits_PC.numel(), tile.e_CD.numel()) <= logits
    assert (seen[:, :2] == 0).all()
    assert (seen[:, 2:] == 1).all()


def test_no_logits_are_kept_for_the_backward_pass():
    x, e, targets = inputs(torch.float32, 10, 10, 200)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        catalogue_cross_entropy(x, e, targets)
    assert max(saved) <= max(x.numel(), e.numel())


class Scorer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = torch.nn.Embedding(9, 6)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, items, targets):
        return catalogue_cross_entropy(self.items(items), self.items.weight, targets)


@pytest.mark.parametrize("targets", [[[3, 4], [5, 0]], [[0, 0], [0, 1]]])
def test_inside_distributed_data_parallel(targets):
    torch.manual_seed(0)
    model, items, targets = Scorer(), torch.tensor([[2, 3], [8, 0]]), torch.tensor(targets)
    expected = torch.autograd.grad(model(items, targets), model.items.weight)[0]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        parallel(items, targets).backward()
    finally:
        distributed.destroy_process_group()
    torch.testing.assert_close(model.items.weight.grad, expected)
