"""The interface of a metric: videos in, figures and curves out.

Layout: T frames, H W rows and columns, C colors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from opensora.evaluation.evaluated_video import EvaluatedVideo

Better = Literal["higher", "lower", "neither"]
Needs = Literal["nothing", "videos", "references", "pairs"]
BLOCK = 16  # frames that are in memory at once
BLOCK_PIXELS = 2**20  # of these frames together: a network's first features take 256 bytes and more for each


@dataclass(frozen=True)
class Figure:
    """One number over all videos, and the number of each video where there is one.

    name: short, in lower case. unit: empty for a number without one. better: which direction is good.
    """

    name: str
    value: float
    unit: str = ""
    better: Better = "neither"
    per_video: tuple[float, ...] = ()  # in the order of the videos, or empty
    note: str = ""  # what a reader has to know, for example which network made the features


@dataclass(frozen=True)
class Curve:
    """Lines over one axis, for the report. lines: name -> the values at `x`."""

    name: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    lines: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Measurement:
    """The result of one metric."""

    figures: Sequence[Figure]
    curves: Sequence[Curve] = field(default=())


class Metric(Protocol):
    """A component of METRICS; its constructor takes the keys of the config.

    needs: "nothing" (a run is measured, not videos), "videos", "references" (any videos of the training data, as a set), or
    "pairs" (a reference of the same name for each video).
    """

    needs: ClassVar[Needs]

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        """The figures. references: of "pairs", in the order of `videos`. Raises OpenSoraError for what cannot be measured."""
        ...


def mean_figure(
    name: str, per_video: Sequence[float], unit: str = "", better: Better = "neither", note: str = ""
) -> Figure:
    """The mean of a number of each video."""
    return Figure(name, sum(per_video) / len(per_video), unit, better, tuple(per_video), note)


def frame_blocks(video: EvaluatedVideo, size: int = BLOCK) -> Iterator[Tensor]:
    """The frames in order, at most `size` and BLOCK_PIXELS at a time, one at least: [n, C, H, W] in [0, 1].

    So neither a long video nor a large one fills memory.
    """
    for frames_THWC in video.blocks(min(size, max(1, BLOCK_PIXELS // (video.height * video.width)))):
        yield torch.from_numpy(frames_THWC).permute(0, 3, 1, 2).float() / 255


def whole_clip(video: EvaluatedVideo) -> Tensor:
    """All frames at once, [C, T, H, W] in [-1, 1]."""
    return torch.from_numpy(video.whole()).permute(3, 0, 1, 2).float() / 127.5 - 1
