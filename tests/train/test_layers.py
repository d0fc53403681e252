"""Masks, positions and blocks. B batch, L length, D width."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.layers import CausalTransformer, HistoryEncoder, Visible, attention_mask, item_embedding
from train.protocol import SequenceBatch

REAL = torch.tensor([[False, False, True, True, True], [True] * 5, [False] * 5])


def transformer() -> CausalTransformer:
    torch.manual_seed(0)
    return CausalTransformer(8, 2, 2, 0.1).eval()


def padded(real: torch.Tensor, seen_padding: bool = False) -> Visible:
    """What left-padded rows show, `real` False at padding."""
    batch = SequenceBatch.left_padded(real.long())
    return Visible.of(batch.items_BL, batch.place_BL, seen_padding)


SEEN = padded(REAL)


def test_mask_by_hand():
    mask = attention_mask(torch.tensor([[0, 0, 1]]))
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3))
def test_queries_read_their_own_sequence_up_to_themselves(lengths, padding):
    sequences = [s for s, length in enumerate(lengths) for _ in range(length)] + [-1 - p for p in range(padding)]
    places = [place for length in lengths for place in range(length)] + [0] * padding
    mask = attention_mask(torch.tensor([places]))[0, 0]
    for q, of_query in enumerate(sequences):
        for k, of_key in enumerate(sequences):
            assert bool(mask[q, k]) == (k <= q and of_query == of_key)


@pytest.mark.parametrize("seen_padding", [False, True])
def test_output_is_finite_even_where_everything_is_padding(seen_padding):
    x = torch.randn(3, 5, 8).requires_grad_()
    y = transformer()(x, padded(REAL, seen_padding))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_padding_inputs_do_not_change_real_outputs():
    x = torch.randn(3, 5, 8)
    other = torch.where(REAL[..., None], x, 100 * torch.randn(3, 5, 8))
    model = transformer()
    torch.testing.assert_close(model(x, SEEN)[REAL], model(other, SEEN)[REAL], rtol=0, atol=0)


def test_the_amount_of_padding_does_not_change_real_outputs():
    x = torch.randn(2, 3, 8)
    longer = torch.cat([torch.randn(2, 4, 8), x], dim=1)
    real = torch.tensor([[False] * 4 + [True] * 3] * 2)
    model = transformer()
    torch.testing.assert_close(model(x, padded(real[:, 4:])), model(longer, padded(real))[:, 4:], rtol=1e-5, atol=1e-6)


def test_seen_padding_repeats_the_published_quirk():
    x = torch.randn(3, 5, 8)
    other = torch.where(REAL[..., None], x, torch.randn(3, 5, 8))
    model, seen = transformer(), padded(REAL, seen_padding=True)
    changed = (model(x, seen) - model(other, seen)).abs()
    assert changed[0, 2:].max() > 1e-3  # real positions read the padding before them
    assert changed[1].max() == 0  # a history without padding has none to read


def test_seen_padding_gives_padded_queries_uniform_weights():
    attention = transformer().blocks[0].attention
    x = torch.randn(1, 3, 8)
    y = attention(x, padded(torch.tensor([[False, False, True]]), seen_padding=True))
    uniform = attention.out(attention.value(x)[:, :2].mean(dim=1))
    torch.testing.assert_close(y[:, 1], uniform)


@pytest.mark.parametrize("seen_padding", [False, True])
def test_a_later_input_changes_no_earlier_output(seen_padding):
    x = torch.randn(3, 5, 8)
    other = x.clone()
    other[:, 3:] = torch.randn(3, 2, 8)
    model, seen = transformer(), padded(REAL, seen_padding)
    torch.testing.assert_close(model(x, seen)[:, :3], model(other, seen)[:, :3], rtol=0, atol=0)
    assert (model(x, seen)[:, 3] - model(other, seen)[:, 3]).abs().max() > 1e-3


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
    torch.testing.assert_close(attention(x, padded(real))[:, 1:], expected[:, 1:])


@pytest.mark.parametrize("seen_padding", [False, True])
def test_one_more_token_after_those_kept_is_the_last_of_the_whole_pass(seen_padding):
    model, x, seen = transformer(), torch.randn(3, 5, 8), padded(REAL, seen_padding)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn_like(weights)  # biases start at 0
        kept = model.prefill(x[:, :-1], seen)
        model.extend(torch.randn(3, 8), kept)  # leaves nothing behind
        torch.testing.assert_close(model.extend(x[:, -1], kept), model(x, seen)[:, -1])


def test_blocks_end_in_a_layer_norm():
    y = transformer()(torch.randn(3, 5, 8), SEEN)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(3, 5), rtol=1e-4, atol=1e-4)


def test_a_block_by_hand():
    block, x = transformer().blocks[0], torch.randn(3, 5, 8)
    widen, _, _, narrow = block.feed_forward
    with torch.no_grad():
        widen.bias.uniform_(-3, 3)  # where GELU and its approximation are furthest apart

    def normalised(y):
        return (y - y.mean(-1, keepdim=True)) / y.var(-1, unbiased=False, keepdim=True).sqrt()

    y = normalised(x + block.attention(x, SEEN))
    wide = y @ widen.weight.T + widen.bias
    wide = wide * (1 + torch.erf(wide / 2**0.5)) / 2
    torch.testing.assert_close(block(x, SEEN), normalised(y + wide @ narrow.weight.T), rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only():
    model = HistoryEncoder(8, 1, 2, 0.5, 0.5)
    x = torch.randn(3, 5, 8)
    assert not torch.equal(model(x, SEEN), model(x, SEEN))
    model.eval()
    assert torch.equal(model(x, SEEN), model(x, SEEN))


def test_the_padding_row_is_zero_and_gets_no_gradient():
    table = item_embedding(5, 4)
    assert table.weight[0].abs().sum() == 0
    table(torch.tensor([0, 3])).sum().backward()
    assert table.weight.grad[0].abs().sum() == 0
    assert table.weight.grad[3].abs().sum() > 0
