"""Attention in windows against attention that is masked to them, and the rotation over a grid."""

import pytest
import torch
from torch import Tensor

from opensora.models.layers.attention import softmax_attention
from opensora.models.layers.rope import RotaryEmbedding
from opensora.models.shape_checks import ShapeError
from opensora.models.stdit.windows import WindowAttention, Windows, rotation_3d, window_size

WIDTH, HEADS = 12, 2
SCALE = torch.tensor(0.5)


def rope() -> RotaryEmbedding:
    return RotaryEmbedding(WIDTH // 3)


def places(grid: tuple[int, int, int]) -> Tensor:
    """[T*H*W, 3] in order of the tokens."""
    return torch.cartesian_prod(*(torch.arange(n) for n in grid))


@pytest.mark.parametrize("kernel_size", [(2, 2, -1), (2, 3, 1), (-1, -1, -1), (8, 8, 2), (3, 1, 4)])
@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 2, 3), (4, 6, 6)])
def test_windows_are_blocks_of_the_grid(grid: tuple[int, int, int], kernel_size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    t, h, w = grid
    attention, x = WindowAttention(HEADS * WIDTH, HEADS, qk_norm=True), torch.randn(2, t, h * w, HEADS * WIDTH)
    windows = Windows.of_grid(2, grid, kernel_size, rope(), SCALE)

    q, k, v = attention.qkv(x).view(2, t * h * w, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    turn = rotation_3d(rope(), grid, SCALE)  # by the place in the whole grid: only differences count
    rows, columns, frames = kernel_size
    size = torch.tensor([part if part > 0 else whole for part, whole in zip((frames, rows, columns), grid)])
    window_N3 = places(grid) // size
    together = (window_N3[:, None] == window_N3[None]).all(-1)
    out = softmax_attention(turn(attention.q_norm(q)), turn(attention.k_norm(k)), v, together)
    expected = attention.proj(out.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x, windows), expected, rtol=1e-4, atol=1e-5)


def test_windows_come_back_as_they_were() -> None:
    x = torch.randn(2, 3, 4 * 5, HEADS, WIDTH)
    windows = Windows.of_grid(2, (3, 4, 5), (3, 2, 2), rope(), SCALE)
    assert windows.cut(x).shape == (2 * 2 * 2 * 3, HEADS, 2 * 3 * 2, WIDTH)
    assert torch.equal(windows.join(windows.cut(x)), x)


def test_no_padding_needs_no_mask() -> None:
    assert Windows.of_grid(1, (2, 4, 4), (2, 2, -1), rope(), SCALE).mask is None
    assert Windows.of_grid(1, (2, 4, 4), (8, 8, -1), rope(), SCALE).mask is None  # one window of the whole grid
    padded = Windows.of_grid(2, (2, 4, 5), (2, 2, -1), rope(), SCALE).mask
    assert padded is not None
    assert padded.sum().item() == 2 * 2 * 4 * 5


def test_thirds_of_a_head_turn_by_frame_row_and_column() -> None:
    turn = rotation_3d(rope(), (2, 3, 4), SCALE)
    turned = turn(torch.tensor([1.0, 0.0]).repeat(WIDTH // 2).expand(24, WIDTH))
    angles = torch.atan2(turned[:, 1::2], turned[:, ::2])[:, ::2]  # of the first frequency, which is 1
    expected = places((2, 3, 4)) / torch.tensor([1.0, 0.5, 0.5])
    torch.testing.assert_close(angles, (expected + torch.pi) % (2 * torch.pi) - torch.pi)


@pytest.mark.parametrize("kernel_size", [(8, 8), (8, 0, -1), (8, 8, -2), (1.5, 8, 8)])
def test_windows_that_are_none(kernel_size: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="-1"):
        window_size("STDiT3 kernel_size", kernel_size)
