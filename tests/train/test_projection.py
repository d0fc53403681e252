"""PCGrad: by hand, and as a step does it, whole or in micro-batches. M objectives, P parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.models.contract import PACKED, seeded
from tests.train.test_step import ADREC, cut, gradients, stepper_of
from train.models import build_sequence
from train.projection import project
from train.settings import TrainingSettings, sharding_problem
from train.stages import stages_of

PROJECTED = ADREC.model_copy(update={"combine": "project", "mse_weight": 30.0})
numbers = st.floats(-10, 10, width=32)


def test_conflicting_gradients_lose_what_is_against_the_other():
    # (3, 0) . (-1, 2) = -3: (3, 0) + 3/5 (-1, 2) = (2.4, 1.2); (-1, 2) + 3/9 (3, 0) = (0, 2).
    torch.testing.assert_close(project(torch.tensor([[3.0, 0.0], [-1.0, 2.0]])), torch.tensor([2.4, 3.2]))


def test_agreeing_gradients_are_added_up():
    assert project(torch.tensor([[3.0, 0.0], [1.0, 2.0]])).tolist() == [4.0, 2.0]
    assert project(torch.tensor([[3.0, 1.0]])).tolist() == [3.0, 1.0]


def test_a_vanished_gradient_takes_nothing():
    assert project(torch.tensor([[0.0, 0.0], [-1.0, 2.0]])).tolist() == [-1.0, 2.0]


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=2))
@settings(max_examples=100, deadline=None)
def test_the_result_goes_against_neither_of_two(rows):
    gradients_MP = torch.tensor(rows, dtype=torch.float32)
    result_P = project(gradients_MP)
    for row_P in gradients_MP:
        assert result_P @ row_P >= -1e-3 * (1 + row_P.norm() * result_P.norm())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """After some steps on the cross-entropy alone: it then wants long vectors, the MSE short ones."""
    stepper = stepper_of(PROJECTED.model_copy(update={"combine": "average", "mse_weight": 0.0}))
    for step in range(150):
        stepper.step([PACKED], seeded(step), 1e-2, (False, False))
    return {name: p.detach().clone() for name, p in zip(stepper.names, stepper.trained, strict=True)}


def by_hand(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of PACKED: each objective's gradient from a pass of its own, projected in double precision."""
    model = build_sequence(PROJECTED, 14).train()
    model.load_state_dict(weights)
    parameters = dict(model.named_parameters())

    def flat(name: str) -> torch.Tensor:
        parts = model.loss(PACKED, seeded())
        term = parts.terms[name]
        share = term.weight * term.sum / parts.counts[term.over]
        found = torch.autograd.grad(share, [*parameters.values()], materialize_grads=True)
        return torch.cat([g.flatten() for g in found]).double()

    ce, mse = flat("ce"), flat("mse")
    assert ce @ mse < 0  # else there is nothing to project
    total = ce - (ce @ mse) / (mse @ mse) * mse + mse - (ce @ mse) / (ce @ ce) * ce
    parts = total.float().split([p.numel() for p in parameters.values()])
    return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


@pytest.mark.parametrize("batches", [[PACKED], cut(PACKED)], ids=["whole", "micro-batches"])
def test_a_step_projects_the_gradients_of_the_global_batch(weights, batches):
    stepper = stepper_of(PROJECTED, clip_norm=0)
    stepper.plain.model.load_state_dict(weights)
    done = stepper.step(batches, seeded(), 1e-2, (False, False))
    assert set(done.parts) == {"ce", "mse"}
    torch.testing.assert_close(gradients(stepper), by_hand(weights), rtol=1e-3, atol=1e-5)


def test_it_needs_whole_gradients():
    assert stages_of(build_sequence(PROJECTED, 14), 1)[0].project
    sharded = TrainingSettings(sharded=True)
    problem = sharding_problem(PROJECTED.model_copy(update={"negatives": 8}), sharded)
    assert problem is not None
    assert "config.combine" in problem
