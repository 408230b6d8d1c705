"""DiT as in Open-Sora 1.0: every block computes its modulation from timestep and class, or timestep and pooled caption.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid), S = H*W patches
of a frame, N tokens, D width. Tokens travel as [B, 1, N, D].
Source: Peebles & Xie 2022, arXiv:2212.09748. Key names and numbers follow Open-Sora 1.0, so its weights load strictly.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.attention import SelfAttention
from opensora.models.layers.clip_cache import ClipCache
from opensora.models.layers.embed import (
    CaptionEmbedder,
    LabelEmbedder,
    TimestepEmbedder,
    check_probability,
    sincos_spatial,
    sincos_temporal,
    zero_init_,
)
from opensora.models.layers.mlp import Mlp
from opensora.models.layers.modulation import AdaFinalLayer, gated_residual
from opensora.models.layers.norm import norm_modulate
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import text_context
from opensora.models.patch_denoiser import PatchDenoiser
from opensora.models.shape_checks import ShapeError
from opensora.registry import MODELS, register_preset


class DiTBlock(nn.Module):
    """Self-attention and MLP on [B, T, S, D], shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, dim: int, mlp_ratio: float, attention: SelfAttention):
        super().__init__()
        self.attn = attention
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x_BTSD: Tensor, c_BD: Tensor) -> Tensor:
        modulation = self.adaLN_modulation(c_BD)[:, None, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        # The norm is computed in float32 everywhere: torch widens narrower input inside it.
        x = gated_residual(x_BTSD, gate1, self.attn(norm_modulate(x_BTSD, shift1, scale1)))
        return gated_residual(x, gate2, self.mlp(norm_modulate(x, shift2, scale2)))


@MODELS.register_module()
class DiT(PatchDenoiser):
    """DiT with attention over the tokens of all frames jointly. Raises ConfigError for another condition or length."""

    def __init__(
        self,
        input_size: Sequence[int] = (16, 32, 32),  # latent frames, rows, columns; no other size is taken
        in_channels: int = 4,  # of the latents
        patch_size: Sequence[int] = (1, 2, 2),  # latents per token along frames, rows, columns
        hidden_size: int = 1152,
        depth: int = 28,  # blocks
        num_heads: int = 16,
        mlp_ratio: float = 4.0,  # inner width of the MLP / hidden_size
        class_dropout_prob: float = 0.1,  # share of samples that train without their condition
        learn_sigma: bool = True,  # predict the variance as well
        condition: str = "text",  # a pooled caption [B, 1, 1, C]; or "label_K": K classes [B], with K itself as null class
        no_temporal_pos_emb: bool = False,  # frames get no position
        caption_channels: int = 512,  # width of the pooled caption
        model_max_length: int = 1,  # only 1 is allowed: text encoders of more tokens are then refused
    ):
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            predicts_variance=learn_sigma,
        )
        self.learn_sigma, self.no_temporal_pos_emb = learn_sigma, no_temporal_pos_emb
        self.depth, self.num_heads = depth, num_heads
        self.condition, self.num_classes = condition, parse_condition(condition)
        self.class_dropout_prob = check_probability(class_dropout_prob)
        self.caption_channels, self.model_max_length = caption_channels, check_one_token(model_max_length)

        frames, rows, columns = self.grid
        spatial = torch.as_tensor(sincos_spatial(hidden_size, rows, columns))
        self.register_buffer("pos_embed_spatial", spatial.float()[None])
        temporal = torch.as_tensor(sincos_temporal(hidden_size, frames))
        self.register_buffer("pos_embed_temporal", temporal.float()[None])
        self.pos_embed_spatial: Tensor
        self.pos_embed_temporal: Tensor

        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder: CaptionEmbedder | LabelEmbedder
        if self.num_classes is None:
            self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, token_num=1)
        else:
            self.y_embedder = LabelEmbedder(self.num_classes, hidden_size, class_dropout_prob)
        self.split_seq = Seam("split", dim=2)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, mlp_ratio, self.attention(i)) for i in range(depth))
        self.final_layer = AdaFinalLayer(hidden_size, self.patch_features)
        self.gather_seq = Seam("gather", dim=2)
        self.init_weights()

    def attention(self, block: int) -> SelfAttention:
        """The attention of block number `block`."""
        return SelfAttention(self.hidden_size, self.num_heads, crosses_split=True)

    def init_weights(self) -> None:
        """adaLN-Zero: each block starts as the identity, the output as zero."""
        self.xavier_init_()
        self.t_embedder.init_weights()
        self.y_embedder.init_weights()
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            zero_init_(block.adaLN_modulation[1])
        zero_init_(self.final_layer.adaLN_modulation[1])
        zero_init_(self.final_layer.linear)

    def null_text(self, n: int) -> Tensor:
        """The null caption [n, 1, 1, C], or null labels [n]."""
        return self.y_embedder.null(n)

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The condition [B, 1, D], which is added to the timestep embedding; no mask, since its one token always counts."""
        name = self.name
        if self.num_classes is not None:
            if y.ndim != 1 or y.is_floating_point():
                raise ShapeError(
                    f"{name}: y is {y.dtype} of shape {list(y.shape)}; condition {self.condition!r} needs class numbers "
                    "[B], such as the text encoder 'classes' gives"
                )
            return self.y_embedder(y, drop_B)[:, None], None
        if tuple(y.shape[1:]) != (1, 1, self.caption_channels):
            raise ShapeError(
                f"{name}: y of shape {list(y.shape)}; condition 'text' needs one token for a caption, [B, 1, 1, "
                f"{self.caption_channels}], such as the text encoder 'clip' gives"
            )
        return self.y_embedder(y.to(self.dtype), drop_B).squeeze(1), None

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

        x [B, C, T, H, W]; timestep [B], fractions allowed; y as `condition` defines it; mask: ignored, since one token
        always counts; x_mask: None, or ShapeError; drop_B bool [B], True = replace the condition by "none";
        clip_cache: keeps the embedded condition from step to step of sampling.
        """
        x_BTSD = self.embed_patches(x, x_mask).flatten(2, 3) + self.pos_embed_spatial
        text = text_context(partial(self.embed_text, y, mask, drop_B), clip_cache)
        c_BD = self.t_embedder(timestep) + text.y_BLD.squeeze(1)
        x_BTSD = self.gather_seq(self.final_layer(self.run_blocks(x_BTSD, c_BD), c_BD))
        return self.to_latents(x_BTSD.flatten(1, 2), x.shape[2:])

    def run_blocks(self, x_BTSD: Tensor, c_BD: Tensor) -> Tensor:
        """Tokens after all blocks: [B, T, S, D], or [B, 1, T*S, D] with all frames joined."""
        if not self.no_temporal_pos_emb:
            x_BTSD = x_BTSD + self.pos_embed_temporal[:, :, None]
        x_B1ND = self.split_seq(x_BTSD.flatten(1, 2).unsqueeze(1))
        for block in self.blocks:
            x_B1ND = block(x_B1ND, c_BD)
        return x_B1ND


def parse_condition(condition: str) -> int | None:
    """K of "label_K", or None for "text". Raises ConfigError."""
    if condition == "text":
        return None
    label = re.fullmatch(r"label_([1-9]\d*)", condition)
    if label is None:
        raise ConfigError(
            f"model.condition: {condition!r}; allowed: 'text', or 'label_K' for K classes, such as 'label_101'; correct it"
        )
    return int(label[1])


def check_one_token(model_max_length: int) -> int:
    """1. Raises ConfigError for anything else."""
    if model_max_length != 1:
        raise ConfigError(
            f"model.model_max_length: {model_max_length} tokens; this model is conditioned on one, the pooled caption; "
            "use the text encoder 'clip', or a model that attends to captions, such as PixArt"
        )
    return 1


_XL2: dict[str, Any] = {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": (1, 2, 2)}
_B2: dict[str, Any] = {"depth": 12, "hidden_size": 768, "num_heads": 12, "patch_size": (1, 2, 2)}
register_preset(MODELS, "DiT-XL/2", DiT, **_XL2)
register_preset(MODELS, "DiT-B/2", DiT, **_B2)
