"""LPIPS: perceptual distance of two frames, a weighted distance of VGG16 features. Frozen; a term of a loss.

Shapes: N frames, C channels, H W rows/columns; frames [N, 3, H, W] in [-1, 1].
Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1 and section 3 (the linear head on VGG).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError
from opensora.models.read_weights import read_weights
from opensora.models.shape_checks import ShapeError
from opensora.models.weights import load_state
from opensora.registry import PERCEPTUAL

# VGG16's convolutions by torchvision's numbers: (number, channels in, channels out), one list per resolution.
# A rectifier follows each; a 2 x 2 max-pool opens every slice but the first.
SLICES = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)
_IN_LIGHTNING = "loss.perceptual_loss."  # where checkpoints of Open-Sora-Plan's trainer keep it


class VGGSlice(nn.Module):
    """The convolutions of one resolution, by torchvision's numbers."""

    def __init__(self, pool: bool, convolutions: Sequence[tuple[int, int, int]]):
        super().__init__()
        self.pool = pool
        for number, before, after in convolutions:
            self.add_module(str(number), nn.Conv2d(before, after, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = nn.functional.max_pool2d(x, 2)
        for convolution in self.children():
            x = convolution(x).relu()
        return x


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for n, convolutions in enumerate(SLICES, start=1):
            self.add_module(f"slice{n}", VGGSlice(n > 1, convolutions))

    def forward(self, x: Tensor) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
        features = []
        for part in self.children():
            x = part(x)
            features.append(x)
        return features


class InputScaling(nn.Module):
    """From [-1, 1] to the statistics that VGG was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class LinHead(nn.Module):
    """A weight per channel. Key: `model.1`; `model.0` was a dropout, which a frozen distance must not have."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@PERCEPTUAL.register_module()
class LPIPS(nn.Module):
    """weights: one or several files that together hold everything: torchvision's VGG16, the linear heads
    (`lin<n>.model.1.weight`), an LPIPS module's state, a checkpoint of Open-Sora-Plan's trainer. Only `load()` reads
    them."""

    def __init__(self, weights: str | Sequence[str]):
        super().__init__()
        self.files = [weights] if isinstance(weights, str) else list(weights)
        if not self.files:
            raise ConfigError("LPIPS: weights names no file; allowed: one file or several; give VGG16's and the heads'")
        self.scaling_layer = InputScaling()
        self.net = VGG()
        for n, convolutions in enumerate(SLICES):
            self.add_module(f"lin{n}", LinHead(convolutions[-1][2]))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the distance must not change between two calls."""
        return super().train(False)

    def load(self) -> Self:
        """Read the weights; WeightsError unless the files hold all of them and nothing else."""
        state: dict[str, Tensor] = dict(self.scaling_layer.state_dict(prefix="scaling_layer."))
        for file in self.files:
            state.update(to_own_keys(read_weights(file)))
        load_state(self, state, ", ".join(str(Path(file)) for file in self.files))
        return self

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """The distance of each pair, float32 [N]. Raises ShapeError for frames of fewer than 16 rows or columns."""
        if min(x_NCHW.shape[2:]) < 2 ** (len(SLICES) - 1):
            raise ShapeError(f"LPIPS: frames of {list(x_NCHW.shape[2:])}; at least 16 rows and columns are needed")
        total = torch.zeros(len(x_NCHW), device=x_NCHW.device)
        for n, (x, y) in enumerate(
            zip(*(self.net(self.scaling_layer(frames)) for frames in (x_NCHW, y_NCHW)), strict=True)
        ):
            weighted = self.get_submodule(f"lin{n}")((unit_normalize(x.float()) - unit_normalize(y.float())).square())
            total = total + weighted.float().mean(dim=(1, 2, 3))
        return total


def unit_normalize(x_NCHW: Tensor) -> Tensor:
    """Divide every pixel's channels by their L2 norm."""
    # vector_norm has a gradient of 0 where all channels are 0; a root of a sum of squares would give NaN
    return x_NCHW / (torch.linalg.vector_norm(x_NCHW, dim=1, keepdim=True) + 1e-10)


def to_own_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file that LPIPS uses, under its own keys."""
    inside = {k.removeprefix(_IN_LIGHTNING): v for k, v in state.items() if k.startswith(_IN_LIGHTNING)}
    slices = {number: n for n, convolutions in enumerate(SLICES, start=1) for number, _, _ in convolutions}
    own = {}
    for name, tensor in (inside or state).items():
        vgg = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
        if vgg and int(vgg[1]) in slices:
            own[f"net.slice{slices[int(vgg[1])]}.{vgg[1]}.{vgg[2]}"] = tensor
        elif not name.startswith(("classifier.", "lins.")):  # VGG's labels; the same heads a second time
            own[name] = tensor
    return own
