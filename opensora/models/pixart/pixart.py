"""PixArt-alpha as in Open-Sora 1.0: attention over all tokens jointly, then to the caption.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns, N tokens (patches of all frames), L text tokens,
D width. Tokens travel as [B, 1, N, D].
Source: Chen et al. 2023, arXiv:2310.00426. Key names and numbers follow Open-Sora 1.0, so its weights load strictly.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import (
    SizeEmbedder,
    sincos_spatial,
    sincos_temporal,
    zero_init_,
)
from opensora.models.layers.mlp import DropPath, Mlp
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated_residual
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.text_context import TextContext, text_context
from opensora.models.shape_checks import ShapeError, exact_div
from opensora.models.stdit.base import SpaceTimeDenoiser, drop_rates, project_modulation
from opensora.registry import MODELS, register_preset


class PixArtBlock(ScaleShiftTable):
    """Self-attention, cross-attention and MLP on [B, 1, N, D]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(6, dim)
        self.attn = SelfAttention(dim, num_heads, crosses_split=True)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_B1ND: Tensor, text: TextContext, time_B6D: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_B6D)
        x = gated_residual(x_B1ND, gate1, self.drop_path(self.attn(norm_modulate(x_B1ND, shift1, scale1))))
        x = x + self.cross_attn(x.squeeze(1), text).unsqueeze(1)
        return gated_residual(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class PixArt(SpaceTimeDenoiser):
    """PixArt-alpha for latents of one size; an image is a clip of one frame."""

    takes_x_mask = False

    def __init__(
        self,
        input_size: Sequence[int] = (1, 32, 32),  # latent frames, rows, columns
        in_channels: int = 4,  # of the latents
        patch_size: Sequence[int] = (1, 2, 2),  # latents per token along frames, rows, columns
        hidden_size: int = 1152,
        depth: int = 28,  # blocks
        num_heads: int = 16,
        mlp_ratio: float = 4.0,  # inner width of the MLP / hidden_size
        class_dropout_prob: float = 0.1,  # share of samples that train on the null caption
        pred_sigma: bool = True,  # predict the variance as well
        drop_path: float = 0.0,  # stochastic depth of the last block; draws from torch's global generator
        no_temporal_pos_emb: bool = False,  # frames get no position
        caption_channels: int = 4096,  # width of the text encoder's states
        model_max_length: int = 120,  # tokens of a caption
        space_scale: float = 1.0,  # divides rows and columns, for weights of another image size
        time_scale: float = 1.0,  # divides frame numbers, for weights of another frame rate
        base_size: int | None = None,  # latent rows whose positions the table is stretched to; None = sqrt(patches)
    ):
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            class_dropout_prob=class_dropout_prob,
            pred_sigma=pred_sigma,
            caption_channels=caption_channels,
            model_max_length=model_max_length,
        )
        self.no_temporal_pos_emb = no_temporal_pos_emb
        self.space_scale, self.time_scale = space_scale, time_scale

        frames, rows, columns = self.grid
        self.base_size = int((rows * columns) ** 0.5) if base_size is None else base_size // self.patch_size[1]
        spatial = torch.as_tensor(sincos_spatial(hidden_size, rows, columns, space_scale, self.base_size))
        self.register_buffer("pos_embed", spatial.float()[None])
        temporal = torch.as_tensor(sincos_temporal(hidden_size, frames, time_scale))
        self.register_buffer("pos_embed_temporal", temporal.float()[None])
        self.pos_embed: Tensor
        self.pos_embed_temporal: Tensor

        self.add_conditioning()
        self.blocks = nn.ModuleList(
            PixArtBlock(hidden_size, num_heads, mlp_ratio, rate) for rate in drop_rates(drop_path, depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.init_weights()

    def add_conditioning(self) -> None:
        """Add a subclass's conditioning modules; called before the weights are initialized."""

    def init_weights(self) -> None:
        """PixArt's initialization: N(0, 0.02) conditioning; cross-attention and the final layer start at zero."""
        self.init_pixart_()
        for block in self.blocks:
            assert isinstance(block, PixArtBlock)
            zero_init_(block.cross_attn.proj)
        zero_init_(self.final_layer.linear)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        drop_B: Tensor | None = None,
        clip_cache: ClipCache | None = None,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask: None, or ShapeError; drop_B bool [B], True = replace the caption by the
        null caption; clip_cache: keeps the embedded captions from step to step of sampling.
        """
        return self._denoise(x, self.t_embedder(timestep), self.pos_embed, y, mask, x_mask, drop_B, clip_cache)

    def _denoise(
        self,
        x: Tensor,
        t_BD: Tensor,
        position_1SD: Tensor,
        y: Tensor,
        mask: Tensor | None,
        x_mask: Tensor | None,
        drop_B: Tensor | None,
        clip_cache: ClipCache | None,
    ) -> Tensor:
        x_BTSD = self.embed_patches(x, x_mask).flatten(2, 3) + position_1SD
        if not self.no_temporal_pos_emb:
            x_BTSD = x_BTSD + self.pos_embed_temporal[:, :, None]
        time_B6D = project_modulation(self.t_block, t_BD, 6)
        text = text_context(functools.partial(self.embed_text, y, mask, drop_B), clip_cache)

        x_B1ND = self.split_seq(x_BTSD.flatten(1, 2).unsqueeze(1))
        for block in self.blocks:
            x_B1ND = block(x_B1ND, text, time_B6D)
        x_B1ND = self.gather_seq(self.final_layer(x_B1ND, t_BD))
        return self.to_latents(x_B1ND.squeeze(1), x.shape[2:])


@MODELS.register_module()
class PixArtMS(PixArt):
    """PixArt for images of any size, conditioned on height, width and aspect ratio.

    `input_size` fixes the number of frames, and the grid that positions of other grids are stretched to; Open-Sora 1.0
    took only grids of equally many patches. The stored `pos_embed` is part of the released weights; it is never read.
    """

    size_conditions = ("height", "width", "ar")
    fixed_size = False
    fixed_frames = True

    def add_conditioning(self) -> None:
        part = exact_div("PixArtMS: hidden_size over height, width and aspect ratio", self.hidden_size, 3)
        self.csize_embedder, self.ar_embedder = SizeEmbedder(part), SizeEmbedder(part)

    def init_weights(self) -> None:
        super().init_weights()
        self.csize_embedder.init_weights()
        self.ar_embedder.init_weights()

    def forward(  # type: ignore[override]  # size_conditions names the additional arguments
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        drop_B: Tensor | None = None,
        clip_cache: ClipCache | None = None,
        *,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
    ) -> Tensor:
        """As PixArt's; height and width in pixels and ar = height / width, each [B] or [b] with b dividing B.

        Raises ShapeError for a number of frames other than that of `input_size`.
        """
        if x.shape[2] != self.input_size[0]:
            raise ShapeError(
                f"PixArtMS: {x.shape[2]} latent frames; this model was built for {self.input_size[0]}, of any rows and "
                "columns; change input_size or the length of the clips"
            )
        size_BD = keep(clip_cache, "size", lambda: self._embed_size(len(x), height, width, ar))
        rows, columns = (-(-n // p) for n, p in zip(x.shape[3:], self.patch_size[1:], strict=True))
        position_SD = cached_sincos_spatial(
            self.hidden_size, rows, columns, self.space_scale, self.base_size, self.dtype, x.device
        )
        return self._denoise(
            x, self.t_embedder(timestep) + size_BD, position_SD[None], y, mask, x_mask, drop_B, clip_cache
        )

    def _embed_size(self, batch: int, height: Tensor, width: Tensor, ar: Tensor) -> Tensor:
        """[B, D]."""
        sides_BD = self.csize_embedder.embed(torch.stack([height, width], dim=-1), batch)
        return torch.cat([sides_BD, self.ar_embedder.embed(ar, batch)], dim=-1)


@functools.lru_cache(maxsize=8)  # runs alternate between a few sizes; the table of 1024x1024 pixels has 19 MB
def cached_sincos_spatial(
    width: int, rows: int, columns: int, scale: float, base_size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`sincos_spatial` as a tensor on a device, cached."""
    table = sincos_spatial(width, rows, columns, scale, base_size).astype(np.float32)
    return torch.as_tensor(table, dtype=dtype, device=device)


_XL2: dict[str, Any] = {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": (1, 2, 2)}
register_preset(MODELS, "PixArt-XL/2", PixArt, **_XL2)
register_preset(MODELS, "PixArtMS-XL/2", PixArtMS, **_XL2)
