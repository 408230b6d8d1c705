import pytest
import torch

from opensora.models.layers.norm import RMSNorm, norm_modulate


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (3, 1, 1, 8), (3, 2, 1, 8), (1, 2, 1, 8)])
def test_norm_modulate_is_norm_then_modulation(shape: tuple[int, ...]) -> None:
    """Whatever the vectors belong to: the batch, a sample, a frame."""
    x, shift, scale = torch.randn(3, 2, 5, 8), torch.randn(shape), torch.randn(shape)
    plain = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(norm_modulate(x, shift, scale), plain)


def test_norm_modulate_takes_vectors_narrower_than_the_tokens() -> None:
    """As under autocast, where a linear layer gives them and the tokens are still float32."""
    x, shift, scale = torch.randn(2, 2, 5, 8), torch.randn(2, 1, 1, 8).bfloat16(), torch.randn(2, 1, 1, 8).bfloat16()
    plain = torch.nn.functional.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(norm_modulate(x, shift, scale), plain)


def test_rms_norm_computes_in_float32() -> None:
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[3.0, -3.0, 3.0, 3.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0, -2.0, 3.0, 4.0]]))
    tiny = torch.full((1, 4), 1e-3, dtype=torch.bfloat16)  # squares below eps: x / sqrt(1e-6 + 1e-6)
    torch.testing.assert_close(norm.to(torch.bfloat16)(tiny)[0, 0].item(), 0.707, atol=4e-3, rtol=0)
