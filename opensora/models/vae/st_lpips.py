"""ST-LPIPS: the perceptual distance that tolerates small shifts. It is not LPIPS, and its numbers compare with its own alone.

Shapes: N frames, C channels, H W rows/columns; frames [N, 3, H, W] in [-1, 1].
Source: Ghildyal and Liu 2022, arXiv:2207.13686: pooling at stride 1, then a blur at stride 2 (Zhang 2019, arXiv:1904.11486).
Weights: the files `alex_shift_tolerant.pth` and `vgg_shift_tolerant.pth` of the PyPI package stlpips-pytorch 0.0.2.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from opensora.errors import WeightsError
from opensora.models.read_weights import read_weights
from opensora.models.shape_checks import ShapeError
from opensora.models.vae.perceptual import InputScaling, LinHead, unit_normalize
from opensora.models.weights import load_state
from opensora.registry import PERCEPTUAL

Net = Literal["alex", "vgg"]
PACKAGE = "stlpips-pytorch==0.0.2"
SMALLEST = 24  # rows and columns, so that the deepest slice can be padded by reflection


class Conv(NamedTuple):
    """A convolution and the rectifier behind it; number: in the keys of the weights."""

    number: int
    before: int
    after: int
    size: int = 3
    padding: int = 1
    blurred: bool = False  # a blur stands between the two, and has the next number


class Pool(NamedTuple):
    """A max-pool at stride 1, and the blur at stride 2 behind it; number: of the blur."""

    number: int
    channels: int
    size: int


# the slices after which features are compared
NETS: dict[str, tuple[tuple[Conv | Pool, ...], ...]] = {
    "alex": (
        (Conv(0, 3, 64, 11, 2, blurred=True),),
        (Pool(4, 64, 3), Conv(5, 64, 192, 5, 2)),
        (Pool(8, 192, 3), Conv(9, 192, 384)),
        (Conv(11, 384, 256),),
        (Conv(13, 256, 256),),
    ),
    "vgg": (
        (Conv(0, 3, 64), Conv(2, 64, 64)),
        (Pool(5, 64, 2), Conv(6, 64, 128), Conv(8, 128, 128)),
        (Pool(11, 128, 2), Conv(12, 128, 256), Conv(14, 256, 256), Conv(16, 256, 256)),
        (Pool(19, 256, 2), Conv(20, 256, 512), Conv(22, 512, 512), Conv(24, 512, 512)),
        (Pool(27, 512, 2), Conv(28, 512, 512), Conv(30, 512, 512), Conv(32, 512, 512)),
    ),
}


class Blur(nn.Module):
    """A 3x3 binomial filter for each channel, at stride 2 over a border of two reflected pixels."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("filt", (taps[:, None] * taps / 16).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return nn.functional.conv2d(padded, self.filt, stride=2, groups=len(self.filt))


class Slice(nn.Module):
    """The layers up to the next features."""

    def __init__(self, layers: tuple[Conv | Pool, ...]) -> None:
        super().__init__()
        self.layers = layers
        for layer in layers:
            if isinstance(layer, Pool):
                self.add_module(str(layer.number), Blur(layer.channels))
                continue
            convolution = nn.Conv2d(layer.before, layer.after, layer.size, padding=layer.padding)
            self.add_module(str(layer.number), convolution)
            if layer.blurred:
                self.add_module(str(layer.number + 1), Blur(layer.after))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            own = self.get_submodule(str(layer.number))
            if isinstance(layer, Pool):
                x = own(nn.functional.max_pool2d(x, layer.size, stride=1))
                continue
            x = own(x)
            if layer.blurred:
                x = self.get_submodule(str(layer.number + 1))(x)
            x = x.relu()
        return x


def packaged_weights() -> Path:
    """The folder of the weights in the package stlpips-pytorch, which is not imported. Raises WeightsError without it."""
    spec = find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"STLPIPS: weights is not given, and the package that holds them is missing; `pip install --no-deps {PACKAGE}`, or "
            "set weights to one of its files"
        )
    return Path(spec.submodule_search_locations[0]) / "weights" / "vST0.0"


@PERCEPTUAL.register_module()
class STLPIPS(nn.Module):
    """weights: one of the two files, or a folder that holds it; None: that of the installed package stlpips-pytorch. net:
    which of them it is, "alex" (2.5 M parameters) or "vgg" (14.7 M). Only `load()` reads it."""

    def __init__(self, weights: str | None = None, net: Net = "alex") -> None:
        super().__init__()
        self.weights = weights
        self.file = f"{net}_shift_tolerant.pth"  # name of its weights in the package
        self.scaling_layer = InputScaling()
        self.net = nn.Module()
        for n, layers in enumerate(NETS[net]):
            self.net.add_module(f"slice{n + 1}", Slice(layers))
            last = layers[-1]
            assert isinstance(last, Conv)
            self.add_module(f"lin{n}", LinHead(last.after))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the distance must not change between two calls."""
        return super().train(False)

    def load(self) -> Self:
        """Read the weights; WeightsError unless the file holds all of them and nothing else."""
        path = packaged_weights() if self.weights is None else Path(self.weights)
        path = path / self.file if path.is_dir() else path
        load_state(self, read_weights(path), str(path))
        return self

    def features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The features of each slice, [N, C, h, w]. Raises ShapeError for frames under 24 rows or columns."""
        if min(x_NCHW.shape[2:]) < SMALLEST:
            raise ShapeError(
                f"STLPIPS: frames of {list(x_NCHW.shape[2:])}; at least {SMALLEST} rows and columns are needed"
            )
        x_NCHW, features = self.scaling_layer(x_NCHW), []
        for part in self.net.children():
            x_NCHW = part(x_NCHW)
            features.append(x_NCHW)
        return features

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """The distance of each pair, float32 [N]."""
        total = torch.zeros(len(x_NCHW), device=x_NCHW.device)
        for n, (x, y) in enumerate(zip(self.features(x_NCHW), self.features(y_NCHW), strict=True)):
            weighted = self.get_submodule(f"lin{n}")((unit_normalize(x.float()) - unit_normalize(y.float())).square())
            total = total + weighted.float().mean(dim=(1, 2, 3))
        return total
