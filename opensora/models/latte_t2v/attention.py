"""Attention with the key names of diffusers; self-attention can compress its keys and values.

Shapes: P leading axes as one, N tokens, M keys, L text tokens, h heads, d width of a head, D width.
"""

import torch
from torch import Tensor, nn

from opensora.models.latte_t2v.positions import Rotate
from opensora.models.layers.attention import attend
from opensora.models.layers.kernels import Attention as Kernel
from opensora.models.layers.norm import layer_norm
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import exact_div


class Projections(nn.Module):
    """The linear layers. `kernel` may be replaced from outside (parallel/)."""

    def __init__(self, dim: int, num_heads: int, bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = exact_div("attention: width over num_attention_heads", dim, num_heads)
        self.kernel: Kernel = attend
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_v = nn.Linear(dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def heads(self, x_PND: Tensor) -> Tensor:
        """[..., N, D] -> [P, h, N, d]."""
        return x_PND.reshape(-1, x_PND.shape[-2], self.num_heads, self.head_dim).transpose(1, 2)


class CompressedSelfAttention(Projections):
    """Self-attention along the last but one axis.

    factor: this many neighbors (factor x factor in a grid) become one key and value, by a depthwise convolution and a
    norm; queries stay as they are. along: the axis holds "patches" of a grid, or "frames".
    """

    def __init__(self, dim: int, num_heads: int, bias: bool, factor: int = 1, along: str = "frames"):
        super().__init__(dim, num_heads, bias)
        self.factor = factor
        if factor > 1:
            convolution = nn.Conv2d if along == "patches" else nn.Conv1d
            self.sr = convolution(dim, dim, factor, stride=factor, groups=dim)
            self.norm = nn.LayerNorm(dim)

    def init_weights(self) -> None:
        """A compressed key starts as the mean of its neighbors."""
        if self.factor > 1:
            assert self.sr.bias is not None
            nn.init.constant_(self.sr.weight, 1 / self.sr.weight[0].numel())
            nn.init.zeros_(self.sr.bias)

    def forward(
        self, x: Tensor, rotate: Rotate | None = None, mask: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """x [..., N, D]; mask bool [P, 1, 1, M], True = attend; grid: rows and columns where N is patches."""
        q = self.heads(self.to_q(x))
        compressed = x if self.factor == 1 else self._compress(x.reshape(-1, *x.shape[-2:]), grid)
        k, v = self.heads(self.to_k(compressed)), self.heads(self.to_v(compressed))
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        out = self.kernel(q, k, v, mask)
        return self.to_out[0](out.transpose(1, 2).reshape(x.shape))

    def _compress(self, x_PND: Tensor, grid: tuple[int, int] | None) -> Tensor:
        x_PDN = x_PND.transpose(1, 2)
        if grid is not None:
            x_PDN = x_PDN.unflatten(2, grid)
        elif x_PDN.shape[2] % 2:  # the autoencoder's first latent frame holds one frame, the others four
            x_PDN = torch.cat([x_PDN[:, :, :1]] * (self.factor - 1) + [x_PDN], dim=2)
        compressed_PMD = self.sr(x_PDN).flatten(2).transpose(1, 2)
        return layer_norm(compressed_PMD, self.norm.weight, self.norm.bias, self.norm.eps)


class CaptionCrossAttention(Projections):
    """Tokens of a clip attend to its caption, those of each appended image to the image's own caption."""

    def keys_values(self, y_PLD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [P, h, L, d] of the text; they depend on nothing else, so sampling computes them once a prompt."""
        return self.heads(self.to_k(y_PLD)), self.heads(self.to_v(y_PLD))

    def forward(self, x_BTSD: Tensor, text: TextContext, images: int) -> Tensor:
        """images: how many of the T frames, the last ones, are images; P = B * (1 + images), the clip's caption first."""
        batch, frames, _, _ = x_BTSD.shape
        k, v = text.keys_values(self)
        mask = None if text.mask_BL is None else text.mask_BL[:, None, None]
        q = self.heads(self.to_q(x_BTSD.flatten(1, 2) if images == 0 else x_BTSD))
        if images > 0:
            row_T = torch.arange(frames, device=k.device) - (frames - images) + 1
            row_T = row_T.clamp(min=0)  # 0 ... 0 for the clip, then 1 ... images

            def per_frame(rows: Tensor) -> Tensor:
                return rows.unflatten(0, (batch, -1))[:, row_T].flatten(0, 1)

            k, v, mask = per_frame(k), per_frame(v), None if mask is None else per_frame(mask)
        out = self.kernel(q, k, v, mask)
        return self.to_out[0](out.transpose(1, 2).reshape(x_BTSD.shape))
