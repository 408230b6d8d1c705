import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from opensora.datasets.buckets import Buckets
from opensora.models.layers import attention as attention_module
from opensora.models.layers import kernels
from opensora.models.layers.attention import (
    CrossAttention,
    SelfAttention,
    attend,
    choose_kernel,
    sdpa_attention,
    softmax_attention,
)
from opensora.models.layers.embed import text_mask
from opensora.models.layers.kernels import Attention as Kernel
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import ShapeError

CONFIGS = Path(__file__).resolve().parents[4] / "configs"


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


def recording_device(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Kernel) -> None:
    """Give tensors of device `name` this kernel, as the platform of an accelerator would."""
    device = SimpleNamespace(
        name=name,
        attention=lambda *_: kernel,
        layer_norm=lambda: None,
        rms_norm=lambda: None,
        launches_kernels=True,
        pads_wrongly=lambda *_: False,
        misjudges_weights=lambda *_: False,
    )
    monkeypatch.setattr(kernels, "_by_device", {})
    kernels.use_kernels(device)


@pytest.mark.parametrize("recipe", sorted(CONFIGS.glob("_base_/*buckets*.py")), ids=lambda path: path.stem)
def test_devices_take_every_attention_of_every_bucket(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    """A device's kernel counts sequences in a grid of 65,535, and elements of its padded scratch memory in 32 bits."""
    shapes: list[tuple[int, ...]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        shapes.append(tuple(q.shape))
        return torch.empty_like(q)

    recording_device(monkeypatch, "meta", kernel)
    buckets = Buckets(runpy.run_path(str(recipe))["bucket_config"])
    for bucket in filter(buckets.takes, buckets.all):
        frames, height, width = buckets.size(bucket)
        batch, patches = buckets.batch_size(bucket), height // 16 * (width // 16)
        assert batch is not None
        for sequences, tokens in ((batch * patches, frames), (batch * frames, patches)):
            q = torch.empty(sequences, 16, tokens, 72, device="meta")
            assert attend(q, q, q).shape == q.shape
        q, text = (torch.empty(batch, 16, tokens, 72, device="meta") for tokens in (frames * patches, 300))
        mask = torch.empty(batch, 1, 1, 300, dtype=torch.bool, device="meta")
        assert attend(q, text, text, mask).shape == q.shape
    assert len(shapes) > len(list(filter(buckets.takes, buckets.all)))
    for sequences, heads, tokens, width in shapes:
        assert sequences <= 65_535
        assert sequences * heads * (tokens + -tokens % 128) * (width + -width % 32) < 2**31


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("sequences", "elements", "calls"),
    [
        (2, 2**31, [(2, 3), (2, 3), (1, 3)]),
        (9, 2 * 3 * 128 * 32, [(2, 3), (2, 3), (1, 3)]),
        (9, 128 * 32, [(1, 1)] * 15),
    ],
)
def test_parts_of_an_attention_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, masked: bool, sequences: int, elements: int, calls: list[tuple[int, int]]
) -> None:
    """Outputs and gradients, with limits on sequences or on elements of scratch memory."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    mask = (torch.arange(7) < torch.arange(3, 8)[:, None])[:, None, None] if masked else None
    shapes: list[tuple[int, ...]] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        shapes.append(tuple(q.shape[:2]))
        return softmax_attention(q, k, v, mask)

    monkeypatch.setattr(attention_module, "MAX_SEQUENCES", sequences)
    monkeypatch.setattr(attention_module, "MAX_ELEMENTS", elements)
    parts, whole = attention_module._in_parts(kernel, q, k, v, mask), softmax_attention(q, k, v, mask)
    assert shapes == calls
    assert torch.equal(parts, whole)
    weights = torch.randn_like(whole)
    for one, other in zip(
        *(torch.autograd.grad((out * weights).sum(), (q, k, v)) for out in (parts, whole)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_key_gives_its_value(dtype: torch.dtype, queries: int) -> None:
    """As the kernels compute it, but for rounding of the gradients of queries and keys, which are zero."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, n, 8, dtype=dtype, requires_grad=True) for n in (queries, 1, 1)]
    outs = attention_module._one_value(*inputs), sdpa_attention(*inputs)
    assert torch.equal(*outs)
    for one, other in zip(*(torch.autograd.grad(out.sum(), inputs) for out in outs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_one_key_calls_no_kernel_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal attention of pictures, a sequence per patch: the batches that grew largest."""
    recording_device(monkeypatch, "meta", lambda *_: pytest.fail("a kernel was called"))
    q, k = (torch.empty(90_000, 16, n, 72, device="meta", requires_grad=True) for n in (1, 1))
    assert attend(q, k, k).shape == q.shape


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
