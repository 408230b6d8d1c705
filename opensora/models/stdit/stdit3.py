"""STDiT3 of Open-Sora 1.2 and 1.3: spatial and temporal blocks take turns, each with its own cross-attention and MLP.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
Key names and numbers follow Open-Sora, so its released weights load strictly. Timesteps stay float32 when the model is
bfloat16, as in 1.3; 1.2 rounded them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import SizeEmbedder, text_mask
from opensora.models.layers.mlp import DropPath, Mlp
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated_residual
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.patch import PatchEmbed3D
from opensora.models.layers.rope import RotaryEmbedding
from opensora.models.layers.text_context import text_context
from opensora.models.shape_checks import ShapeError, exact_div
from opensora.models.stdit.attention import (
    FrameIndices,
    FrameText,
    Rotate,
    SpatialAttention,
    per_sample_frames,
    temporal_attention,
)
from opensora.models.stdit.base import AnySizeDenoiser, drop_rates, project_modulation, project_time0
from opensora.models.stdit.windows import WindowAttention, Windows, rotation_3d, window_size
from opensora.registry import MODELS, register_preset


class STDiT3Block(ScaleShiftTable):
    """Attention of one kind, cross-attention and MLP on [B, T, S, D]."""

    def __init__(self, attention: SelfAttention, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(6, dim)
        self.attn = attention
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def attend(self, x_BTSD: Tensor, positions: Rotate | Windows | None) -> Tensor:
        """positions: the rotation of queries and keys, or the windows to attend within."""
        return self.attn(x_BTSD, positions)

    def forward(
        self,
        x_BTSD: Tensor,
        text: FrameText,
        positions: Rotate | Windows | None,
        time_B6D: Tensor,
        x_mask_BT: Tensor | None = None,
        time0_B6D: Tensor | None = None,
    ) -> Tensor:
        """time0_B6D: the modulation at timestep 0, for frames where `x_mask_BT` is False."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_B6D, x_mask_BT, time0_B6D)
        x = gated_residual(x_BTSD, gate1, self.drop_path(self.attend(norm_modulate(x_BTSD, shift1, scale1), positions)))
        x = x + text.cross_attend(self.cross_attn, x)
        return gated_residual(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


class TemporalBlock(STDiT3Block):
    """STDiT3Block with attention along time at each patch position."""

    def attend(self, x_BTSD: Tensor, positions: Rotate | Windows | None) -> Tensor:
        assert not isinstance(positions, Windows)
        return temporal_attention(self.attn, x_BTSD, positions)


@MODELS.register_module()
class STDiT3(AnySizeDenoiser):
    """STDiT3 of Open-Sora 1.2 and 1.3. Latents that patches do not divide are padded, and the output is cropped."""

    size_conditions = ("height", "width", "fps")

    def __init__(
        self,
        input_size: Sequence[int | None] = (None, None, None),  # latent size the run is planned for; others work too
        in_channels: int = 4,  # of the latents
        patch_size: Sequence[int] = (1, 2, 2),  # latents per token along frames, rows, columns
        hidden_size: int = 1152,
        depth: int = 28,  # pairs of a spatial and a temporal block
        num_heads: int = 16,
        mlp_ratio: float = 4.0,  # inner width of the MLP / hidden_size
        class_dropout_prob: float = 0.1,  # share of samples that train on the null caption
        pred_sigma: bool = True,  # predict the variance as well
        drop_path: float = 0.0,  # stochastic depth of the last block; draws from torch's global generator
        caption_channels: int = 4096,  # width of the text encoder's states
        model_max_length: int = 300,  # tokens of a caption
        qk_norm: bool = True,  # RMS norm of queries and keys
        input_sq_size: int = 512,  # pixels: side of the square whose patches are one position apart
        skip_y_embedder: bool = False,  # captions come embedded and packed, [1, sum of lengths, D]; mask = the lengths
        freeze_y_embedder: bool = False,  # do not train the caption embedder: 1.2 took it over from PixArt
        # Open-Sora 1.3
        kernel_size: Sequence[int] | None = None,  # temporal blocks attend in windows (rows, columns, frames); -1 = all
        use_spatial_rope: bool = False,  # row and column rotate queries and keys of spatial blocks; needs kernel_size
        skip_temporal: bool = False,  # spatial blocks only
        conditioned: bool = False,  # embed conditioning latents, for image or video to video
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
        self.skip_y_embedder, self.conditioned = skip_y_embedder, conditioned
        self.kernel_size = None if kernel_size is None else window_size("STDiT3 kernel_size", kernel_size)
        self.use_spatial_rope = use_spatial_rope
        if use_spatial_rope and kernel_size is None:
            raise ShapeError(
                "STDiT3: use_spatial_rope without kernel_size; the rotation belongs to windows, so set both "
                "(released: kernel_size=(8, 8, -1)) or neither"
            )
        head = exact_div("STDiT3: hidden_size over num_heads", hidden_size, num_heads)
        if kernel_size is not None:
            head = exact_div("STDiT3: width of a head over frame, row and column", head, 3)
        self.rope = RotaryEmbedding(head)
        self.fps_embedder = SizeEmbedder(hidden_size)
        if conditioned:
            self.x_embedder_cond = PatchEmbed3D(self.patch_size, in_channels, hidden_size)
            self.x_embedder_cond_mask = PatchEmbed3D(self.patch_size, in_channels, hidden_size)

        def block(kind: type[STDiT3Block], attention: type[SelfAttention], rate: float) -> STDiT3Block:
            return kind(attention(hidden_size, num_heads, qk_norm=qk_norm), hidden_size, num_heads, mlp_ratio, rate)

        spatial, temporal = [], []
        for rate in drop_rates(drop_path, depth):
            spatial.append(block(STDiT3Block, SpatialAttention, rate))
            if not skip_temporal:
                windowed = self.kernel_size is not None
                temporal.append(
                    block(STDiT3Block, WindowAttention, rate) if windowed else block(TemporalBlock, SelfAttention, rate)
                )
        self.spatial_blocks = nn.ModuleList(spatial)
        self.temporal_blocks = nn.ModuleList(temporal)
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.init_weights()
        if freeze_y_embedder:
            self.y_embedder.requires_grad_(False)

    def init_weights(self) -> None:
        """Open-Sora 1.2's initialization: temporal blocks, frame rate and conditioning latents add nothing at first."""
        self.xavier_init_()
        self.fps_embedder.zero_init_output_()
        for block in self.temporal_blocks:
            assert isinstance(block, STDiT3Block)
            for linear in (block.attn.proj, block.cross_attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
        if self.conditioned:
            for parameter in [*self.x_embedder_cond.parameters(), *self.x_embedder_cond_mask.parameters()]:
                nn.init.zeros_(parameter)

    def checkpoint_blocks(self) -> list[nn.Module]:
        return [*self.spatial_blocks, *self.temporal_blocks]

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As SpaceTimeDenoiser's; with skip_y_embedder y is [1, sum of lengths, D] and mask the lengths [B]."""
        if not self.skip_y_embedder:
            return super().embed_text(y, mask, drop_B)
        if mask is None or drop_B is not None:
            raise ShapeError(
                "STDiT3: with skip_y_embedder captions come embedded and packed; give their lengths as mask, and no drop_B"
            )
        return _unpacked(y.to(self.dtype), torch.as_tensor(mask, device=y.device))

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
        height: Tensor,
        width: Tensor,
        fps: Tensor,
        cond: Tensor | None = None,
        cond_mask: Tensor | None = None,
        mask_index: FrameIndices | None = None,
        y_null: Tensor | None = None,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a conditioning frame;
        drop_B bool [B], True = replace the caption by the null caption; clip_cache: keeps the embedded captions,
        and all else that steps do not change, from step to step of sampling. The clip in pixels, each [B or a divisor of B]:
        height, width, fps (120 for images).
        Of a conditioned model: cond, cond_mask shaped as x: conditioning latents, and 1 where they are; mask_index: their
        frames, which attend to the caption y_null (shaped as y) instead: one list for all, or one per sample; None = no
        conditioning frames.
        """
        x_BTHWD = self.embed_patches(x, x_mask)
        grid = (x_BTHWD.shape[1], x_BTHWD.shape[2], x_BTHWD.shape[3])
        scale = keep(clip_cache, "scale", lambda: self.position_scale(height, width))
        position_SD = keep(clip_cache, "positions", lambda: self.position_table(grid, scale))
        x_BTSD = x_BTHWD.flatten(2, 3) + position_SD
        fps_BD = keep(clip_cache, "fps", lambda: self.fps_embedder.embed(fps, len(x)))
        t_BD, t0_BD = self.t_embedder(timestep) + fps_BD, self.embed_time0(timestep, x_mask, clip_cache)
        t0_BD = None if t0_BD is None else t0_BD + fps_BD
        time_B6D = project_modulation(self.t_block, t_BD, 6)
        time0_B6D = project_time0(self.t_block, t0_BD, 6, clip_cache)
        text = FrameText(text_context(partial(self.embed_text, y, mask, drop_B), clip_cache))
        if mask_index is not None:
            conditioning = partial(self._embed_conditioning, cond, cond_mask, x.shape)
            x_BTSD = x_BTSD + keep(clip_cache, "conditioning frames", conditioning)
            with_null = partial(self._with_null, text, mask_index, y_null, mask, grid[0], clip_cache)
            text = keep(clip_cache, "text of each frame", with_null)
        space_positions, time_positions = keep(clip_cache, "rotations", lambda: self._positions(len(x), grid, scale))

        x_BTSD = self.split_seq(x_BTSD)
        for i, spatial in enumerate(self.spatial_blocks):
            x_BTSD = spatial(x_BTSD, text, space_positions, time_B6D, x_mask, time0_B6D)
            if i < len(self.temporal_blocks):
                x_BTSD = self.temporal_blocks[i](x_BTSD, text, time_positions, time_B6D, x_mask, time0_B6D)
        x_BTSD = self.gather_seq(self.final_layer(x_BTSD, t_BD, x_mask, t0_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])

    def _positions(
        self, batch: int, grid: tuple[int, int, int], scale: Tensor
    ) -> tuple[Rotate | None, Rotate | Windows]:
        """Of spatial and of temporal blocks."""
        along_time = (
            self.time_rotation(grid[0], scale.device)
            if self.kernel_size is None
            else Windows.of_grid(batch, grid, self.kernel_size, self.rope, scale)
        )
        return rotation_3d(self.rope, (1, *grid[1:]), scale) if self.use_spatial_rope else None, along_time

    def _embed_conditioning(self, cond: Tensor | None, cond_mask: Tensor | None, shape: torch.Size) -> Tensor:
        """Embedded conditioning latents plus their mask, [B, T, S, D]. Raises ShapeError."""
        if not self.conditioned:
            raise ShapeError(
                "STDiT3: found mask_index; this model has no embedders for conditioning latents; build it with "
                "conditioned=True, or leave mask_index out"
            )
        if cond is None or cond_mask is None or cond.shape != shape or cond_mask.shape != shape:
            shapes = [None if each is None else list(each.shape) for each in (cond, cond_mask)]
            raise ShapeError(
                f"STDiT3: cond and cond_mask of {shapes[0]} and {shapes[1]}; mask_index needs both in the shape of the "
                f"latents, {list(shape)}"
            )
        embedded = self.x_embedder_cond(cond.to(self.dtype)) + self.x_embedder_cond_mask(cond_mask.to(self.dtype))
        return embedded.flatten(2, 3)

    def _with_null(
        self,
        text: FrameText,
        mask_index: FrameIndices,
        y_null: Tensor | None,
        mask: Tensor | None,
        frames: int,
        clip_cache: ClipCache | None,
    ) -> FrameText:
        if not any(per_sample_frames(mask_index)):
            return text
        if y_null is None:
            raise ShapeError("STDiT3: mask_index without y_null; give the caption that conditioning frames attend to")
        null = text_context(partial(self.embed_text, y_null, mask), clip_cache, "null")
        return text.with_null(null, frames, mask_index)


def _unpacked(y_1ND: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Captions concatenated along tokens -> [B, L, D] and bool [B, L]."""
    if y_1ND.ndim != 3 or len(y_1ND) != 1 or int(lengths_B.sum()) != y_1ND.shape[1]:
        raise ShapeError(
            f"packed captions: shape {list(y_1ND.shape)} for lengths {lengths_B.tolist()}; "
            "[1, sum of the lengths, width] is needed"
        )
    longest = int(lengths_B.max())
    counts_BL = torch.arange(longest, device=y_1ND.device) < lengths_B[:, None]
    y_BLD = y_1ND.new_zeros(len(lengths_B), longest, y_1ND.shape[2])
    y_BLD[counts_BL] = y_1ND[0]
    return y_BLD, text_mask(counts_BL, len(lengths_B), longest)


_PATCH: dict[str, Any] = {"depth": 28, "patch_size": (1, 2, 2), "qk_norm": True, "model_max_length": 300}
register_preset(MODELS, "STDiT3-XL/2", STDiT3, **_PATCH, hidden_size=1152, num_heads=16)
register_preset(MODELS, "STDiT3-3B/2", STDiT3, **_PATCH, hidden_size=1872, num_heads=26)
register_preset(
    MODELS,
    "STDiT3-XL/2-v1.3",
    STDiT3,
    **_PATCH,
    hidden_size=1152,
    num_heads=16,
    in_channels=16,
    kernel_size=(8, 8, -1),
    use_spatial_rope=True,
    conditioned=True,
)
