"""Patch discriminators: footage against an autoencoder's reconstruction.

Shapes: B batch, C channels, T H W frames/rows/columns; clips [B, 3, T, H, W] in [-1, 1].
Source: PatchGAN of Isola et al. 2017, arXiv:1611.07004, appendix 6.1.2; in three dimensions as in Open-Sora-Plan 1.1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensora.models.layers.conv import Conv3d
from opensora.models.read_weights import read_weights
from opensora.models.shape_checks import ShapeError
from opensora.models.weights import load_state
from opensora.registry import DISCRIMINATORS

_IN_LIGHTNING = "loss.discriminator."  # where checkpoints of Open-Sora-Plan's trainer keep it


class PatchDiscriminator(nn.Module, ABC):
    """Strided convolutions, batch norms, leaky rectifiers; one logit per patch. Keys: `main.<n>`.

    channels: of the clips. width: channels after the first layer; later layers double them, up to 8 times. layers:
    strided convolutions. from_pretrained: initial weights, for example a checkpoint of Open-Sora-Plan's trainer.
    """

    kernel: int
    conv: type[nn.Conv2d] | type[nn.Conv3d]
    norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d]

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3, from_pretrained: str | None = None):
        super().__init__()
        self.from_pretrained, self.layers = from_pretrained, layers
        self.config: dict[str, Any] = {
            "type": type(self).__name__,
            "channels": channels,
            "width": width,
            "layers": layers,
        }
        strides = self.strides(layers)
        now = width
        main: list[nn.Module] = [self._conv(channels, now, strides[0], bias=True), nn.LeakyReLU(0.2, inplace=True)]
        for n, stride in enumerate(strides[1:], start=1):
            before, now = now, width * min(2**n, 8)
            main += [self._conv(before, now, stride, bias=False), self.norm(now), nn.LeakyReLU(0.2, inplace=True)]
        main.append(self._conv(now, 1, 1, bias=True))
        self.main = nn.Sequential(*main)
        self.apply(_init_weights)

    @staticmethod
    @abstractmethod
    def strides(layers: int) -> list[Any]:
        """The strides of all convolutions but the last."""

    def _conv(self, before: int, after: int, stride: Any, bias: bool) -> nn.Module:
        return self.conv(before, after, self.kernel, stride, 1, bias=bias)

    def load(self) -> "PatchDiscriminator":
        """Read the weights of `from_pretrained`; without one the fresh initial weights stay."""
        if self.from_pretrained is not None:
            read = read_weights(self.from_pretrained)
            own = {k.removeprefix(_IN_LIGHTNING): v for k, v in read.items() if k.startswith(_IN_LIGHTNING)}
            load_state(self, own or read, str(Path(self.from_pretrained)))
        return self

    def forward(self, x_BCTHW: Tensor, learn: bool = True) -> Tensor:
        """Logits, float32, above 0 for "real": [B, 1, t, h, w], or [B*T, 1, h, w] for single frames.

        learn: False passes gradients to the clips but not to the weights.
        """
        if not learn:
            fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
            return torch.func.functional_call(self, fixed, (x_BCTHW,))
        x = self._arrange(x_BCTHW)
        self._require_patches(x.shape, x_BCTHW.shape)
        return self.main(x).float()

    def _require_patches(self, arranged: Sequence[int], clips: Sequence[int]) -> None:
        """Raise ShapeError if a convolution has no input left, or a batch norm only one number per channel."""
        size = list(arranged[2:])
        for convolution in self.main:
            if isinstance(convolution, nn.Conv2d | nn.Conv3d):
                size = [(n + 2 - self.kernel) // stride + 1 for n, stride in zip(size, convolution.stride, strict=True)]
                if min(size) < 1 or (convolution.bias is None and arranged[0] * prod(size) == 1):
                    raise ShapeError(
                        f"{type(self).__name__}: clips of {list(clips[2:])} (frames, rows, columns) leave less than two "
                        f"patches to compare; give larger clips, or fewer than {self.layers} layers"
                    )

    def _arrange(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW


@DISCRIMINATORS.register_module()
class PatchDiscriminator3D(PatchDiscriminator):
    """Patches of several frames; the first two convolutions halve frames, the first three halve rows and columns."""

    kernel, conv, norm = 3, Conv3d, nn.BatchNorm3d

    @staticmethod
    def strides(layers: int) -> list[Any]:
        return [2, *[2 if n == 1 else (1, 2, 2) for n in range(1, layers)], 1]


@DISCRIMINATORS.register_module()
class PatchDiscriminator2D(PatchDiscriminator):
    """Patches of single frames."""

    kernel, conv, norm = 4, nn.Conv2d, nn.BatchNorm2d

    @staticmethod
    def strides(layers: int) -> list[Any]:
        return [2, *[2] * (layers - 1), 1]

    def _arrange(self, x_BCTHW: Tensor) -> Tensor:
        return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
