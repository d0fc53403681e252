"""The unit sphere. D width."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from train.diffusion.sphere import exp_map, log_map, normalised, tangent

ON = 1e-5
"""How far from the sphere a point may be."""

numbers = st.floats(-(2.0**100), 2.0**100, width=32)


def vectors(draw, rows: int = 3) -> torch.Tensor:
    """Of any width and any lengths, zeros and denormals included."""
    width = draw(st.integers(2, 130))
    return torch.from_numpy(draw(hnp.arrays("float32", (rows, width), elements=numbers, fill=st.just(0.0)))).clone()


@st.composite
def any_vectors(draw):
    return vectors(draw)


@st.composite
def points_and_tangents(draw):
    """x on the sphere, a tangent direction of length 1, and an angle from 1e-30 to pi."""
    width, seed = draw(st.integers(2, 130)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    x, v = normalised(torch.randn(2, 4, width, generator=generator))
    direction = normalised(tangent(x, v))
    angle = draw(st.one_of(st.floats(0, math.pi), st.floats(-30, 0).map(lambda power: 10**power)))
    return x, normalised(tangent(x, direction)), angle


def length(x: torch.Tensor) -> torch.Tensor:
    return x.double().norm(dim=-1)


def on_the_sphere(x: torch.Tensor) -> bool:
    return bool(((length(x) - 1).abs() < ON).all())


@given(any_vectors())
def test_whatever_is_normalised_is_on_the_sphere(x):
    assert on_the_sphere(normalised(x))


def test_a_vector_of_zeros_gets_the_first_direction_and_no_gradient():
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]], requires_grad=True)
    y = normalised(x)
    y[:, 1].sum().backward()
    assert y[0].tolist() == [1.0, 0.0, 0.0]
    assert x.grad[0].tolist() == [0.0, 0.0, 0.0]
    # d(x_1 / |x|) = (1 - x_1^2 / |x|^2) / |x|, and -x_1 x_2 / |x|^3
    torch.testing.assert_close(x.grad[1], torch.tensor([0.0, (1 - 0.36) / 5, -12 / 125]))


@given(points_and_tangents())
def test_the_map_keeps_to_the_sphere_and_goes_as_far_as_it_is_told(given_):
    x, direction, angle = given_
    y = exp_map(x, angle * direction)
    assert on_the_sphere(y)
    assert (length(log_map(x, y)) - angle).abs().max() < ON


@given(points_and_tangents())
def test_exp_after_log_is_the_point_itself(given_):
    x, direction, angle = given_
    for y in (exp_map(x, angle * direction), direction, x, -x):
        torch.testing.assert_close(exp_map(x, log_map(x, y)), y, rtol=0, atol=ON)


@given(points_and_tangents())
def test_log_after_exp_is_the_tangent_itself(given_):
    """Up to the antipode, where directions meet: near it they are lost to rounding."""
    x, direction, angle = given_
    v = min(angle, math.pi - 0.05) * direction
    torch.testing.assert_close(log_map(x, exp_map(x, v)), v, rtol=0, atol=3 * ON)


@given(points_and_tangents())
def test_a_logarithm_is_a_tangent(given_):
    x, direction, angle = given_
    for y in (exp_map(x, angle * direction), x, -x):
        assert ((log_map(x, y) * x).sum(dim=-1).abs() < ON).all()


def test_the_way_to_the_antipode_is_half_a_circle():
    x = normalised(torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
    v = log_map(x, -x)
    assert length(v).tolist() == pytest.approx([math.pi] * 2)
    assert torch.equal(v, log_map(x, -x))


def test_a_quarter_of_a_circle_by_hand():
    x, v = torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.pi / 2])
    torch.testing.assert_close(exp_map(x, v), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(exp_map(x, v / 2), torch.tensor([math.sqrt(0.5)] * 2))
    torch.testing.assert_close(log_map(x, torch.tensor([0.0, 1.0])), v)


@given(points_and_tangents(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_points_in_half_precision_are_points_of_the_sphere_all_the_same(given_, dtype):
    """Rounded, x has not length 1 any more: it is normalised before anything else."""
    x, direction, angle = given_
    half = x.to(dtype)
    v = min(angle, 3.0) * normalised(tangent(normalised(half), direction))
    y = exp_map(half, v)
    assert y.dtype == torch.float32
    assert on_the_sphere(y)
    torch.testing.assert_close(log_map(half, y), v, rtol=0, atol=3 * ON)
    torch.testing.assert_close(exp_map(half, log_map(half, y.to(dtype))), normalised(y.to(dtype)), rtol=0, atol=ON)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("angle", [0.0, 6e-8, 1e-6, 1e-3, 1.0, math.pi])
def test_half_precision_is_finite_and_answered_in_float32(dtype, angle):
    generator = torch.Generator().manual_seed(0)
    x, v = normalised(torch.randn(2, 5, 64, generator=generator))
    x, v = normalised(x.to(dtype)), (angle * tangent(x, v)).to(dtype)
    y = exp_map(x, v)
    assert y.dtype == torch.float32
    assert on_the_sphere(y)
    assert log_map(x.to(dtype), y.to(dtype)).isfinite().all()
    assert normalised(torch.zeros(2, 64, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("v", [[0.0, 0.0], [0.0, math.pi]])
def test_gradients_are_finite_where_directions_are_lost(v):
    x = torch.tensor([1.0, 0.0], requires_grad=True)
    v = torch.tensor(v, requires_grad=True)
    y = exp_map(x, v)
    (log_map(x, y).sum() + y.sum()).backward()
    assert x.grad.isfinite().all()
    assert v.grad.isfinite().all()
