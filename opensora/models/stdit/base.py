"""What PixArt and the STDiT family have in common around their blocks.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns (after patching: the token grid),
S = H*W patches of a frame, L text tokens, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.denoiser import Denoiser
from opensora.models.layers.embed import (
    CaptionEmbedder,
    TimestepEmbedder,
    chance,
    dynamic_table,
    embed_captions,
    small_linear,
)
from opensora.models.layers.rope import RotaryEmbedding, pair_rotation
from opensora.models.layers.seam import Seam


class SpaceTimeDenoiser(Denoiser):
    """Timestep and caption embedders, seams and the modulation of given frames; subclasses add blocks and final layer."""

    takes_x_mask = True

    def __init__(
        self,
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
        super().__init__(input_size, in_channels, patch_size, hidden_size, pred_sigma)
        self.pred_sigma = pred_sigma
        self.depth, self.num_heads = depth, num_heads
        self.class_dropout_prob = chance(class_dropout_prob)
        self.model_max_length, self.caption_channels = model_max_length, caption_channels
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedder(caption_channels, hidden_size, model_max_length)
        self.split_seq = Seam("split", dim=2)
        self.gather_seq = Seam("gather", dim=2)

    def start_small(self) -> None:
        """PixArt's start of what surrounds the blocks: spread weights, small conditioning."""
        self.spread_weights()
        self.t_embedder.initialise()
        small_linear(self.t_block[1])
        self.y_embedder.initialise()

    def null_text(self, n: int) -> Tensor:
        """The null caption [n, 1, L, C], in caption space like the text encoder's output."""
        return self.y_embedder.null(n)

    def embed_text(self, y: Tensor, mask: Tensor | None, drop_B: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the blocks attend to, [B, L, D] and bool [B, L]: nothing of it depends on latents or timestep."""
        return embed_captions(self.y_embedder, y.to(self.dtype), mask, drop_B)

    def embed_times(self, timestep: Tensor, x_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, D] of the timestep and, where some frames are given, of timestep 0, which these are told."""
        t_BD = self.t_embedder(timestep)
        return t_BD, None if x_mask is None else self.t_embedder(torch.zeros_like(timestep))


class AnySizeDenoiser(SpaceTimeDenoiser):
    """Positions are computed for each call: STDiT2 and STDiT3.

    `rope.freqs` belongs to the released weights and is what rotates; it is not trained.
    """

    fixed_size = False
    pads = True
    input_sq_size: int  # pixels: the side of the square whose positions are one apart
    rope: RotaryEmbedding

    def position_scale(self, height: Tensor, width: Tensor) -> Tensor:
        """sqrt(height * width) / input_sq_size, of the first sample for the whole batch, as weights were trained."""
        return (height[0] * width[0]).float().sqrt() / self.input_sq_size

    def add_positions(self, x_BTHWD: Tensor, scale: Tensor) -> Tensor:
        """Tokens [B, T, S, D] with the sine table of their frame's grid."""
        rows, columns = x_BTHWD.shape[2:4]
        table = dynamic_table(self.hidden_size, rows, columns, scale, self.dtype, x_BTHWD.device)
        return x_BTHWD.flatten(2, 3) + table

    def time_rotation(self, frames: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Turns queries and keys [..., T, d] by their frame."""
        return pair_rotation(self.rope.angles(torch.arange(frames, device=device)))


def drop_rates(drop_path: float, depth: int) -> list[float]:
    """Stochastic depth that grows from 0 in the first block (Huang et al. 2016, arXiv:1603.09382, sec. 3)."""
    if not 0 <= drop_path < 1:
        raise ConfigError(f"model.drop_path: {drop_path}; allowed: from 0 to below 1; correct it")
    return [drop_path * i / max(depth - 1, 1) for i in range(depth)]


def modulation_rows(layer: nn.Module, time_BD: Tensor | None, rows: int) -> Tensor | None:
    """[B, rows, D] of modulation vectors that a layer gives for a time embedding."""
    return None if time_BD is None else layer(time_BD).unflatten(1, (rows, -1))
