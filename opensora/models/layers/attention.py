"""Self-attention, cross-attention, and the choice of their kernel.

Shapes: B batch (any number of leading axes in SelfAttention), N queries, M keys, L text tokens, D width,
h heads, d = D / h.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.layers.kernels import Attention as Kernel
from opensora.models.layers.kernels import kernels_for
from opensora.models.layers.norm import RMSNorm
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import exact_div

# On CPU in half precision SDPA's backward is 2 to 7 times slower than plain products up to this many keys
# (measured with 8 to 1024 keys); in float32 both are equally fast, and SDPA keeps less memory.
SHORT_KEYS = 512

# Kernels of accelerators count sequences along an axis of CUDA's grid that ends at 65,535 blocks, and number the elements
# of their scratch memory, which pads queries to 128 and heads to 32, with 32 bits. Beyond that they fail or read elsewhere.
MAX_SEQUENCES = 2**15
MAX_ELEMENTS = 2**31 - 1


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by two matrix products; the softmax is in float32. Mask True = attend."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`softmax_attention` by torch's fused kernels."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def choose_kernel(device_type: str, dtype: torch.dtype, keys: int, head_dim: int = 64, masked: bool = False) -> Kernel:
    """The fastest kernel for this device, precision, number of keys, head width, with or without a mask."""
    choose = kernels_for(device_type).attention
    kernel = choose(dtype, head_dim, masked) if choose is not None else None
    if kernel is not None:
        return kernel
    if device_type == "cpu" and dtype in (torch.bfloat16, torch.float16) and keys <= SHORT_KEYS:
        return softmax_attention
    return sdpa_attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by the kernel that `choose_kernel` picks for the tensors; on devices in parts that it can take."""
    kernel = choose_kernel(q.device.type, q.dtype, k.shape[-2], q.shape[-1], mask is not None)
    if q.device.type == "cpu":
        return kernel(q, k, v, mask)
    return _one_value(q, k, v) if k.shape[-2] == 1 and mask is None else _in_parts(kernel, q, k, v, mask)


def _one_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to one key: the softmax of its score is 1. Queries and keys get their gradient, zero, by sums of nothing."""
    return v.expand(*q.shape[:-1], -1) + (q[..., :0].sum() + k[..., :0].sum())


def _in_parts(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Call `kernel` on so few sequences, and of a very long one on so few heads, that it stays within its limits."""
    batch, heads, queries, width = q.shape
    rows = max(queries, k.shape[-2])
    of_head = (rows + -rows % 128) * (width + -width % 32)  # elements of scratch memory
    sequences = max(1, min(MAX_SEQUENCES, MAX_ELEMENTS // (heads * of_head)))
    if batch > sequences:
        axis, size = 0, sequences
    elif heads > 1 and heads * of_head > MAX_ELEMENTS:
        axis, size = 1, max(1, MAX_ELEMENTS // of_head)
    else:
        return kernel(q, k, v, mask)
    parts = [part.split(size, dim=axis) for part in (q, k, v)]
    if mask is None or mask.shape[axis] == 1:
        masks = [mask] * len(parts[0])
    else:
        masks = list(mask.split(size, dim=axis))
    return torch.cat([_in_parts(kernel, *part) for part in zip(*parts, masks, strict=True)], dim=axis)


class SelfAttention(nn.Module):
    """Multi-head self-attention along the last but one axis of [..., N, D].

    qk_norm: RMS norm of every query and key head. rope_first: rotate before that norm, as weights of Open-Sora 1.1
    were trained; the two orders differ. crosses_split: x is [B, T, N, D], and N is the axis that the model's "split" seam
    splits, so that parallel/ may have each rank attend over all tokens with some of the heads.
    """

    def __init__(
        self, dim: int, num_heads: int, qk_norm: bool = False, rope_first: bool = False, crosses_split: bool = False
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = exact_div("attention: hidden_size over num_heads", dim, num_heads)
        self.rope_first, self.crosses_split = rope_first, crosses_split
        self.kernel: Kernel = attend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        if crosses_split:
            self.a2a_to_heads = Seam("switch", dim=2, swap_dim=-2, axis="heads")
            self.a2a_to_tokens = Seam("switch", dim=-2, swap_dim=2, axis="heads")

    def forward(
        self, x: Tensor, rotate: Callable[[Tensor], Tensor] | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """rotate: position embedding of queries and keys [B, h, N, d]; mask: bool [B, 1, 1 or N, N], True = attend,
        where B counts all leading axes and N all tokens, also those on other ranks."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        if self.crosses_split:
            qkv = self.a2a_to_heads(qkv)
        *lead, n, _, heads, width = qkv.shape
        # Views of qkv: backward then writes their gradients next to each other in one pass.
        q, k, v = (part.reshape(-1, n, heads, width).transpose(1, 2) for part in qkv.unbind(-3))
        if rotate is not None and self.rope_first:
            q, k = rotate(q), rotate(k)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotate is not None and not self.rope_first:
            q, k = rotate(q), rotate(k)
        # Under autocast, norms and rotations with float32 weights widen the narrow output of the projection.
        out = self.kernel(q.to(v.dtype), k.to(v.dtype), v, mask)
        out = out.transpose(1, 2).reshape(*lead, n, heads, width)
        if self.crosses_split:
            out = self.a2a_to_tokens(out)
        return self.proj(out.flatten(-2))


class CrossAttention(nn.Module):
    """Queries [B, N, D] attend to text [B, L, D]; key names as in PixArt and Open-Sora.

    The original packs the valid tokens of all captions into one sequence with a block-diagonal mask; attending
    densely under a key mask gives the same numbers without a loop over samples.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = exact_div("cross attention: hidden_size over num_heads", dim, num_heads)
        self.kernel: Kernel = attend
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def keys_values(self, y_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, h, L, d] of the text; they depend on nothing else, so sampling computes them once a prompt."""
        kv = self.kv_linear(y_BLD).view(len(y_BLD), -1, 2, self.num_heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x_BND: Tensor, text: TextContext) -> Tensor:
        b, n, _ = x_BND.shape
        q = self.q_linear(x_BND).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = text.keys_values(self)
        out = self.kernel(q, k, v, None if text.mask_BL is None else text.mask_BL[:, None, None, :])
        return self.proj(out.transpose(1, 2).flatten(2))
