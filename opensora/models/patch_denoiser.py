"""PatchDenoiser: latents to patch tokens and back, with checks of their size.

Shapes: B batch, C latent channels, T H W latent frames/rows/columns, N tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opensora.interfaces import Denoiser
from opensora.models.layers.patch import PatchEmbed3D, at_least_float32, unpatchify
from opensora.models.shape_checks import ShapeError, as_3_tuple, exact_div


class PatchDenoiser(Denoiser):
    """Owns `x_embedder`; subclasses add position tables, conditioning, `blocks` and `final_layer`.

    Without `pads`, sizes that patches do not divide raise a ShapeError. With `pads` they are padded with zeros and the
    output is cropped; `input_size` is then only the size a run is planned for, and may hold None.
    """

    blocks: nn.ModuleList

    def __init__(
        self,
        *,
        input_size: Sequence[int | None],
        in_channels: int,
        patch_size: Sequence[int],
        hidden_size: int,
        predicts_variance: bool,  # two outputs per channel: learned sigma
    ):
        super().__init__()
        name = self.name = type(self).__name__  # kept, since fully_shard renames the class of the object
        self.patch_size = as_3_tuple(f"{name} patch_size", patch_size)
        if self.pads:
            self.input_size = tuple(input_size)
        else:
            self.input_size = as_3_tuple(f"{name} input_size", input_size)
            self.grid = tuple(
                exact_div(f"{name}: input_size over patch_size", n, p)
                for n, p in zip(self.input_size, self.patch_size, strict=True)
            )
        self.in_channels = in_channels
        self.out_channels = 2 * in_channels if predicts_variance else in_channels
        self.hidden_size = hidden_size
        self.x_embedder = PatchEmbed3D(self.patch_size, in_channels, hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that activations are computed in."""
        return self.x_embedder.proj.weight.dtype

    @property
    def patch_features(self) -> int:
        """Outputs of the final layer per patch."""
        pt, ph, pw = self.patch_size
        return pt * ph * pw * self.out_channels

    def checkpoint_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def xavier_init_(self) -> None:
        """Xavier weights and zero biases everywhere; the patch embedding is initialized as a linear layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.hidden_size, -1))

    def embed_patches(self, x_BCTHW: Tensor, x_mask: Tensor | None) -> Tensor:
        """Embedded patches [B, T, H, W, D], where T H W count patches. Raises ShapeError."""
        name = self.name
        if x_mask is not None and not self.takes_x_mask:
            raise ShapeError(f"{name}: found x_mask; this model has no frame masks; leave it out, or use STDiT")
        size = list(x_BCTHW.shape[1:])
        if self.fixed_size and size != [self.in_channels, *self.input_size]:
            raise ShapeError(
                f"{name}: latents of {size} (channels, frames, rows, columns); this model was built for "
                f"{[self.in_channels, *self.input_size]}; change input_size or the size of the clips"
            )
        if x_BCTHW.shape[1] != self.in_channels:
            raise ShapeError(
                f"{name}: latents of {x_BCTHW.shape[1]} channels; this model takes {self.in_channels}; use the "
                "autoencoder it was trained with, or change in_channels"
            )
        return self.x_embedder(x_BCTHW.to(self.dtype))

    def to_latents(self, x_BNF: Tensor, size: Sequence[int]) -> Tensor:
        """Final layer's patches -> [B, out_channels, T, H, W] cropped to `size` (T, H, W), at least float32."""
        t, h, w = size
        grid = [-(-n // p) for n, p in zip(size, self.patch_size, strict=True)]
        whole = unpatchify(x_BNF.unflatten(1, grid), self.patch_size, self.out_channels)
        return at_least_float32(whole[:, :, :t, :h, :w])
