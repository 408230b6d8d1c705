"""Protocols of a data set, for the loader and the training loop."""

from typing import Protocol

from opensora.datasets.clip_sizes import ClipSizes
from opensora.datasets.row_report import Report
from opensora.rng import Draw
from opensora.types import Clip

ClipSize = tuple[int, int, int]  # frames, height and width in pixels


class Dataset(Protocol):
    """Clips by row. A clip is a function of (row, draw) alone, so any process may make any clip."""

    where: str  # the manifest, or the data set's name, for messages
    num_frames: int  # 0, here and below: every clip is requested at a size
    image_size: tuple[int, int]  # height, width in pixels

    @property
    def fps(self) -> float:
        """Frames per second of the clips; of a typical one where the files differ."""

    def __len__(self) -> int:
        """Rows of one epoch, known without opening a video."""

    def clip(self, row: int, draw: Draw) -> Clip:
        """The clip of `row` in [0, len); BadClip when it cannot be used, with the manifest line.

        One that keeps to `SizedDataset` takes a size as well.
        """

    def report(self) -> Report:
        """Rows in, kept, dropped and why, as far as known without opening a video."""


class CaptionedDataset(Dataset, Protocol):
    """A data set whose captions are known without making a clip."""

    def captions(self, row: int) -> list[str]:
        """Every caption that the clip of the row can have."""


class SizedDataset(Dataset, Protocol):
    """A data set that makes clips of any size, as `bucket_config` needs."""

    frame_interval: int  # frames of a row from one frame of the clip to the next

    def sizes(self) -> ClipSizes:
        """Lengths and sizes that each row can be trained at, known without opening a video."""

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        """The clip of `row` at a size; None = the data set's own."""
