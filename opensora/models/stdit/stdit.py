"""STDiT of Open-Sora 1.0: attention within a frame, then along time, then to the caption.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, N = T*S tokens, L text tokens, D width.
Key names and numbers follow Open-Sora 1.0, so its released weights load strictly.
"""

from collections.abc import Sequence

import torch
from timm.layers import DropPath, GELUTanh, Mlp
from torch import Tensor, nn

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.embed import (
    CaptionEmbedder,
    TimestepEmbedder,
    embed_captions,
    shut_linear,
    small_linear,
    spatial_table,
    temporal_table,
)
from opensora.models.layers.modulation import FinalLayer, ScaleShiftTable, gated, per_frame
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.patch import PatchEmbed3D, unpatchify
from opensora.models.layers.seam import Seam
from opensora.models.shapes import ShapeError, divides, triple
from opensora.registry import MODELS, register_preset


class STDiTBlock(ScaleShiftTable):
    """Spatial attention, temporal attention, cross-attention and perceptron on [B, T, S, D]."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__(6, dim)
        self.attn = SelfAttention(dim, num_heads, spans_split=True)
        self.attn_temp = SelfAttention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=GELUTanh)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        # Between blocks parallel/ keeps the patches cut; only attention within a frame needs them whole.
        self.to_frames = Seam("switch", dim=2, other=1)
        self.to_patches = Seam("switch", dim=1, other=2)

    def forward(
        self,
        x_BTSD: Tensor,
        y_BLD: Tensor,
        time_B6D: Tensor,
        mask_BL: Tensor | None = None,
        position_TD: Tensor | None = None,
        x_mask_BT: Tensor | None = None,
        still_B6D: Tensor | None = None,
    ) -> Tensor:
        """`still_B6D` is the modulation at timestep 0, for frames where `x_mask_BT` is False."""
        b, t, s, dim = x_BTSD.shape
        vectors = self.vectors(time_B6D)
        temporal_gate = vectors[2]  # that of the active frames, for every frame: weights were trained so
        if x_mask_BT is not None and still_B6D is not None:
            pairs = zip(vectors, self.vectors(still_B6D), strict=True)
            vectors = tuple(per_frame(x_mask_BT, active, still) for active, still in pairs)
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors

        within = self.to_patches(self.attn(self.to_frames(norm_modulate(x_BTSD, shift1, scale1))))
        x = gated(x_BTSD, gate1, self.drop_path(within))
        # The temporal branch has no norm and no modulation; positions enter the attention, not the residual.
        along = x if position_TD is None else x + position_TD[:, None]
        x = gated(x, temporal_gate, self.drop_path(self.attn_temp(along.transpose(1, 2)).transpose(1, 2)))
        x = x + self.cross_attn(x.reshape(b, t * s, dim), y_BLD, mask_BL).view(b, t, s, dim)
        return gated(x, gate2, self.drop_path(self.mlp(norm_modulate(x, shift2, scale2))))


@MODELS.register_module()
class STDiT(nn.Module):
    """The denoiser. Latents of any other size than `input_size` are refused.

    input_size: latent frames, rows, columns. space_scale, time_scale: divide positions, so that a model trained at
    another size or frame rate keeps its meaning of distance. no_temporal_pos_emb: accepted as in Open-Sora 1.0 and,
    as there, without effect. drop_path draws from torch's global generator.
    """

    size_conditions = ()  # what forward wants to know of the clips; see models/conditions.py
    fixed_size = True  # only latents of input_size
    takes_x_mask = True  # forward can be told which frames are given

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
        super().__init__()
        self.input_size = triple("STDiT input_size", input_size)
        self.patch_size = triple("STDiT patch_size", patch_size)
        self.grid = tuple(
            divides("STDiT: input_size over patch_size", n, p)
            for n, p in zip(self.input_size, self.patch_size, strict=True)
        )
        self.in_channels = in_channels
        self.pred_sigma = pred_sigma
        self.out_channels = 2 * in_channels if pred_sigma else in_channels
        self.hidden_size, self.depth, self.num_heads = hidden_size, depth, num_heads
        self.class_dropout_prob = class_dropout_prob
        self.model_max_length, self.caption_channels = model_max_length, caption_channels

        frames, rows, columns = self.grid
        spatial = torch.as_tensor(spatial_table(hidden_size, rows, columns, space_scale))
        self.register_buffer("pos_embed", spatial.float()[None])
        temporal = torch.as_tensor(temporal_table(hidden_size, frames, time_scale))
        self.register_buffer("pos_embed_temporal", temporal.float()[None])
        self.pos_embed: Tensor
        self.pos_embed_temporal: Tensor

        self.x_embedder = PatchEmbed3D(self.patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.enter = Seam("split", dim=2)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(STDiTBlock(hidden_size, num_heads, mlp_ratio, rate) for rate in rates)
        self.leave = Seam("gather", dim=2)
        pt, ph, pw = self.patch_size
        self.final_layer = FinalLayer(hidden_size, pt * ph * pw * self.out_channels)
        self.initialise()

    def initialise(self) -> None:
        """Open-Sora 1.0's start: new branches shut, so that PixArt weights give PixArt's image model."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.hidden_size, -1))
        self.t_embedder.initialise()
        small_linear(self.t_block[1])
        self.y_embedder.initialise()
        for block in self.blocks:
            assert isinstance(block, STDiTBlock)
            shut_linear(block.attn_temp.proj)
            shut_linear(block.cross_attn.proj)
        shut_linear(self.final_layer.linear)

    def null_text(self, n: int) -> Tensor:
        """The null caption [n, 1, L, C], in caption space like the text encoder's output."""
        return self.y_embedder.null(n)

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the blocks attend to, [B, L, D] and bool [B, L]: nothing of it depends on latents or timestep."""
        return embed_captions(self.y_embedder, y.to(self.x_embedder.proj.weight.dtype), mask, drop_B)

    def checkpoint_blocks(self) -> list[nn.Module]:
        """The modules whose activations may be recomputed instead of kept."""
        return list(self.blocks)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        drop_B: Tensor | None = None,
    ) -> Tensor:
        """Denoiser output [B, out_channels, T, H, W], always float32.

        x [B, C, T, H, W]; timestep [B], fractions allowed; y [B, 1, L, C]; mask [B or a divisor of B, L] or
        [b, 1, 1, L], 1 = token counts; x_mask bool [B, frames after patching], False = a frame given as condition;
        drop_B bool [B], True = replace the caption by the null caption.
        """
        if tuple(x.shape[1:]) != (self.in_channels, *self.input_size):
            raise ShapeError(
                f"STDiT: latents of {list(x.shape[1:])} (channels, frames, rows, columns); this model was built for "
                f"{[self.in_channels, *self.input_size]}; change input_size or the size of the clips"
            )
        dtype = self.x_embedder.proj.weight.dtype
        x_BTSD = self.x_embedder(x.to(dtype)).flatten(2, 3) + self.pos_embed
        t_BD = self.t_embedder(timestep)
        time_B6D = self.t_block(t_BD).unflatten(1, (6, -1))
        still_BD = still_B6D = None
        if x_mask is not None:
            still_BD = self.t_embedder(torch.zeros_like(timestep))
            still_B6D = self.t_block(still_BD).unflatten(1, (6, -1))
            x_mask = x_mask.bool()
        y_BLD, mask_BL = self.embed_text(y, mask, drop_B)

        x_BTSD = self.enter(x_BTSD)
        for i, block in enumerate(self.blocks):
            position_TD = self.pos_embed_temporal[0] if i == 0 else None
            x_BTSD = block(x_BTSD, y_BLD, time_B6D, mask_BL, position_TD, x_mask, still_B6D)
        x_BTSD = self.leave(self.final_layer(x_BTSD, t_BD, x_mask, still_BD))
        return unpatchify(x_BTSD.unflatten(2, self.grid[1:]), self.patch_size, self.out_channels).float()


register_preset(MODELS, "STDiT-XL/2", STDiT, depth=28, hidden_size=1152, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-L/2", STDiT, depth=24, hidden_size=1024, num_heads=16, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-B/2", STDiT, depth=12, hidden_size=768, num_heads=12, patch_size=(1, 2, 2))
register_preset(MODELS, "STDiT-S/2", STDiT, depth=12, hidden_size=384, num_heads=6, patch_size=(1, 2, 2))
