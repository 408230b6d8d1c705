"""LPIPS: perceptual distance of two frames, a weighted distance of the features of VGG16 or AlexNet. Frozen.

VGG16 is usual as a term of a loss, AlexNet as a figure of merit; their distances do not compare.

Shapes: N frames, C channels, H W rows/columns; frames [N, 3, H, W] in [-1, 1].
Source: Zhang et al. 2018, arXiv:1801.03924, eq. 1 and section 3 (the linear heads).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from opensora.errors import ConfigError, WeightsError
from opensora.files import expand_home
from opensora.models.read_weights import read_weights
from opensora.models.shape_checks import ShapeError
from opensora.models.weights import load_state
from opensora.registry import PERCEPTUAL

Net = Literal["vgg", "alex"]


class Conv(NamedTuple):
    """A convolution with a rectifier behind it; number: of torchvision."""

    number: int
    before: int
    after: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Trunk(NamedTuple):
    """A network of torchvision up to its last features. slices: one per resolution or layer whose features count."""

    slices: tuple[tuple[Conv, ...], ...]
    pools: tuple[int, ...]  # a max-pool at stride 2 opens the slices of these numbers, counted from 1
    pool_size: int
    smallest: int  # rows and columns of a frame that leave something to the last pool


SLICES = (
    (Conv(0, 3, 64), Conv(2, 64, 64)),
    (Conv(5, 64, 128), Conv(7, 128, 128)),
    (Conv(10, 128, 256), Conv(12, 256, 256), Conv(14, 256, 256)),
    (Conv(17, 256, 512), Conv(19, 512, 512), Conv(21, 512, 512)),
    (Conv(24, 512, 512), Conv(26, 512, 512), Conv(28, 512, 512)),
)
ALEX_SLICES = (
    (Conv(0, 3, 64, 11, 4, 2),),
    (Conv(3, 64, 192, 5, 1, 2),),
    (Conv(6, 192, 384),),
    (Conv(8, 384, 256),),
    (Conv(10, 256, 256),),
)
TRUNKS: dict[str, Trunk] = {
    "vgg": Trunk(SLICES, pools=(2, 3, 4, 5), pool_size=2, smallest=16),
    "alex": Trunk(ALEX_SLICES, pools=(2, 3), pool_size=3, smallest=31),
}
_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_IN_LIGHTNING = "loss.perceptual_loss."  # where checkpoints of Open-Sora-Plan's trainer keep it


class Slice(nn.Module):
    """The convolutions up to the next features, by torchvision's numbers. pool: size of the max-pool before them; 0: none."""

    def __init__(self, pool: int, convolutions: Sequence[Conv]):
        super().__init__()
        self.pool = pool
        for number, before, after, size, stride, padding in convolutions:
            self.add_module(str(number), nn.Conv2d(before, after, size, stride, padding))

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = nn.functional.max_pool2d(x, self.pool, 2)
        for convolution in self.children():
            x = convolution(x).relu()
        return x


class Features(nn.Module):
    """The features of each slice: of VGG16 relu1_2, relu2_2, relu3_3, relu4_3, relu5_3; of AlexNet relu1 to relu5."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        for n, convolutions in enumerate(trunk.slices, start=1):
            self.add_module(f"slice{n}", Slice(trunk.pool_size if n in trunk.pools else 0, convolutions))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for part in self.children():
            x = part(x)
            features.append(x)
        return features


class InputScaling(nn.Module):
    """From [-1, 1] to the statistics that both networks were trained on."""

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
    """weights: one or several files that together hold everything: torchvision's VGG16 or AlexNet, the linear heads
    (`lin<n>.model.1.weight`), an LPIPS module's state, a checkpoint of Open-Sora-Plan's trainer; or a folder, of which the
    files whose names begin with `net` are taken. Only `load()` reads them. net: "vgg" or "alex", the network of these
    files."""

    def __init__(self, weights: str | Sequence[str], net: Net = "vgg"):
        super().__init__()
        self.files = [weights] if isinstance(weights, str) else list(weights)
        if not self.files:
            raise ConfigError(
                "LPIPS: weights names no file; allowed: one file or several; give those of the network and of the heads"
            )
        if net not in TRUNKS:
            raise ConfigError(f"LPIPS: net={net!r}; allowed: {', '.join(map(repr, TRUNKS))}; correct it")
        self.trunk, self.trunk_name = TRUNKS[net], net
        self.scaling_layer = InputScaling()
        self.net = Features(self.trunk)
        for n, convolutions in enumerate(self.trunk.slices):
            self.add_module(f"lin{n}", LinHead(convolutions[-1].after))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the distance must not change between two calls."""
        return super().train(False)

    def load(self) -> Self:
        """Read the weights; WeightsError unless the files hold all of them and nothing else."""
        state: dict[str, Tensor] = dict(self.scaling_layer.state_dict(prefix="scaling_layer."))
        files = [file for path in self.files for file in _files_of(Path(expand_home(path)), self.trunk_name)]
        for file in files:
            state.update(to_own_keys(read_weights(file), self.trunk))
        load_state(self, state, ", ".join(map(str, files)))
        return self

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """The distance of each pair, float32 [N]. Raises ShapeError for frames of fewer than 16 rows or columns,
        31 with AlexNet."""
        smallest = self.trunk.smallest
        if min(x_NCHW.shape[2:]) < smallest:
            raise ShapeError(
                f"LPIPS: frames of {list(x_NCHW.shape[2:])}; at least {smallest} rows and columns are needed"
            )
        total = torch.zeros(len(x_NCHW), device=x_NCHW.device)
        for n, (x, y) in enumerate(
            zip(*(self.net(self.scaling_layer(frames)) for frames in (x_NCHW, y_NCHW)), strict=True)
        ):
            weighted = self.get_submodule(f"lin{n}")((unit_normalize(x.float()) - unit_normalize(y.float())).square())
            total = total + weighted.float().mean(dim=(1, 2, 3))
        return total


def _files_of(path: Path, net: str) -> list[Path]:
    """The file, or the weights of `net` in the folder. Raises WeightsError where it has none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.startswith(net) and file.suffix in _ENDINGS)
    if not files:
        raise WeightsError(
            f"LPIPS: {path}: holds no weights whose names begin with {net!r}; needed: the network and the linear heads, such as "
            f"{'vgg16.pth and vgg.pth' if net == 'vgg' else 'alexnet.pth and alex.pth'}; rename them, or name the files"
        )
    return files


def unit_normalize(x_NCHW: Tensor) -> Tensor:
    """Divide every pixel's channels by their L2 norm."""
    # vector_norm has a gradient of 0 where all channels are 0; a root of a sum of squares would give NaN
    return x_NCHW / (torch.linalg.vector_norm(x_NCHW, dim=1, keepdim=True) + 1e-10)


def to_own_keys(state: Mapping[str, Tensor], trunk: Trunk = TRUNKS["vgg"]) -> dict[str, Tensor]:
    """The tensors of a file that LPIPS uses, under its own keys."""
    inside = {k.removeprefix(_IN_LIGHTNING): v for k, v in state.items() if k.startswith(_IN_LIGHTNING)}
    slices = {each.number: n for n, convolutions in enumerate(trunk.slices, start=1) for each in convolutions}
    own = {}
    for name, tensor in (inside or state).items():
        layer = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
        if layer and int(layer[1]) in slices:
            own[f"net.slice{slices[int(layer[1])]}.{layer[1]}.{layer[2]}"] = tensor
        elif not name.startswith(("classifier.", "lins.")):  # the labels of the network; the same heads a second time
            own[name] = tensor
    return own
