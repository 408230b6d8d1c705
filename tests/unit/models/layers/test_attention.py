import pytest
import torch
from torch import Tensor

from opensora.models.layers.attention import (
    CrossAttention,
    SelfAttention,
    choose_kernel,
    sdpa_attention,
    softmax_attention,
)
from opensora.models.layers.embed import text_mask
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import ShapeError


def qkv(keys: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 8) for n in (5, keys, keys)]


@pytest.mark.parametrize("masked", [False, True])
def test_kernels_agree(masked: bool) -> None:
    q, k, v = qkv()
    mask = (torch.arange(7) < torch.tensor([[3], [7]]))[:, None, None] if masked else None
    torch.testing.assert_close(softmax_attention(q, k, v, mask), sdpa_attention(q, k, v, mask))


def test_kernel_is_chosen_by_device_precision_and_length() -> None:
    assert choose_kernel("cpu", torch.bfloat16, 16) is softmax_attention
    assert choose_kernel("cpu", torch.bfloat16, 4096) is sdpa_attention
    assert choose_kernel("cpu", torch.float32, 16) is sdpa_attention
    assert choose_kernel("cuda", torch.bfloat16, 16) is sdpa_attention


def test_self_attention_runs_along_the_last_but_one_axis() -> None:
    torch.manual_seed(0)
    attention, x = SelfAttention(12, 3), torch.randn(2, 4, 5, 12)
    rows = torch.stack([attention(row) for row in x])
    torch.testing.assert_close(attention(x), rows)


def test_a_replaced_kernel_is_used() -> None:
    attention, x = SelfAttention(8, 2), torch.randn(1, 3, 8)
    attention.kernel = lambda q, k, v, mask: torch.zeros_like(q)
    torch.testing.assert_close(attention(x), attention.proj.bias.expand(1, 3, 8))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ShapeError, match=r"10 .*multiple of 3"):
        SelfAttention(10, 3)


def test_cross_attention_sees_valid_tokens_only() -> None:
    """The dense masked form equals each sample attending to its own tokens, as the packed form does."""
    torch.manual_seed(0)
    attention, x, y = CrossAttention(12, 3), torch.randn(2, 6, 12), torch.randn(2, 4, 12)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    packed = [attention(x[i : i + 1], TextContext(y[i : i + 1, : int(mask[i].sum())])) for i in range(2)]
    torch.testing.assert_close(attention(x, TextContext(y, mask)), torch.cat(packed))


def test_text_mask_repeats_whole_batches() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]])
    tiled = text_mask(mask, 4, 3)
    assert tiled is not None
    assert torch.equal(tiled, torch.cat([mask, mask]).bool())


def test_text_mask_takes_four_axes_and_none() -> None:
    mask = torch.tensor([[1, 0, 1]])
    flat, deep = text_mask(mask, 1, 3), text_mask(mask[:, None, None], 1, 3)
    assert flat is not None
    assert deep is not None
    assert torch.equal(flat, deep)
    assert text_mask(None, 1, 3) is None


def test_a_caption_without_tokens_stays_finite() -> None:
    mask = text_mask(torch.tensor([[0, 0, 0], [1, 0, 0]]), 2, 3)
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_text_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="text mask"):
        text_mask(torch.ones(shape), 4, 3)
