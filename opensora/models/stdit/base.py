"""Base classes of PixArt and the STDiT family: everything around the blocks.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.layers.clip_cache import ClipCache, keep
from opensora.models.layers.embed import (
    CaptionEmbedder,
    TimestepEmbedder,
    check_probability,
    embed_captions,
    normal_init_,
    sincos_any_size,
)
from opensora.models.layers.rope import RotaryEmbedding, pair_rotation
from opensora.models.layers.seam import Seam
from opensora.models.patch_denoiser import PatchDenoiser


class SpaceTimeDenoiser(PatchDenoiser):
    """Timestep and caption embedders, and seams; subclasses add blocks and the final layer."""

    takes_x_mask = True

    def __init__(
        self,
        *,
        input_size: Sequence[int | None],
        in_channels: int,
        patch_size: Sequence[int],
        hidden_size: int,
        depth: int,
        num_heads: int,
        class_dropout_prob: float,
        pred_sigma: bool,
        caption_channels: int,
        model_max_length: int,
    ):
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            predicts_variance=pred_sigma,
        )
        self.pred_sigma = pred_sigma
        self.depth, self.num_heads = depth, num_heads
        self.class_dropout_prob = check_probability(class_dropout_prob)
        self.model_max_length, self.caption_channels = model_max_length, caption_channels
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.split_seq = Seam("split", dim=2)
        self.gather_seq = Seam("gather", dim=2)

    def init_pixart_(self) -> None:
        """PixArt's initialization of everything around the blocks: Xavier weights, conditioning N(0, 0.02)."""
        self.xavier_init_()
        self.t_embedder.init_weights()
        normal_init_(self.t_block[1])
        self.y_embedder.init_weights()

    def null_text(self, n: int) -> Tensor:
        """The null caption [n, 1, L, C], in caption space like the text encoder's output."""
        return self.y_embedder.null(n)

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embedded captions [B, L, D] and their mask, bool [B, L]; independent of latents and timestep."""
        return embed_captions(self.y_embedder, y.to(self.dtype), mask, drop_B)

    def embed_time0(self, timestep: Tensor, x_mask: Tensor | None, cache: ClipCache | None) -> Tensor | None:
        """The embedding [B, D] of timestep 0, for conditioning frames; None without `x_mask`."""
        if x_mask is None:
            return None
        return keep(cache, "t0", lambda: self.t_embedder(torch.zeros_like(timestep)))


class AnySizeDenoiser(SpaceTimeDenoiser):
    """Computes positions in each call: STDiT2 and STDiT3.

    `rope.freqs` is part of the released weights and sets the rotation; it is not trained.
    """

    fixed_size = False
    pads = True
    input_sq_size: int  # pixels: side of the square whose patches are one position apart
    rope: RotaryEmbedding

    def position_scale(self, height: Tensor, width: Tensor) -> Tensor:
        """sqrt(height * width) / input_sq_size of the first sample, for the whole batch: weights were trained so."""
        return (height[0] * width[0]).float().sqrt() / self.input_sq_size

    def position_table(self, grid: Sequence[int], scale: Tensor) -> Tensor:
        """The sine-cosine table [S, D] of a grid (frames, rows, columns)."""
        return sincos_any_size(self.hidden_size, grid[1], grid[2], scale, self.dtype, scale.device)

    def time_rotation(self, frames: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Rotates queries and keys [..., T, d] by their frame number."""
        return pair_rotation(self.rope.angles(torch.arange(frames, device=device)))


def drop_rates(drop_path: float, depth: int) -> list[float]:
    """Stochastic depth that grows from 0 in the first block (Huang et al. 2016, arXiv:1603.09382, sec. 3)."""
    if not 0 <= drop_path < 1:
        raise ConfigError(f"model.drop_path: {drop_path}; allowed: from 0 to below 1; correct it")
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


def project_modulation(layer: nn.Module, time_BD: Tensor, rows: int) -> Tensor:
    """Modulation vectors [B, rows, D] that `layer` projects from a time embedding."""
    return layer(time_BD).unflatten(1, (rows, -1))


def project_time0(
    layer: nn.Module, time0_BD: Tensor | None, rows: int, cache: ClipCache | None, name: str = "time0"
) -> Tensor | None:
    """The same for timestep 0, which no step changes; None stays None. name: of the vectors in the cache."""
    return None if time0_BD is None else keep(cache, name, lambda: project_modulation(layer, time0_BD, rows))
