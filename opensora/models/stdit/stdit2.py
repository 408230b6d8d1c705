"""STDiT2 of Open-Sora 1.1: clips of any size, length and frame rate, which the model is told.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
Unlike STDiT: frames are known by a rotation of queries and keys (arXiv:2104.09864), both may be normalised
(arXiv:2302.05442, sec. 3.1), the temporal branch has a modulation of its own, positions are computed for every size.
Key names and numbers follow Open-Sora 1.1, so its released weights load strictly.
"""

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import DropPath, GELUTanh, Mlp
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.embed import SizeEmbedder, shut_linear, small_linear
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated, modulation_vectors
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.rope import RotaryEmbedding
from opensora.models.layers.text_context import TextCache, text_context
from opensora.models.shape_checks import exact_div
from opensora.models.stdit.attention import Rotate, SpatialAttention, Text, along_time
from opensora.models.stdit.base import AnySizeDenoiser, drop_rates, modulation_rows
from opensora.registry import MODELS, register_preset


class STDiT2Block(ScaleShiftTable):
    """Spatial attention, temporal attention, cross-attention and perceptron on [B, T, S, D]."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, qk_norm: bool, qk_norm_legacy: bool
    ):
        super().__init__(6, dim)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, dim) / dim**0.5)
        self.attn = SpatialAttention(dim, num_heads, qk_norm=qk_norm)
        self.attn_temp = SelfAttention(dim, num_heads, qk_norm=qk_norm, rope_first=qk_norm_legacy)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        x_BTSD: Tensor,
        text: Text,
        rotate: Rotate,
        space_B6D: Tensor,
        time_B3D: Tensor,
        x_mask_BT: Tensor | None = None,
        still_space_B6D: Tensor | None = None,
        still_time_B3D: Tensor | None = None,
    ) -> Tensor:
        """`still_*` are the modulations at timestep 0, for frames where `x_mask_BT` is False."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.vectors(space_B6D, x_mask_BT, still_space_B6D)
        shift_t, scale_t, gate_t = modulation_vectors(
            self.scale_shift_table_temporal, time_B3D, x_mask_BT, still_time_B3D
        )
        x = gated(x_BTSD, gate1, self.drop_path(self.attn(norm_modulate(x_BTSD, shift1, scale1))))
        x = gated(x, gate_t, self.drop_path(along_time(self.attn_temp, norm_modulate(x, shift_t, scale_t), rotate)))
        x = x + text.read(self.cross_attn, x)
        return gated(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class STDiT2(AnySizeDenoiser):
    """The denoiser. Sizes that patches do not divide are padded with zeros, and the output is cropped.

    input_size: latent frames, rows, columns that a run is planned for; any other size works as well.
    qk_norm: RMS norm of queries and keys. qk_norm_legacy: rotate before that norm, as the released weights were trained
    by Open-Sora 1.1; its later versions rotate after it. input_sq_size: side in pixels of the square whose patches are
    one position apart. drop_path draws from torch's global generator.
    """

    size_conditions = ("num_frames", "height", "width", "ar", "fps")

    def __init__(
        self,
        input_size: Sequence[int | None] = (None, None, None),
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        qk_norm: bool = True,
        qk_norm_legacy: bool = True,
        input_sq_size: int = 512,
    ):
        super().__init__(
            input_size,
            in_channels,
            patch_size,
            hidden_size,
            depth,
            num_heads,
            class_dropout_prob,
            pred_sigma,
            caption_channels,
            model_max_length,
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
        self.initialise()

    def initialise(self) -> None:
        """As STDiT: what PixArt does not have starts shut or silent."""
        self.start_small()
        small_linear(self.t_block_temp[1])
        for embedder in (self.csize_embedder, self.ar_embedder, self.fl_embedder, self.fps_embedder):
            embedder.start_silent()
        for block in self.blocks:
            assert isinstance(block, STDiT2Block)
            shut_linear(block.attn_temp.proj)
            shut_linear(block.cross_attn.proj)
        shut_linear(self.final_layer.linear)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        drop_B: Tensor | None = None,
        text_cache: TextCache | None = None,
        *,
        num_frames: Tensor,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
        fps: Tensor,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a frame given as condition;
        drop_B bool [B], True = replace the caption by the null caption; text_cache: keeps the embedded captions
        from step to step of sampling. The clip in pixels, each [B or a divisor of B]:
        num_frames, height, width, ar = height / width, fps (120 for images).
        """
        b = len(x)
        x_BTHWD = self.a2a_to_patches(x, x_mask)
        x_BTSD = self.add_positions(x_BTHWD, self.position_scale(height, width))
        rotate = self.time_rotation(x_BTSD.shape[1], x.device)
        t_BD, t0_BD = self.embed_times(timestep, x_mask)
        size_BD = torch.cat(
            [self.csize_embedder.embed(torch.stack([height, width], dim=1), b), self.ar_embedder.embed(ar, b)], dim=1
        )
        speed_BD = self.fl_embedder.embed(num_frames, b) + self.fps_embedder.embed(fps, b)
        still_size_BD = None if t0_BD is None else t0_BD + size_BD
        still_speed_BD = None if t0_BD is None else t0_BD + speed_BD
        modulation = (
            modulation_rows(self.t_block, t_BD + size_BD, 6),
            modulation_rows(self.t_block_temp, t_BD + speed_BD, 3),
            x_mask,
            modulation_rows(self.t_block, still_size_BD, 6),
            modulation_rows(self.t_block_temp, still_speed_BD, 3),
        )
        text = Text(text_context(partial(self.embed_text, y, mask, drop_B), text_cache))

        x_BTSD = self.split_seq(x_BTSD)
        for block in self.blocks:
            x_BTSD = block(x_BTSD, text, rotate, *modulation)
        # Given frames are told their size here and the others are not: wrong, but weights were trained so.
        x_BTSD = self.gather_seq(self.final_layer(x_BTSD, t_BD, x_mask, still_size_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])


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
