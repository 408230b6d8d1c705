"""STDiT of Open-Sora 1.0: attention within a frame, then along time, then to the caption.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
Key names and numbers follow Open-Sora 1.0, so its released weights load strictly.
"""

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import DropPath, GELUTanh, Mlp
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.embed import shut_linear, spatial_table, temporal_table
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.text_context import TextCache, text_context
from opensora.models.stdit.attention import SpatialAttention, Text, along_time
from opensora.models.stdit.base import SpaceTimeDenoiser, drop_rates, modulation_rows
from opensora.registry import MODELS, register_preset


class STDiTBlock(ScaleShiftTable):
    """Spatial attention, temporal attention, cross-attention and perceptron on [B, T, S, D]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(6, dim)
        self.attn = SpatialAttention(dim, num_heads)
        self.attn_temp = SelfAttention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        x_BTSD: Tensor,
        text: Text,
        time_B6D: Tensor,
        position_TD: Tensor | None = None,
        x_mask_BT: Tensor | None = None,
        still_B6D: Tensor | None = None,
    ) -> Tensor:
        """`still_B6D` is the modulation at timestep 0, for frames where `x_mask_BT` is False."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.vectors(time_B6D, x_mask_BT, still_B6D)
        x = gated(x_BTSD, gate1, self.drop_path(self.attn(norm_modulate(x_BTSD, shift1, scale1))))
        # The temporal branch has no norm and no modulation; positions enter the attention, not the residual.
        along = x if position_TD is None else x + position_TD[:, None]
        temporal_gate = self.vectors(time_B6D)[2]  # of the active frames, for every frame: weights were trained so
        x = gated(x, temporal_gate, self.drop_path(along_time(self.attn_temp, along)))
        x = x + text.read(self.cross_attn, x)
        return gated(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class STDiT(SpaceTimeDenoiser):
    """The denoiser. Latents of any other size than `input_size` are refused.

    input_size: latent frames, rows, columns. space_scale, time_scale: divide positions, so that a model trained at
    another size or frame rate keeps its meaning of distance. no_temporal_pos_emb: accepted as in Open-Sora 1.0 and,
    as there, without effect. drop_path draws from torch's global generator.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        in_channels: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        pred_sigma: bool = True,
        drop_path: float = 0.0,
        no_temporal_pos_emb: bool = False,
        caption_channels: int = 4096,
        model_max_length: int = 120,
        space_scale: float = 1.0,
        time_scale: float = 1.0,
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
        frames, rows, columns = self.grid
        spatial = torch.as_tensor(spatial_table(hidden_size, rows, columns, space_scale))
        self.register_buffer("pos_embed", spatial.float()[None])
        temporal = torch.as_tensor(temporal_table(hidden_size, frames, time_scale))
        self.register_buffer("pos_embed_temporal", temporal.float()[None])
        self.pos_embed: Tensor
        self.pos_embed_temporal: Tensor

        self.blocks = nn.ModuleList(
            STDiTBlock(hidden_size, num_heads, mlp_ratio, rate) for rate in drop_rates(drop_path, depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.initialise()

    def initialise(self) -> None:
        """Open-Sora 1.0's start: new branches shut, so that PixArt weights give PixArt's image model."""
        self.start_small()
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
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
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a frame given as condition;
        drop_B bool [B], True = replace the caption by the null caption; text_cache: keeps the embedded captions
        from step to step of sampling.
        """
        x_BTSD = self.a2a_to_patches(x, x_mask).flatten(2, 3) + self.pos_embed
        t_BD, t0_BD = self.embed_times(timestep, x_mask)
        time_B6D, still_B6D = (modulation_rows(self.t_block, each, 6) for each in (t_BD, t0_BD))
        text = Text(text_context(partial(self.embed_text, y, mask, drop_B), text_cache))

        x_BTSD = self.split_seq(x_BTSD)
        for i, block in enumerate(self.blocks):
            position_TD = self.pos_embed_temporal[0] if i == 0 else None
            x_BTSD = block(x_BTSD, text, time_B6D, position_TD, x_mask, still_B6D)
        x_BTSD = self.gather_seq(self.final_layer(x_BTSD, t_BD, x_mask, t0_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])


register_preset(MODELS, "STDiT-XL/2", STDiT, depth=28, hidden_size=1152, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-L/2", STDiT, depth=24, hidden_size=1024, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-B/2", STDiT, depth=12, hidden_size=768, num_heads=12, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-S/2", STDiT, depth=12, hidden_size=384, num_heads=6, patch_size=(1, 2, 2))
