"""Field vectors by hand. B samples, N fields, W width."""

import math

import pytest
import torch

from infra.errors import ConfigError
from infra.tables import Kind
from train.fields import FieldEncoder
from train.protocol import FieldSpec, RankingBatch

FIELDS = (
    FieldSpec("age", Kind.NUMERIC, mean=30.0, std=10.0),
    FieldSpec("user", Kind.CATEGORICAL, size=5),
    FieldSpec("genres", Kind.MULTI, size=6),
    FieldSpec("price", Kind.NUMERIC, mean=1.0, std=2.0),
    FieldSpec("item", Kind.CATEGORICAL, size=4),
    FieldSpec("tags", Kind.MULTI, size=3),
)


def encoder(missing="learned") -> FieldEncoder:
    torch.manual_seed(0)
    model = FieldEncoder(FIELDS, 4, missing)
    with torch.no_grad():
        model.bias_GW.normal_()
    return model


def tables(model):
    """The rows of each field's values."""
    return [model.table.weight[rows.start : rows.stop] for rows in model.blocks.values()]


def batch(user=2, item=3, age=45.0, price=0.0, genres=(2, 5, 0), tags=(2,), missing=()) -> RankingBatch:
    mask = torch.zeros(1, 6, dtype=torch.bool)
    mask[0, list(missing)] = True
    return RankingBatch(
        torch.tensor([[user, item]]),
        torch.tensor([[age, price]]),
        (torch.tensor([genres], dtype=torch.int64), torch.tensor([tags], dtype=torch.int64)),
        mask,
        torch.ones(1),
    )


def test_every_field_stands_in_mask_order_with_its_own_formula():
    model = encoder()
    users, genres, items, tags = tables(model)
    expected = torch.stack(
        [
            1.5 * model.slope_GW[0] + model.bias_GW[0],
            users[2],
            (genres[2] + genres[5]) / 2,
            -0.5 * model.slope_GW[1] + model.bias_GW[1],
            items[3],
            tags[2],
        ]
    )
    torch.testing.assert_close(model(batch())[0], expected)


@pytest.mark.parametrize("index", [0, 1, 4, 999, -3])
def test_an_index_without_a_row_counts_as_unknown(index):
    model = encoder()
    torch.testing.assert_close(model(batch(item=index))[0, 4], tables(model)[2][1])


def test_multi_fields_leave_padding_out_and_map_what_is_beyond():
    model = encoder()
    with torch.no_grad():
        tables(model)[1][0] = 99.0  # even a padding row that moved must not count
    torch.testing.assert_close(model(batch(genres=(0, 3, 77)))[0, 2], (tables(model)[1][3] + tables(model)[1][1]) / 2)


def test_a_negative_value_of_a_multi_field_is_unknown_and_no_other_fields():
    model = encoder()
    torch.testing.assert_close(model(batch(genres=(-2,)))[0, 2], tables(model)[1][1])


@pytest.mark.parametrize("genres", [(), (0, 0)])
def test_a_multi_field_without_values_is_zeros_and_not_missing(genres):
    assert encoder()(batch(genres=genres))[0, 2].tolist() == [0.0] * 4


def test_numeric_values_are_clamped():
    model = encoder()
    torch.testing.assert_close(model(batch(age=1e30))[0, 0], 10 * model.slope_GW[0] + model.bias_GW[0])
    torch.testing.assert_close(model(batch(age=-1e30))[0, 0], -10 * model.slope_GW[0] + model.bias_GW[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_is_missing(value):
    model = encoder()
    other = batch(price=value)
    assert torch.equal(model(other)[0, 3], model.missing_NW[3])
    assert not other.missing_BN.any()  # the batch itself is left alone
    model(other).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_missing_fields_take_their_learned_row():
    model = encoder()
    z = model(batch(missing=range(6)))[0]
    assert torch.equal(z, model.missing_NW)
    assert len({tuple(row.tolist()) for row in z}) == 6


def test_missing_fields_are_zeros_on_request():
    model = encoder("zero")
    z = model(batch(missing=(0, 2, 4)))[0]
    assert z[[0, 2, 4]].abs().max() == 0
    assert z[[1, 3, 5]].abs().min(dim=1).values.max() > 0
    assert not [name for name, _ in model.named_parameters() if "missing" in name]


def test_a_missing_field_trains_its_row_and_not_its_table():
    model = encoder()
    model(batch(missing=(1,))).sum().backward()
    users = model.blocks["user"]
    assert model.table.weight.grad[users.start : users.stop].abs().max() == 0
    assert model.missing_NW.grad[1].abs().min() == 1
    assert model.missing_NW.grad[[0, 2, 3, 4, 5]].abs().max() == 0


def test_the_statistics_travel_in_the_checkpoint():
    other = FieldEncoder([FieldSpec(s.name, s.kind, s.size, mean=0.0, std=1.0) for s in FIELDS], 4, "learned")
    other.load_state_dict(encoder().state_dict())
    assert torch.equal(other(batch()), encoder()(batch()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "at least one feature field"),
        ([FieldSpec("age", Kind.NUMERIC, std=0.0)], "field age: mean 0.0 and std 0.0"),
        ([FieldSpec("age", Kind.NUMERIC, std=math.nan)], "field age: mean 0.0 and std nan"),
        ([FieldSpec("age", Kind.NUMERIC, std=1e-50)], "field age: mean 0.0 and std 1e-50"),
        ([FieldSpec("age", Kind.NUMERIC, mean=1e39)], "field age: mean 1e.39 and std 1.0"),
        ([FieldSpec("age", Kind.NUMERIC, mean=math.inf)], "field age: mean inf and std 1.0"),
        ([FieldSpec("user", Kind.CATEGORICAL, size=1)], "field user: size"),
    ],
)
def test_unusable_fields_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        FieldEncoder(fields, 4, "learned")


def test_fields_of_one_kind_only():
    model = FieldEncoder([FieldSpec("user", Kind.CATEGORICAL, size=3)], 4, "learned")
    one = RankingBatch(torch.tensor([[2]]), torch.empty(1, 0), (), torch.zeros(1, 1, dtype=torch.bool), torch.ones(1))
    assert torch.equal(model(one)[0, 0], tables(model)[0][2])


def test_a_tied_field_is_looked_up_in_the_others_table():
    fields = (
        FieldSpec("item", Kind.CATEGORICAL, size=5),
        FieldSpec("age", Kind.NUMERIC),
        FieldSpec("history", Kind.MULTI, size=5),
        FieldSpec("genre", Kind.CATEGORICAL, size=3),
    )
    torch.manual_seed(0)
    encoder = FieldEncoder(fields, 4, "zero", tied={"history": "item"})
    assert encoder.blocks == {"item": range(5), "history": range(5), "genre": range(5, 8)}
    assert encoder.table.weight.shape == (8, 4)
    items, genres, _ = tables(encoder)
    batch = RankingBatch(
        categorical_BF=torch.tensor([[3, 2]]), numeric_BG=torch.zeros(1, 1), multi=(torch.tensor([[0, 3, 4]]),),
        missing_BN=torch.zeros(1, 4, dtype=torch.bool), label_B=torch.ones(1),
    )  # fmt: skip
    z = encoder(batch)[0]
    assert torch.equal(z[0], items[3])
    torch.testing.assert_close(z[2], (items[3] + items[4]) / 2)
    assert torch.equal(z[3], genres[2])
    for wrong in ({"history": "genre"}, {"age": "age"}):
        with pytest.raises(ConfigError, match="one table cannot be of both"):
            FieldEncoder(fields, 4, "zero", tied=wrong)
