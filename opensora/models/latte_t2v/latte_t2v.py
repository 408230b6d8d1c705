"""LatteT2V of Open-Sora-Plan 1.1: spatial and temporal blocks take turns; images may be appended to clips.

Shapes: B batch, C latent channels, T = F + n frames: F of a clip, then n unrelated images; H W latent rows and
columns; after patching S = h * w tokens of a frame; L text tokens, P = B * (1 + n) captions, D width.
Key names and numbers follow Open-Sora-Plan, so its released weights load strictly. Architecture after Latte (Ma et
al. 2024, arXiv:2401.03048, variant 1) with the modulation of PixArt-alpha (arXiv:2310.00426, sec. 2.3).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opensora.interfaces import Denoiser
from opensora.models.latte_t2v.attention import CompressedSelfAttention
from opensora.models.latte_t2v.blocks import SpatialBlock, TemporalBlock
from opensora.models.latte_t2v.embed import CaptionProjection, PatchEmbed, TimestepModulation
from opensora.models.latte_t2v.positions import (
    Rotate,
    frame_scale,
    patch_scale,
    rotation_1d,
    rotation_2d,
    sincos_frames,
)
from opensora.models.latte_t2v.validation import check_config, check_inputs, clip_and_native_size
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import any_true, text_mask, zero_init_
from opensora.models.layers.modulation import ScaleShiftTable
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.patch import at_least_float32, unpatchify
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import text_context
from opensora.models.shape_checks import ShapeError, exact_div
from opensora.registry import MODELS, register_preset


@MODELS.register_module()
class LatteT2V(ScaleShiftTable, Denoiser):
    """LatteT2V. Frames may have any size that the patch divides, clips up to `video_length` latent frames.

    Either of input_size, and sample_size with video_length, implies the other; with both, positions of input_size are
    stretched to those of sample_size. Raises ConfigError or ShapeError for arguments that do not fit each other.
    """

    fixed_size = False

    def __init__(
        self,
        input_size: Sequence[int] | None = None,  # latent frames, rows, columns of the clips
        sample_size: int | Sequence[int] | None = None,  # latent rows and columns that positions are scaled for
        video_length: int | None = None,  # latent frames that positions are scaled for
        in_channels: int = 4,  # of the latents
        out_channels: int | None = None,  # None = noise and its variance for every channel of the latents
        patch_size: int = 2,
        num_layers: int = 28,  # pairs of a spatial and a temporal block
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        attention_bias: bool = True,
        norm_eps: float = 1e-6,
        caption_channels: int = 4096,  # width of the text encoder's states
        cross_attention_dim: int | None = None,  # the model's width, or None
        model_max_length: int = 300,  # tokens of a caption
        interpolation_scale_1d: float | None = None,  # divides frame numbers; None = by video_length, 1 up to 31 frames
        use_rope: bool = False,  # rotate queries and keys; the added tables stay
        compress_kv_factor: int = 1,  # in the second half of the layers, neighbors per key and value; not with use_rope
        # These have one value in every release; others are refused. attention_mode has no effect.
        patch_size_t: int = 1,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        activation_fn: str = "gelu-approximate",
        attention_type: str = "default",
        attention_mode: str = "math",
        num_embeds_ada_norm: int = 1000,
        num_vector_embeds: int | None = None,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        rope_scaling_type: str = "linear",
    ):
        check_config({key: value for key, value in locals().items() if key not in ("self", "__class__")})
        dim = num_attention_heads * attention_head_dim
        super().__init__(2, dim)
        self.input_size, native = clip_and_native_size(input_size, sample_size, video_length)
        self.patch_size = (patch_size_t, patch_size, patch_size)
        self.in_channels, self.out_channels = in_channels, out_channels or 2 * in_channels
        self.model_max_length, self.caption_channels = model_max_length, caption_channels
        self.hidden_size, self.num_heads, self.head_dim = dim, num_attention_heads, attention_head_dim
        self.use_rope, self.compress_kv_factor = use_rope, compress_kv_factor
        self.video_length = native[0]
        self.frame_scale: float = interpolation_scale_1d or frame_scale(native[0])
        self.patch_scale = patch_scale(native[1])

        rows, columns = (exact_div("LatteT2V: input_size over patch_size", n, patch_size) for n in self.input_size[1:])
        base = native[1] // patch_size  # the height is the measure for both axes, as in the release
        self.pos_embed = PatchEmbed(patch_size, in_channels, dim, (rows, columns), base, self.patch_scale)
        table = torch.as_tensor(sincos_frames(dim, self.video_length, self.frame_scale)).float()
        self.register_buffer("temp_pos_embed", table[None], persistent=False)
        self.temp_pos_embed: Tensor
        self.adaln_single = TimestepModulation(dim)
        self.caption_projection = CaptionProjection(caption_channels, dim)
        self.factors = [1 if i < num_layers // 2 else compress_kv_factor for i in range(num_layers)]
        sizes = (dim, num_attention_heads, attention_bias)
        self.split_seq = Seam("split", dim=2)
        self.mask_to_frames = Seam("switch", dim=2, swap_dim=1)
        self.transformer_blocks = nn.ModuleList(SpatialBlock(*sizes, factor, norm_eps) for factor in self.factors)
        self.temporal_transformer_blocks = nn.ModuleList(
            TemporalBlock(*sizes, factor, norm_eps) for factor in self.factors
        )
        self.gather_seq = Seam("gather", dim=2)
        self.proj_out = nn.Linear(dim, patch_size * patch_size * self.out_channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Cross-attention and temporal blocks start with zero output: the model then begins as PixArt's image model."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, CompressedSelfAttention):
                module.init_weights()
        nn.init.xavier_uniform_(self.pos_embed.proj.weight.view(self.hidden_size, -1))
        self.adaln_single.init_weights()
        self.caption_projection.init_weights()
        for block in self.transformer_blocks:
            assert isinstance(block, SpatialBlock)
            zero_init_(block.attn2.to_out[0])
        for block in self.temporal_transformer_blocks:
            assert isinstance(block, TemporalBlock)
            zero_init_(block.attn1.to_out[0])
            zero_init_(block.ff.net[2])
        zero_init_(self.proj_out)

    def null_text(self, n: int) -> None:
        """None: Open-Sora-Plan samples with the encoded empty prompt as null caption."""

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedded captions [P, L, D] and mask, bool [P, L]; a clip's caption first, then those of its images.

        Raises ShapeError when drop_B drops a caption.
        """
        if any_true(drop_B):
            raise ShapeError(
                "LatteT2V: drop_B: found captions to drop; this model has no null caption and trains without dropping;"
                " encode an empty prompt in their place"
            )
        y_PLC = y.to(self.proj_out.weight.dtype).flatten(0, 1)
        rows = None
        if mask is not None:
            rows = mask.reshape(-1, mask.shape[-1])
            if y.shape[1] > 1 and len(rows) != len(y_PLC):
                raise ShapeError(
                    f"LatteT2V: mask {list(mask.shape)} for captions {list(y.shape[:3])}; with images after the clips"
                    " every caption has its own row; give it the shape of the captions"
                )
        return self.caption_projection(y_PLC), text_mask(rows, len(y_PLC), y_PLC.shape[1])

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [*self.transformer_blocks, *self.temporal_transformer_blocks]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        drop_B: Tensor | None = None,
        use_image_num: int = 0,
        attention_mask: Tensor | None = None,
        enable_temporal_attentions: bool | None = None,
        clip_cache: ClipCache | None = None,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1 + n, L, C]; mask [B or a divisor of B, L],
        [b, 1, 1, L] or [B, 1 + n, L], 1 = token counts; x_mask must be None, and drop_B None or all False.
        use_image_num: n; the last n frames are images with captions of their own and skip the temporal blocks.
        attention_mask [B, T, H, W]: 0 = padding, which no patch of the frame attends to.
        enable_temporal_attentions: None = for clips of two frames and more; images skip temporal blocks in sampling, as
        they do in training.
        clip_cache: keeps the embedded captions, and all else that steps do not change, from step to step of sampling.
        """
        frames = x.shape[2] - use_image_num
        use_temporal = frames > 1 if enable_temporal_attentions is None else enable_temporal_attentions
        check_inputs(
            x,
            y,
            channels=self.in_channels,
            images=use_image_num,
            longest=self.video_length if use_temporal else None,
            attention_mask=attention_mask,
            x_mask=x_mask,
        )
        grid = self.pos_embed.grid_of(x)
        e_BD, time_B6D = self.adaln_single(timestep)
        text = text_context(partial(self.embed_text, y, mask, drop_B), clip_cache)
        within, along = keep(clip_cache, "rotations", lambda: self._rotations(grid, frames, x.device))
        x_BTSD = self.split_seq(self.pos_embed(x.to(self.proj_out.weight.dtype), clip_cache))
        masks = self._patch_masks(attention_mask, grid)

        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks, self.factors, strict=True)
        for i, (spatial, temporal, factor) in enumerate(blocks):
            x_BTSD = spatial(x_BTSD, text, time_B6D, grid, use_image_num, masks.get(factor), within)
            if not use_temporal:
                continue
            clip, images = x_BTSD.split([frames, use_image_num], dim=1)
            if i == 0:
                # Always. The original leaves it out in joint training without activation checkpointing, but no release
                # was trained or is sampled that way.
                clip = clip + self.temp_pos_embed[:, :frames, None]
            clip = temporal(clip, time_B6D, along)
            x_BTSD = torch.cat([clip, images], dim=1) if use_image_num else clip
        shift, scale = self.modulation(e_BD[:, None])
        x_BTSD = self.gather_seq(self.proj_out(norm_modulate(x_BTSD, shift, scale)))
        return at_least_float32(unpatchify(x_BTSD.unflatten(2, grid), self.patch_size, self.out_channels))

    def _rotations(
        self, grid: tuple[int, int], frames: int, device: torch.device
    ) -> tuple[Rotate, Rotate] | tuple[None, None]:
        """The rotations within a frame and along time."""
        if not self.use_rope:
            return None, None
        rows, columns = grid
        row_S = torch.arange(rows, device=device).repeat_interleave(columns)
        column_S = torch.arange(columns, device=device).repeat(rows)
        return (
            rotation_2d(row_S, column_S, self.head_dim, self.patch_scale),
            rotation_1d(torch.arange(frames, device=device), self.head_dim, self.frame_scale),
        )

    def _patch_masks(self, mask_BTHW: Tensor | None, grid: tuple[int, int]) -> dict[int, Tensor]:
        """Compression factor -> mask of a frame's keys, bool [B * T, 1, 1, keys]; {} without a mask.

        A patch counts when any of its latents does. In a frame of only padding all patches count: the original
        subtracts 10000 from every score there, which leaves the softmax as it is.
        """
        if mask_BTHW is None:
            return {}
        mask_BThw = nn.functional.max_pool2d((mask_BTHW != 0).float(), self.patch_size[1])
        mask_BTS = self.mask_to_frames(self.split_seq(mask_BThw.flatten(2)))
        masks = {}
        for factor in {1, self.compress_kv_factor}:
            keys = nn.functional.max_pool2d(mask_BTS.unflatten(2, grid), factor).flatten(2) > 0
            keys = keys | ~keys.any(dim=2, keepdim=True)
            masks[factor] = keys.flatten(0, 1)[:, None, None]
        return masks


for _name, _heads, _head_dim in (("LatteT2V-XL/122", 16, 72), ("LatteT2V-D64-XL/122", 18, 64)):
    register_preset(
        MODELS, _name, LatteT2V, num_layers=28, num_attention_heads=_heads, attention_head_dim=_head_dim, patch_size=2
    )
