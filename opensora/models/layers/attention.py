"""Attention and the one place that chooses its kernel.

Shapes: B batch (any number of leading axes in SelfAttention), N queries, M keys, L text tokens, D width,
h heads, d = D / h.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.models.shapes import ShapeError, divides

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q [B,h,N,d], k v [B,h,M,d], mask [B,1,1,M]

# On CPU in half precision SDPA's backward is 2 to 7 times slower than plain products up to this many keys
# (measured with 8 to 1024 keys); in float32 the two are level, and SDPA keeps less memory.
SHORT_KEYS = 512


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by two matrix products; the softmax is in float32. Mask True = may be seen."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same by torch's fused kernels."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def choose_kernel(device_type: str, dtype: torch.dtype, keys: int) -> Kernel:
    """The faster kernel for this device, precision and number of keys."""
    if device_type == "cpu" and dtype != torch.float32 and keys <= SHORT_KEYS:
        return softmax_attention
    return sdpa_attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by the kernel that suits the tensors."""
    return choose_kernel(q.device.type, q.dtype, k.shape[-2])(q, k, v, mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention along the last but one axis of [..., N, D].

    `kernel` may be replaced from outside (platforms/, parallel/).
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = divides("attention: hidden_size over num_heads", dim, num_heads)
        self.kernel: Kernel = attend
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        *lead, n, dim = x.shape
        qkv = self.qkv(x).view(-1, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = self.kernel(q, k, v, None)
        return self.proj(out.transpose(1, 2).reshape(*lead, n, dim))


class CrossAttention(nn.Module):
    """Queries [B, N, D] attend to text [B, L, D]; key names as in PixArt and Open-Sora.

    The original packs the valid tokens of all captions into one sequence with a block-diagonal mask; attending
    densely under a key mask gives the same numbers without a loop over samples.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = divides("cross attention: hidden_size over num_heads", dim, num_heads)
        self.kernel: Kernel = attend
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, y_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        b, n, dim = x_BND.shape
        q = self.q_linear(x_BND).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv_linear(y_BLD).view(b, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = self.kernel(q, k, v, None if mask_BL is None else mask_BL[:, None, None, :])
        return self.proj(out.transpose(1, 2).reshape(b, n, dim))


def text_mask(mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Bring a caption mask to bool [batch, length], True = token counts; None stays None.

    Takes [b, L] or [b, 1, 1, L]. With b < batch the rows are repeated as a whole, so that under guidance the null
    caption keeps only as many tokens as the prompt has: released weights are sampled this way.
    A row without any token would make attention NaN; it sees all tokens instead.
    """
    if mask is None:
        return None
    mask_bL = mask.reshape(mask.shape[0], -1) != 0
    if mask_bL.shape[1] != length or batch % mask_bL.shape[0]:
        raise ShapeError(
            f"text mask: shape {list(mask.shape)} for {batch} captions of {length} tokens; "
            "its length must be that of the captions, and its rows must divide the batch"
        )
    mask_BL = mask_bL.repeat(batch // mask_bL.shape[0], 1)
    return mask_BL | ~mask_BL.any(dim=1, keepdim=True)
