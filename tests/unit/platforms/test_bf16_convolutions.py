"""Gradients in bfloat16 of every discriminator and autoencoder, while the memory that torch hands out is poisoned.

A kernel that reads memory which nothing has written gives other gradients at each call here: see
`CpuPlatform.pads_wrongly`. Processors choose other kernels; ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 or AVX2 tries theirs.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from opensora.models.layers.conv import Conv3d
from opensora.models.shape_checks import ShapeError
from opensora.registry import DISCRIMINATORS, VAES, build, constructor, names
from tests.support.small_models import vae

# shorter and longer than filters of three, before and after frames are merged by two and by four
FRAMES = (1, 2, 3, 4, 5, 9)
AUTOENCODERS = [name for name in names(VAES) if not hasattr(constructor(VAES, name), "__wrapped_class__")]


def poison() -> None:
    """Fill blocks of many sizes with infinities and free them: the allocator hands them out again."""
    sizes = (64, 512, 4096, 32768, 262144, 2**20)
    blocks = [torch.full((size,), float("inf")) for size in sizes for _ in range(3)]
    del blocks


def gradients(network: torch.nn.Module, call: Callable[[], Tensor]) -> Tensor:
    """All gradients of the mean square of `call`, in one vector, after memory was poisoned."""
    network.zero_grad()
    poison()
    call().float().square().mean().backward()
    parts = [parameter.grad.float().flatten() for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat(parts)


def check(network: Any, exact: Any, x: Tensor, call: Callable[[Any, Tensor], Tensor]) -> None:
    """Equal at each call, and those of float32 but for rounding."""
    expected = gradients(exact, lambda: call(exact, x))
    network, narrow = network.bfloat16(), x.bfloat16()
    first, second = (gradients(network, lambda: call(network, narrow)) for _ in range(2))
    assert torch.equal(first, second)
    assert ((first - expected).norm() / expected.norm()).item() < 0.15


def clips(frames: int, side: int, batch: int) -> Tensor:
    return torch.rand(batch, 3, frames, side, side, generator=Generator().manual_seed(frames))


@pytest.mark.parametrize("name", names(DISCRIMINATORS))
def test_gradients_of_discriminators(name: str) -> None:
    for frames in FRAMES:
        torch.manual_seed(0)
        network, exact = (build(DISCRIMINATORS, {"type": name, "width": 16}) for _ in range(2))
        exact.load_state_dict(network.state_dict())
        check(network, exact, clips(frames, 32, batch=2), lambda network, x: network(x))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_gradients_of_autoencoders(name: str) -> None:
    fitting = 0
    for frames in FRAMES:
        network, exact, x = vae(name).train(), vae(name).train(), clips(frames, 16, batch=1)
        exact.load_state_dict(network.state_dict())
        try:
            exact(x, None)
        except ShapeError:
            continue  # this autoencoder takes other numbers of frames
        fitting += 1
        check(network, exact, x, lambda network, x: network(x, None)[0])
    assert fitting >= 2


@pytest.mark.parametrize(
    ("frames", "rows", "columns", "channels"), [(1, 8, 8, 3), (2, 8, 8, 16), (3, 1, 6, 16), (3, 6, 1, 3), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_short_inputs_are_right(frames: int, rows: int, columns: int, channels: int, autocast: bool) -> None:
    """Outputs and gradients where an axis is shorter than the filter, cast or under autocast; the weights' keys stay."""
    torch.manual_seed(0)
    conv = Conv3d(channels, 8, 3, padding=1)
    assert list(conv.state_dict()) == ["weight", "bias"]
    x = torch.randn(2, channels, frames, rows, columns)
    plain = torch.nn.Conv3d(channels, 8, 3, padding=1)
    plain.load_state_dict(conv.state_dict())
    expected, output = gradients(plain, lambda: plain(x)), plain(x)
    if not autocast:
        conv, x = conv.bfloat16(), x.bfloat16()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            actual = gradients(conv, lambda: conv(x))
            poison()
            torch.testing.assert_close(conv(x).float(), output, rtol=0.02, atol=0.02)
        assert ((actual - expected).norm() / expected.norm()).item() < 0.02


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "size"),
    [
        (64, 64, (3, 3, 3), (1, 1, 1), (0, 1, 1), (3, 48, 48)),  # one frame out: 11 % off with AMX
        (64, 32, (1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 64, 64)),  # NaN with AMX
        (3, 384, (1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 128, 128)),  # patches: 50 % off with AMX
        (16, 16, (3, 3, 3), (2, 1, 1), (1, 1, 1), (4, 12, 8)),  # halves frames
        (4, 8, (2, 4, 4), (2, 2, 2), (1, 0, 1), (5, 12, 9)),
    ],
)
def test_gradients_of_few_large_frames(
    channels: int,
    outputs: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    size: tuple[int, int, int],
    autocast: bool,
) -> None:
    """Gradients of input, weights and bias, each next to those of torch in float32."""
    torch.manual_seed(0)
    conv, exact = (make(channels, outputs, kernel, stride, padding) for make in (Conv3d, torch.nn.Conv3d))
    exact.load_state_dict(conv.state_dict())
    x, exact_x = (torch.randn(2, channels, *size, generator=Generator().manual_seed(1)) for _ in range(2))
    if not autocast:
        conv, x = conv.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = conv(x.requires_grad_())
    expected = exact(exact_x.requires_grad_())
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    weights = torch.randn(expected.shape, generator=Generator().manual_seed(2))
    (output.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = [(x, exact_x), (conv.weight, exact.weight), (conv.bias, exact.bias)]
    for actual, right in pairs:
        assert actual.grad is not None
        assert right.grad is not None
        assert ((actual.grad.float() - right.grad).norm() / right.grad.norm()).item() < 0.01
