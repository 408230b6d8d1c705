"""DrawnClips: base class of data sets that draw their clips, with the caption that says what they show."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from opensora.datasets.row_report import Report
from opensora.rng import Draw
from opensora.types import Clip


class DrawnClips(abc.ABC):
    """The row says what the clip shows, the draw says the rest.

    clips: rows of one epoch; what they show takes turns. image_size: (height, width) in pixels. fps: frames per second that
    the clips claim; the way covered in a whole clip does not depend on it.
    """

    where: str  # the name for messages
    random_properties: ClassVar[tuple[str, ...]]  # properties that differ from draw to draw

    def __init__(self, clips: int, num_frames: int, image_size: Sequence[int], fps: float) -> None:
        self.clips = clips
        self.num_frames = num_frames
        self.image_size = (image_size[0], image_size[1])
        self.fps = fps

    @abc.abstractmethod
    def video(self, row: int, draw: Draw) -> Tensor:
        """The frames, float32 [3, T, H, W] in [-1, 1]."""

    @abc.abstractmethod
    def captions(self, row: int) -> list[str]:
        """Every wording that `caption` can choose; the first one names the row in a list of all."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Settings that make a clip of any size from any row; see datasets/feature_store.py."""

    def __len__(self) -> int:
        return self.clips

    def report(self) -> Report:
        """Nothing is ever dropped from a drawn data set."""
        size = "x".join(map(str, (self.num_frames, *self.image_size)))
        return Report.of(self.where, self.clips, [], {size: self.clips})

    def clip(self, row: int, draw: Draw) -> Clip:
        """The clip of this row and draw."""
        return Clip(video_CTHW=self.video(row, draw), caption=self.caption(row, draw), fps=self.fps, row=row)

    def caption(self, row: int, draw: Draw) -> str:
        """The words of `clip`."""
        captions = self.captions(row)
        return captions[int(torch.randint(len(captions), (), generator=draw.rng("caption")))]

    def random_settings(self) -> list[str]:
        """The properties that differ from draw to draw."""
        return list(self.random_properties)

    def row_fingerprint(self, row: int, file_hash: Callable[[str], str]) -> dict[str, Any]:
        """The content of the row, with its number: rows that show the same are drawn apart."""
        return {"row": row, "shows": self.captions(row)[0]}

    def row_label(self, row: int) -> str:
        return f"{self.where}: clip {row}"

    def manifest_index(self, row: int) -> int:
        return row


def uniform(rng: Generator, low: float, high: float) -> float:
    """One number in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))
