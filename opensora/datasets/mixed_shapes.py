"""MixedShapes: drawn clips that claim to be of many sizes, to try `bucket_config` without footage."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from opensora.datasets.base import ClipSize
from opensora.datasets.clip_sizes import ClipSizes
from opensora.datasets.moving_shapes import MovingShapes
from opensora.datasets.row_report import Report
from opensora.errors import ConfigError
from opensora.registry import DATASETS
from opensora.rng import Draw
from opensora.types import Clip


@DATASETS.register_module()
class MixedShapes(MovingShapes):
    """MovingShapes at any size.

    sizes: (frames, height, width) of footage that the rows stand for, in turn; (1, height, width) is an image. They
    decide the bucket of a row. Without buckets all clips have the first of them.
    """

    where = "MixedShapes"
    frame_interval = 1

    def __init__(
        self,
        clips: int = 4096,
        sizes: Sequence[Sequence[int]] = ((10, 32, 32), (10, 24, 40), (1, 32, 32)),
        split: Literal["train", "holdout"] = "train",
        fps: float = 8.0,
    ) -> None:
        if not sizes:
            raise ConfigError("dataset: sizes=(); allowed: at least one (frames, height, width); add one")
        super().__init__(clips, sizes[0][0], sizes[0][1:], split, fps)
        self.row_sizes = [tuple(size) for size in sizes]
        self.split = split

    def sizes(self) -> ClipSizes:
        """The size that each row claims."""
        rows = np.arange(self.clips)
        turn = (rows + rows // len(self.combinations)) % len(self.row_sizes)  # every combination comes at every size
        frames, height, width = np.array(self.row_sizes, dtype=np.int32)[turn].T
        return ClipSizes(rows, frames, height, width)

    def report(self) -> Report:
        """Nothing is dropped before buckets are chosen."""
        return Report.of(self.where, self.clips, [])

    def clip(self, row: int, draw: Draw, size: ClipSize | None = None) -> Clip:
        """The row's clip, drawn at the size requested."""
        if size is None:
            return super().clip(row, draw)
        return MovingShapes(self.clips, size[0], size[1:], self.split, self.fps).clip(row, draw)
