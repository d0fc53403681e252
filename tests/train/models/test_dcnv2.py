"""DCN-V2. C all fields' vectors side by side."""

import pytest
import torch

from tests.train.models.contract import FIELDS, FieldModelContract, impressions
from train.models.dcnv2 import DCNv2
from train.ranking_configs import DCNv2Config


class TestDCNv2(FieldModelContract):
    model, width = DCNv2, 4 * 4 + 8
    config = DCNv2Config(embedding_width=4, hidden=(16, 8), crosses=2)


class TestThin(TestDCNv2):
    config = DCNv2Config(embedding_width=4, hidden=(16, 8), rank=2, missing="zero")


@pytest.mark.parametrize("rank", [None, 3])
def test_the_cross_layers_by_hand(rank):
    """Entry i of a layer: x0_i * (sum_k W_ik x_k + b_i) + x_i."""
    torch.manual_seed(0)
    model, batch = (
        DCNv2(DCNv2Config(embedding_width=2, hidden=(4,), crosses=2, rank=rank), FIELDS).eval(),
        impressions(),
    )
    x0 = torch.cat([*model.fields(batch).unbind(1)], dim=1)
    x = x0
    for cross in model.crosses:
        if rank is None:
            matrix, bias = cross.weight, cross.bias
        else:
            matrix, bias = cross[1].weight @ cross[0].weight, cross[1].bias
            assert torch.linalg.matrix_rank(matrix) == rank
        x = torch.stack([x0[:, i] * (x @ matrix[i] + bias[i]) + x[:, i] for i in range(8)], dim=1)
    torch.testing.assert_close(model.encode(batch)[:, :8], x)
    torch.testing.assert_close(model.encode(batch)[:, 8:], model.mlp(x0))


def test_products_of_as_many_fields_as_layers_and_one():
    """Without biases and with W = 1, L layers on a scalar give x (1 + x)^L: a polynomial of degree L + 1."""
    model = DCNv2(DCNv2Config(embedding_width=1, crosses=3), FIELDS[:1]).eval()
    for cross in model.crosses:
        torch.nn.init.ones_(cross.weight)
        torch.nn.init.zeros_(cross.bias)
    x = torch.tensor([[0.5], [-2.0]])
    model.fields.forward = lambda batch: x[:, None]
    torch.testing.assert_close(model.encode(None)[:, :1], x * (1 + x) ** 3)
