import pytest
import torch
from torch import Tensor

from opensora.models.layers import kernels
from opensora.models.layers.kernels import Kernels
from opensora.models.layers.norm import RMSNorm, norm_modulate
from tests.support.fake_device import fake_cuda


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


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (3, 1, 1, 4), (3, 2, 1, 4), (1, 2, 1, 4)])
def test_norm_modulate_of_devices_has_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    def numbers() -> list[Tensor]:
        torch.manual_seed(0)
        x, shift, scale = (
            torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 2, 5, 4), shape, shape)
        )
        out = norm_modulate(x, shift, scale)
        return [out, *torch.autograd.grad(out.pow(3).sum(), [x, shift, scale])]

    expected = numbers()
    monkeypatch.setitem(kernels._by_device, "cpu", Kernels(launches=True))
    torch.testing.assert_close(numbers(), expected)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_rms_norm_of_a_cuda_device_is_one_kernel(weight_dtype: torch.dtype) -> None:
    """And a cast of its weight; the result is as narrow as the input, under autocast too."""
    with fake_cuda() as recorder:
        norm, x = RMSNorm(72).to("cuda", weight_dtype), torch.zeros(2, 4, 16, 72, dtype=torch.bfloat16, device="cuda")
        recorder.take()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = norm(x)
        names = [op.name for op in recorder.take() if op.kind == "kernel"]
    assert names == [*(["_to_copy"] if weight_dtype is torch.float32 else []), "_fused_rms_norm"]
    assert out.dtype is torch.bfloat16
