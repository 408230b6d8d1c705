"""Resampling that moves pixels into channels and back, so that nothing is lost before a 1x1x1 convolution chooses.

A stride or a mean throws details away before anything is learnt, and repeated pixels have to be made different again. With
these blocks an autoencoder can begin as the best linear transform of its footage, see `principal_start.py`. Released weights
have none of them. Channels that come from one are numbered (channel, place in the square or pair).
Source: Shi et al. 2016, arXiv:1609.05158 (sub-pixel convolution); Chen et al. 2024, arXiv:2410.10733, section 3.2.

Shapes: B batch, C channels, T H W frames/rows/columns.
"""

from torch import Tensor, nn

from opensora.models.vae.causal_blocks import CausalConv3d, repeat_first_frame


def _choice(in_channels: int, out_channels: int) -> CausalConv3d:
    """A 1x1x1 convolution that begins as a rotation: it neither shrinks nor mixes up what it keeps."""
    convolution = CausalConv3d(in_channels, out_channels, 1)
    nn.init.orthogonal_(convolution.conv.weight)
    return convolution


class SpatialUnshuffle2x(nn.Module):
    """[B, C, T, H, W] -> [B, C, T, H/2, W/2]: squares of four pixels become channels, of which C mixtures remain."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _choice(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.gather(x))

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, 4C, T, H/2, W/2]."""
        squares = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # [B, C, T, H/2, 2, W/2, 2]
        return squares.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)


class SpatialShuffle2x(nn.Module):
    """[B, C, T, H, W] -> [B, C, T, 2H, 2W], the way back."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _choice(channels, 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        squares = self.conv(x).unflatten(1, (-1, 2, 2))  # [B, C, 2, 2, T, H, W]
        return squares.permute(0, 1, 4, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4)


class TimeUnshuffle2x(nn.Module):
    """[B, C, 1 + 2k, H, W] -> [B, C, 1 + k, H, W]: pairs of frames become channels; the first frame is a pair with itself."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv = _choice(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.gather(x))

    @staticmethod
    def gather(x: Tensor) -> Tensor:
        """[B, C, 1 + 2k, H, W] -> [B, 2C, 1 + k, H, W]; a last frame without a partner is left out, as by a stride of 2."""
        even = repeat_first_frame(x[:, :, : (x.shape[2] - 1) // 2 * 2 + 1], 1)
        pairs = even.unflatten(2, (-1, 2))  # [B, C, 1 + k, 2, H, W]
        return pairs.transpose(2, 3).flatten(1, 2)


class TimeShuffle2x(nn.Module):
    """[B, C, 1 + k, H, W] -> [B, C, 1 + 2k, H, W], the way back; the first of the first pair is left out."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv = _choice(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        pairs = self.conv(x).unflatten(1, (-1, 2))  # [B, C, 2, 1 + k, H, W]
        return pairs.transpose(2, 3).flatten(2, 3)[:, :, 1:]
