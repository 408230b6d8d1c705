"""STDiT of Open-Sora 1.0: attention within a frame, then along time, then to the caption.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
Key names and numbers follow Open-Sora 1.0, so its released weights load strictly.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.layers.embed import sincos_spatial, sincos_temporal, zero_init_
from opensora.models.layers.mlp import DropPath, Mlp
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated_residual
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.text_context import text_context
from opensora.models.stdit.attention import FrameText, SpatialAttention, temporal_attention
from opensora.models.stdit.base import SpaceTimeDenoiser, drop_rates, project_modulation, project_time0
from opensora.registry import MODELS, register_preset


class STDiTBlock(ScaleShiftTable):
    """Spatial attention, temporal attention, cross-attention and MLP on [B, T, S, D]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(6, dim)
        self.attn = SpatialAttention(dim, num_heads)
        self.attn_temp = SelfAttention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x_BTSD: Tensor,
        text: FrameText,
        time_B6D: Tensor,
        position_TD: Tensor | None = None,
        x_mask_BT: Tensor | None = None,
        time0_B6D: Tensor | None = None,
    ) -> Tensor:
        """time0_B6D: the modulation at timestep 0, for frames where `x_mask_BT` is False."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time_B6D, x_mask_BT, time0_B6D)
        x = gated_residual(x_BTSD, gate1, self.drop_path(self.attn(norm_modulate(x_BTSD, shift1, scale1))))
        # The temporal branch has no norm and no modulation; positions enter the attention, not the residual.
        positioned = x if position_TD is None else x + position_TD[:, None]
        temporal_gate = self.modulation(time_B6D)[2]  # of noised frames, for every frame: weights were trained so
        x = gated_residual(x, temporal_gate, self.drop_path(temporal_attention(self.attn_temp, positioned)))
        x = x + text.cross_attend(self.cross_attn, x)
        return gated_residual(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class STDiT(SpaceTimeDenoiser):
    """STDiT of Open-Sora 1.0. Latents of any size but `input_size` raise a ShapeError."""

    def __init__(
        self,
        input_size: Sequence[int],  # latent frames, rows, columns
        in_channels: int = 4,  # of the latents
        patch_size: Sequence[int] = (1, 2, 2),  # latents per token along frames, rows, columns
        hidden_size: int = 1152,
        depth: int = 28,  # blocks
        num_heads: int = 16,
        mlp_ratio: float = 4.0,  # inner width of the MLP / hidden_size
        class_dropout_prob: float = 0.1,  # share of samples that train on the null caption
        pred_sigma: bool = True,  # predict the variance as well
        drop_path: float = 0.0,  # stochastic depth of the last block; draws from torch's global generator
        no_temporal_pos_emb: bool = False,  # accepted as in Open-Sora 1.0 and, as there, without effect
        caption_channels: int = 4096,  # width of the text encoder's states
        model_max_length: int = 120,  # tokens of a caption
        space_scale: float = 1.0,  # divides rows and columns, for weights of another image size
        time_scale: float = 1.0,  # divides frame numbers, for weights of another frame rate
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
        frames, rows, columns = self.grid
        spatial = torch.as_tensor(sincos_spatial(hidden_size, rows, columns, space_scale))
        self.register_buffer("pos_embed", spatial.float()[None])
        temporal = torch.as_tensor(sincos_temporal(hidden_size, frames, time_scale))
        self.register_buffer("pos_embed_temporal", temporal.float()[None])
        self.pos_embed: Tensor
        self.pos_embed_temporal: Tensor

        self.blocks = nn.ModuleList(
            STDiTBlock(hidden_size, num_heads, mlp_ratio, rate) for rate in drop_rates(drop_path, depth)
        )
        self.final_layer = FinalLayer(hidden_size, self.patch_features)
        self.init_weights()

    def init_weights(self) -> None:
        """PixArt's initialization, with zero output of what PixArt lacks: its weights then give PixArt's image model."""
        self.init_pixart_()
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
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
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], at least float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a conditioning frame;
        drop_B bool [B], True = replace the caption by the null caption; clip_cache: keeps the embedded captions,
        and all else that steps do not change, from step to step of sampling.
        """
        x_BTSD = self.embed_patches(x, x_mask).flatten(2, 3) + self.pos_embed
        t_BD, t0_BD = self.t_embedder(timestep), self.embed_time0(timestep, x_mask, clip_cache)
        time_B6D = project_modulation(self.t_block, t_BD, 6)
        time0_B6D = project_time0(self.t_block, t0_BD, 6, clip_cache)
        text = FrameText(text_context(partial(self.embed_text, y, mask, drop_B), clip_cache))

        x_BTSD = self.split_seq(x_BTSD)
        for i, block in enumerate(self.blocks):
            position_TD = self.pos_embed_temporal[0] if i == 0 else None
            x_BTSD = block(x_BTSD, text, time_B6D, position_TD, x_mask, time0_B6D)
        x_BTSD = self.gather_seq(self.final_layer(x_BTSD, t_BD, x_mask, t0_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])


register_preset(MODELS, "STDiT-XL/2", STDiT, depth=28, hidden_size=1152, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-L/2", STDiT, depth=24, hidden_size=1024, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-B/2", STDiT, depth=12, hidden_size=768, num_heads=12, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-S/2", STDiT, depth=12, hidden_size=384, num_heads=6, patch_size=(1, 2, 2))
