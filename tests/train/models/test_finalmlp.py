"""FinalMLP."""

import pytest
import torch
from pydantic import ValidationError

from infra.errors import ConfigError
from tests.train.models.contract import FIELDS, FieldModelContract, impressions
from train.models.finalmlp import FinalMLP
from train.ranking_configs import FinalMLPConfig


class TestFinalMLP(FieldModelContract):
    model, width = FinalMLP, 8 + 6
    config = FinalMLPConfig(embedding_width=4, hidden=(16, 8), second=(6,), gate=5, heads=2)


class TestToldFields(TestFinalMLP):
    config = FinalMLPConfig(embedding_width=4, hidden=(8,), second=(6,), contexts=(("user", "age"), ("item",)))


def built(**settings):
    torch.manual_seed(0)
    return FinalMLP(FinalMLPConfig(embedding_width=4, hidden=(8,), second=(6,), **settings), FIELDS).eval()


@pytest.mark.parametrize("heads", [1, 2])
def test_the_fusion_number_by_number(heads):
    model, batch = built(heads=heads), impressions()
    z = model.encode(batch)
    first, second = z[:, :8], z[:, 8:]
    expected = z @ model.out.weight[0] + model.out.bias
    for j in range(heads):
        for o in range(8 // heads):
            for p in range(6 // heads):
                products = first[:, j * 8 // heads + o] * second[:, j * 6 // heads + p]
                expected = expected + model.fusion_JOP[j, o, p] * products
    torch.testing.assert_close(model.head(z), expected)


def test_each_stream_sees_the_fields_as_its_gate_lets_them_through():
    model, batch = built(contexts=(("item", "user"), ())), impressions()
    e = model.fields(batch)
    told = torch.cat([e[:, 3], e[:, 0]], dim=1)  # in the order of the names
    for gate, stream, context, part in zip(
        model.gates, model.streams, (told, model.gates[1].learned_W), (slice(0, 8), slice(8, None)), strict=True
    ):
        factors = 2 * gate.layers(context).sigmoid()
        torch.testing.assert_close(model.encode(batch)[:, part], stream(factors * e.flatten(1)))


def test_a_context_that_is_no_field():
    with pytest.raises(ConfigError, match=r"contexts: 'shop' is no field; the fields are user, age, genres, item"):
        built(contexts=((), ("shop",)))


def test_heads_that_do_not_divide():
    with pytest.raises(ValidationError, match="second: last width 6 is not divisible by heads 4"):
        FinalMLPConfig(hidden=(8,), second=(6,), heads=4)
