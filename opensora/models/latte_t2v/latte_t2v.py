"""LatteT2V of Open-Sora-Plan 1.1: blocks within a frame and blocks along time take turns; images may ride along.

Shapes: B batch, C latent channels, T = F + n frames: a clip's F, then n images of their own; H W latent rows and
columns; after patching S = h * w tokens of a frame; L text tokens, P = B * (1 + n) captions, D width.
Key names and numbers follow Open-Sora-Plan, so its released weights load strictly. Architecture after Latte (Ma et
al. 2024, arXiv:2401.03048, variant 1) with the modulation of PixArt-alpha (arXiv:2310.00426, sec. 2.3).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opensora.models.latte_t2v.attention import SelfAttention
from opensora.models.latte_t2v.blocks import SpatialBlock, TemporalBlock
from opensora.models.latte_t2v.embed import CaptionProjection, PatchEmbed, TimestepModulation
from opensora.models.latte_t2v.positions import Rotate, frame_scale, frame_table, grid_rotation, patch_scale, rotation
from opensora.models.latte_t2v.validation import check_config, check_inputs, clip_and_native_size
from opensora.models.layers.embed import any_true, shut_linear, text_mask
from opensora.models.layers.modulation import ScaleShiftTable
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.patch import at_least_float32, unpatchify
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextCache, text_context
from opensora.models.shape_checks import ShapeError, exact_div
from opensora.registry import MODELS, register_preset


@MODELS.register_module()
class LatteT2V(ScaleShiftTable):
    """The denoiser. Frames may have any size, clips up to `video_length` latent frames.

    sample_size, video_length: latent rows and columns (or one number for both) and frames that positions are scaled
        for. input_size: latent frames, rows, columns of the clips. Either says the other; with both, frames of
        input_size are stretched to the positions of sample_size.
    out_channels: None = noise and its variance for every channel of the latents.
    interpolation_scale_1d: divides positions along time; None = by video_length, 1 up to 31 latent frames.
    use_rope: rotate queries and keys too; the added tables stay. compress_kv_factor: in the second half of the layers
        so many neighbours become one key and value; not with use_rope.
    cross_attention_dim: the model's width, or None.
    The arguments after these have one value in every release; others are refused. Of attention_mode nothing depends.
    Raises ConfigError or ShapeError for values that do not fit each other.
    """

    size_conditions = ()  # what forward wants to know of the clips; see models/clip_conditioning.py
    fixed_size = False
    fixed_frames = False
    pads = False  # rows and columns must be multiples of the patch
    takes_x_mask = False
    conditioned = False
    class_dropout_prob = 0.0  # captions are never dropped in training

    def __init__(
        self,
        input_size: Sequence[int] | None = None,
        sample_size: int | Sequence[int] | None = None,
        video_length: int | None = None,
        in_channels: int = 4,
        out_channels: int | None = None,
        patch_size: int = 2,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        attention_bias: bool = True,
        norm_eps: float = 1e-6,
        caption_channels: int = 4096,
        cross_attention_dim: int | None = None,
        model_max_length: int = 300,
        interpolation_scale_1d: float | None = None,
        use_rope: bool = False,
        compress_kv_factor: int = 1,
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
        self.hidden_size, self.head_dim = dim, attention_head_dim
        self.use_rope, self.compress_kv_factor = use_rope, compress_kv_factor
        self.video_length = native[0]
        self.frame_scale: float = interpolation_scale_1d or frame_scale(native[0])
        self.patch_scale = patch_scale(native[1])

        rows, columns = (exact_div("LatteT2V: input_size over patch_size", n, patch_size) for n in self.input_size[1:])
        base = native[1] // patch_size  # the height is the measure for both axes, as in the release
        self.pos_embed = PatchEmbed(patch_size, in_channels, dim, (rows, columns), base, self.patch_scale)
        table = torch.as_tensor(frame_table(dim, self.video_length, self.frame_scale)).float()
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
        self.initialise()

    def initialise(self) -> None:
        """Text and time start shut, so that the model begins as PixArt's image model would."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SelfAttention):
                module.initialise()
        nn.init.xavier_uniform_(self.pos_embed.proj.weight.view(self.hidden_size, -1))
        self.adaln_single.initialise()
        self.caption_projection.initialise()
        for block in self.transformer_blocks:
            assert isinstance(block, SpatialBlock)
            shut_linear(block.attn2.to_out[0])
        for block in self.temporal_transformer_blocks:
            assert isinstance(block, TemporalBlock)
            shut_linear(block.attn1.to_out[0])
            shut_linear(block.ff.net[2])
        shut_linear(self.proj_out)

    def null_text(self, n: int) -> None:
        """None: unguided text is the encoded empty prompt, as Open-Sora-Plan samples."""

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the blocks attend to, [P, L, D] and bool [P, L]: nothing of it depends on latents or timestep.

        A clip's caption comes first, those of its images follow. ShapeError when a caption is to be dropped.
        """
        if any_true(drop_B):
            raise ShapeError(
                "LatteT2V: drop_B: captions to drop; this model has no null caption of its own and trains without dropping;"
                " encode an empty prompt in their place"
            )
        y_PLC = y.to(self.proj_out.weight.dtype).flatten(0, 1)
        rows = None
        if mask is not None:
            rows = mask.reshape(-1, mask.shape[-1])
            if y.shape[1] > 1 and len(rows) != len(y_PLC):
                raise ShapeError(
                    f"LatteT2V: mask {list(mask.shape)} for captions {list(y.shape[:3])}; with images beside the clips"
                    " every caption has a row of its own; give it the shape of the captions"
                )
        return self.caption_projection(y_PLC), text_mask(rows, len(y_PLC), y_PLC.shape[1])

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The modules whose activations may be recomputed instead of kept."""
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
        text_cache: TextCache | None = None,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1 + n, L, C]; mask [B or a divisor of B, L],
        [b, 1, 1, L] or [B, 1 + n, L], 1 = token counts; x_mask and drop_B are refused when they ask for anything.
        use_image_num: n, the last so many frames are images with captions of their own; they skip the blocks along time.
        attention_mask [B, T, H, W]: 0 = padding, which no other patch of the frame looks at.
        enable_temporal_attentions: None = for clips of two frames and more; an image is sampled past the blocks along time,
        as images are trained.
        text_cache: keeps the embedded captions from step to step of sampling.
        """
        frames = x.shape[2] - use_image_num
        along_time = frames > 1 if enable_temporal_attentions is None else enable_temporal_attentions
        check_inputs(
            x,
            y,
            channels=self.in_channels,
            images=use_image_num,
            longest=self.video_length if along_time else None,
            attention_mask=attention_mask,
            x_mask=x_mask,
        )
        grid = self.pos_embed.grid_of(x)
        e_BD, time_B6D = self.adaln_single(timestep)
        text = text_context(partial(self.embed_text, y, mask, drop_B), text_cache)
        within, along = self._rotations(grid, frames, x.device) if self.use_rope else (None, None)
        x_BTSD = self.split_seq(self.pos_embed(x.to(self.proj_out.weight.dtype)))
        masks = self._patch_masks(attention_mask, grid)

        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks, self.factors, strict=True)
        for i, (spatial, temporal, factor) in enumerate(blocks):
            x_BTSD = spatial(x_BTSD, text, time_B6D, grid, use_image_num, masks.get(factor), within)
            if not along_time:
                continue
            clip, images = x_BTSD.split([frames, use_image_num], dim=1)
            if i == 0:
                # Always. The original leaves it out in joint training without activation checkpointing, a way in which
                # no release was trained and none is sampled.
                clip = clip + self.temp_pos_embed[:, :frames, None]
            clip = temporal(clip, time_B6D, along)
            x_BTSD = torch.cat([clip, images], dim=1) if use_image_num else clip
        shift, scale = self.vectors(e_BD[:, None])
        x_BTSD = self.gather_seq(self.proj_out(norm_modulate(x_BTSD, shift, scale)))
        return at_least_float32(unpatchify(x_BTSD.unflatten(2, grid), self.patch_size, self.out_channels))

    def _rotations(self, grid: tuple[int, int], frames: int, device: torch.device) -> tuple[Rotate, Rotate]:
        """Within a frame and along time."""
        rows, columns = grid
        row_S = torch.arange(rows, device=device).repeat_interleave(columns)
        column_S = torch.arange(columns, device=device).repeat(rows)
        return (
            grid_rotation(row_S, column_S, self.head_dim, self.patch_scale),
            rotation(torch.arange(frames, device=device), self.head_dim, self.frame_scale),
        )

    def _patch_masks(self, mask_BTHW: Tensor | None, grid: tuple[int, int]) -> dict[int, Tensor]:
        """compress_kv_factor -> which keys of a frame count, bool [B * T, 1, 1, keys]; {} without a mask.

        A patch counts when any of its latents does. In a frame of padding alone all do: the original subtracts 10000
        from every score there, which changes none of them against the others.
        """
        if mask_BTHW is None:
            return {}
        mask_BThw = nn.functional.max_pool2d((mask_BTHW != 0).float(), self.patch_size[1])
        mask_BTS = self.mask_to_frames(self.split_seq(mask_BThw.flatten(2)))
        found = {}
        for factor in {1, self.compress_kv_factor}:
            keys = nn.functional.max_pool2d(mask_BTS.unflatten(2, grid), factor).flatten(2) > 0
            keys = keys | ~keys.any(dim=2, keepdim=True)
            found[factor] = keys.flatten(0, 1)[:, None, None]
        return found


for _name, _heads, _head_dim in (("LatteT2V-XL/122", 16, 72), ("LatteT2V-D64-XL/122", 18, 64)):
    register_preset(
        MODELS, _name, LatteT2V, num_layers=28, num_attention_heads=_heads, attention_head_dim=_head_dim, patch_size=2
    )
