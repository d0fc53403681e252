"""Masks, positions and blocks. B batch, L length, D width."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.layers import (
    CausalTransformer,
    HistoryEncoder,
    attention_mask,
    item_embedding,
    latest,
    positions_from_first,
)

REAL = torch.tensor([[False, False, True, True, True], [True] * 5, [False] * 5])


def transformer(seen_padding: bool = False) -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(8, 2, 2, 0.1, seen_padding).eval()


def test_mask_by_hand():
    mask = attention_mask(torch.tensor([[False, True, True]]))
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_real_queries_read_only_real_keys_of_the_past(real):
    mask = attention_mask(torch.tensor([real]))[0, 0]
    for q in range(len(real)):
        for k in range(len(real)):
            allowed = (k <= q and real[k]) or k == q
            assert bool(mask[q, k]) == allowed


@pytest.mark.parametrize("seen_padding", [False, True])
def test_output_is_finite_even_where_everything_is_padding(seen_padding):
    x = torch.randn(3, 5, 8).requires_grad_()
    y = transformer(seen_padding)(x, REAL)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_padding_inputs_do_not_change_real_outputs():
    x = torch.randn(3, 5, 8)
    other = torch.where(REAL[..., None], x, 100 * torch.randn(3, 5, 8))
    model = transformer()
    torch.testing.assert_close(model(x, REAL)[REAL], model(other, REAL)[REAL], rtol=0, atol=0)


def test_the_amount_of_padding_does_not_change_real_outputs():
    x = torch.randn(2, 3, 8)
    padded = torch.cat([torch.randn(2, 4, 8), x], dim=1)
    real = torch.tensor([[False] * 4 + [True] * 3] * 2)
    model = transformer()
    torch.testing.assert_close(model(x, real[:, 4:]), model(padded, real)[:, 4:], rtol=1e-5, atol=1e-6)


def test_seen_padding_repeats_the_published_quirk():
    x = torch.randn(3, 5, 8)
    other = torch.where(REAL[..., None], x, torch.randn(3, 5, 8))
    model = transformer(seen_padding=True)
    changed = (model(x, REAL) - model(other, REAL)).abs()
    assert changed[0, 2:].max() > 1e-3  # real positions read the padding before them
    assert changed[1].max() == 0  # a history without padding has none to read


def test_seen_padding_gives_padded_queries_uniform_weights():
    attention = transformer(seen_padding=True).blocks[0].attention
    x = torch.randn(1, 3, 8)
    y = attention(x, torch.tensor([[False, False, True]]), None)
    uniform = attention.out(attention.value(x)[:, :2].mean(dim=1))
    torch.testing.assert_close(y[:, 1], uniform)


@pytest.mark.parametrize("seen_padding", [False, True])
def test_a_later_input_changes_no_earlier_output(seen_padding):
    x = torch.randn(3, 5, 8)
    other = x.clone()
    other[:, 3:] = torch.randn(3, 2, 8)
    model = transformer(seen_padding)
    torch.testing.assert_close(model(x, REAL)[:, :3], model(other, REAL)[:, :3], rtol=0, atol=0)
    assert (model(x, REAL)[:, 3] - model(other, REAL)[:, 3]).abs().max() > 1e-3


def test_attention_equals_the_plain_formula():
    attention = transformer().blocks[0].attention
    x, real = torch.randn(1, 4, 8), torch.tensor([[False, True, True, True]])
    q, k, v = (layer(x)[0].view(4, 2, 4) for layer in (attention.query, attention.key, attention.value))
    by_hand = torch.zeros(4, 2, 4)
    for head in range(2):
        for position in range(1, 4):
            scores = torch.stack([q[position, head] @ k[j, head] / 2 for j in range(1, position + 1)])
            by_hand[position, head] = scores.softmax(0) @ v[1 : position + 1, head]
    expected = attention.out(by_hand.reshape(1, 4, 8))
    torch.testing.assert_close(attention(x, real, attention_mask(real))[:, 1:], expected[:, 1:])


def test_blocks_end_in_a_layer_norm():
    y = transformer()(torch.randn(3, 5, 8), REAL)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(3, 5), rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only():
    model = HistoryEncoder(8, 1, 2, 0.5, 0.5)
    x = torch.randn(3, 5, 8)
    assert not torch.equal(model(x, REAL), model(x, REAL))
    model.eval()
    assert torch.equal(model(x, REAL), model(x, REAL))


@given(st.integers(0, 5), st.integers(1, 5))
def test_positions_do_not_depend_on_padding(padding, events):
    real = torch.tensor([[False] * padding + [True] * events])
    assert positions_from_first(real)[0, padding:].tolist() == list(range(events))


def test_latest_keeps_the_newest_columns():
    items = torch.tensor([[2, 3, 4]])
    assert latest(items, 2).tolist() == [[3, 4]]
    assert latest(items, 9).tolist() == [[2, 3, 4]]
    assert latest(items[:, :0], 9).tolist() == [[0]]


def test_the_padding_row_is_zero_and_gets_no_gradient():
    table = item_embedding(5, 4)
    assert table.weight[0].abs().sum() == 0
    table(torch.tensor([0, 3])).sum().backward()
    assert table.weight.grad[0].abs().sum() == 0
    assert table.weight.grad[3].abs().sum() > 0
