"""The code of a diffusion step."""

import torch

from train.diffusion.time_embedding import TimeEmbedding, sinusoid


def test_the_time_code_is_cosines_then_sines():
    code = sinusoid(torch.tensor([0.0, 2.0]), 4)
    expected = [[1, 1, 0, 0], [-0.416147, 0.999800, 0.909297, 0.019999]]
    torch.testing.assert_close(code, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_the_time_is_scaled_to_a_thousand():
    time = TimeEmbedding(16, steps=8)
    seen = []
    time.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    code = time(torch.tensor([[3, 7]]))
    assert torch.equal(seen[0][3], sinusoid(torch.tensor(375.0), 16))
    torch.testing.assert_close(code[0, 1], time.mlp(sinusoid(torch.tensor(875.0), 16)))
