"""STDiT2 of Open-Sora 1.1: clips of any size, length and frame rate, all of them inputs of the model.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
Unlike STDiT: frame numbers rotate queries and keys (arXiv:2104.09864), both may be normalized (arXiv:2302.05442, sec.
3.1), the temporal branch has its own modulation, positions are computed for each size.
Key names and numbers follow Open-Sora 1.1, so its released weights load strictly.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import SizeEmbedder, normal_init_, zero_init_
from opensora.models.layers.mlp import DropPath, Mlp
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated_residual, modulation_vectors
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.rope import RotaryEmbedding
from opensora.models.layers.text_context import text_context
from opensora.models.shape_checks import exact_div
from opensora.models.stdit.attention import FrameText, Rotate, SpatialAttention, temporal_attention
from opensora.models.stdit.base import AnySizeDenoiser, drop_rates, project_modulation, project_time0
from opensora.registry import MODELS, register_preset


class STDiT2Block(ScaleShiftTable):
    """Spatial attention, temporal attention, cross-attention and MLP on [B, T, S, D]."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, qk_norm: bool, qk_norm_legacy: bool
    ):
        super().__init__(6, dim)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, dim) / dim**0.5)
        self.attn = SpatialAttention(dim, num_heads, qk_norm=qk_norm)
        self.attn_temp = SelfAttention(dim, num_heads, qk_norm=qk_norm, rope_first=qk_norm_legacy)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x_BTSD: Tensor,
        text: FrameText,
        rotate: Rotate,
        space_B6D: Tensor,
        time_B3D: Tensor,
        x_mask_BT: Tensor | None = None,
        space0_B6D: Tensor | None = None,
        time0_B3D: Tensor | None = None,
    ) -> Tensor:
        """space0_B6D, time0_B3D: the modulations at timestep 0, for frames where `x_mask_BT` is False."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(space_B6D, x_mask_BT, space0_B6D)
        shift_t, scale_t, gate_t = modulation_vectors(self.scale_shift_table_temporal, time_B3D, x_mask_BT, time0_B3D)
        x = gated_residual(x_BTSD, gate1, self.drop_path(self.attn(norm_modulate(x_BTSD, shift1, scale1))))
        x = gated_residual(
            x, gate_t, self.drop_path(temporal_attention(self.attn_temp, norm_modulate(x, shift_t, scale_t), rotate))
        )
        x = x + text.cross_attend(self.cross_attn, x)
        return gated_residual(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class STDiT2(AnySizeDenoiser):
    """STDiT2 of Open-Sora 1.1. Latents that patches do not divide are padded with zeros, and the output is cropped."""

    size_conditions = ("num_frames", "height", "width", "ar", "fps")

    def __init__(
        self,
        input_size: Sequence[int | None] = (None, None, None),  # latent size the run is planned for; others work too
        in_channels: int = 4,  # of the latents
        patch_size: Sequence[int] = (1, 2, 2),  # latents per token along frames, rows, columns
        hidden_size: int = 1152,
        depth: int = 28,  # blocks
        num_heads: int = 16,
        mlp_ratio: float = 4.0,  # inner width of the MLP / hidden_size
        class_dropout_prob: float = 0.1,  # share of samples that train on the null caption
        pred_sigma: bool = True,  # predict the variance as well
        drop_path: float = 0.0,  # stochastic depth of the last block; draws from torch's global generator
        caption_channels: int = 4096,  # width of the text encoder's states
        model_max_length: int = 200,  # tokens of a caption
        qk_norm: bool = True,  # RMS norm of queries and keys
        qk_norm_legacy: bool = True,  # rotate before that norm, as in the weights of 1.1; later versions rotate after
        input_sq_size: int = 512,  # pixels: side of the square whose patches are one position apart
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
        self.input_sq_size = input_sq_size
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 3 * hidden_size))
        third = exact_div("STDiT2: hidden_size over the three numbers of a size", hidden_size, 3)
        self.csize_embedder, self.ar_embedder = SizeEmbedder(third), SizeEmbedder(third)
        self.fl_embedder, self.fps_embedder = SizeEmbedder(hidden_size), SizeEmbedder(hidden_size)
        self.rope = RotaryEmbedding(exact_div("STDiT2: hidden_size over num_heads", hidden_size, num_heads))
        self.blocks = nn.ModuleList(
            STDiT2Block(hidden_size, num_heads, mlp_ratio, rate, qk_norm, qk_norm_legacy)
            for rate in drop_rates(drop_path, depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.init_weights()

    def init_weights(self) -> None:
        """PixArt's initialization, with zero output of what PixArt lacks, as in STDiT."""
        self.init_pixart_()
        normal_init_(self.t_block_temp[1])
        for embedder in (self.csize_embedder, self.ar_embedder, self.fl_embedder, self.fps_embedder):
            embedder.zero_init_output_()
        for block in self.blocks:
            assert isinstance(block, STDiT2Block)
            zero_init_(block.attn_temp.proj)
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
        *,
        num_frames: Tensor,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
        fps: Tensor,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a conditioning frame;
        drop_B bool [B], True = replace the caption by the null caption; clip_cache: keeps the embedded captions,
        and all else that steps do not change, from step to step of sampling. The clip in pixels, each [B or a divisor of B]:
        num_frames, height, width, ar = height / width, fps (120 for images).
        """
        x_BTHWD = self.embed_patches(x, x_mask)
        grid = x_BTHWD.shape[1:4]
        scale = keep(clip_cache, "scale", lambda: self.position_scale(height, width))
        position_SD = keep(clip_cache, "positions", lambda: self.position_table(grid, scale))
        x_BTSD = x_BTHWD.flatten(2, 3) + position_SD
        rotate = keep(clip_cache, "rotation", lambda: self.time_rotation(grid[0], x.device))
        t_BD, t0_BD = self.t_embedder(timestep), self.embed_time0(timestep, x_mask, clip_cache)
        size_BD, speed_BD = keep(
            clip_cache, "size", lambda: self._embed_size(len(x), num_frames, height, width, ar, fps)
        )
        t0_size_BD = None if t0_BD is None else t0_BD + size_BD
        t0_speed_BD = None if t0_BD is None else t0_BD + speed_BD
        modulation = (
            project_modulation(self.t_block, t_BD + size_BD, 6),
            project_modulation(self.t_block_temp, t_BD + speed_BD, 3),
            x_mask,
            project_time0(self.t_block, t0_size_BD, 6, clip_cache),
            project_time0(self.t_block_temp, t0_speed_BD, 3, clip_cache, "time0 along time"),
        )
        text = FrameText(text_context(partial(self.embed_text, y, mask, drop_B), clip_cache))

        x_BTSD = self.split_seq(x_BTSD)
        for block in self.blocks:
            x_BTSD = block(x_BTSD, text, rotate, *modulation)
        # Only conditioning frames get the size embedding here: wrong, but weights were trained so.
        x_BTSD = self.gather_seq(self.final_layer(x_BTSD, t_BD, x_mask, t0_size_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])

    def _embed_size(
        self, batch: int, num_frames: Tensor, height: Tensor, width: Tensor, ar: Tensor, fps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The clip's rows and columns, and its length and rate, each embedded [B, D]."""
        sides_BD = self.csize_embedder.embed(torch.stack([height, width], dim=1), batch)
        size_BD = torch.cat([sides_BD, self.ar_embedder.embed(ar, batch)], dim=1)
        return size_BD, self.fl_embedder.embed(num_frames, batch) + self.fps_embedder.embed(fps, batch)


register_preset(
    MODELS,
    "STDiT2-XL/2",
    STDiT2,
    depth=28,
    hidden_size=1152,
    num_heads=16,
    patch_size=(1, 2, 2),
    qk_norm=True,
    qk_norm_legacy=True,
    input_sq_size=512,
    model_max_length=200,
)
