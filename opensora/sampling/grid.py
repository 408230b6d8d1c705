"""Many videos as one, side by side.

Layout: T frames, H W rows and columns, RGB bytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opensora.datasets.decode import Video

GAP = 2  # pixels between videos


def make_grid(videos_THWC: Sequence[np.ndarray]) -> np.ndarray:
    """Videos row by row in a nearly square grid, black where there is none; a shorter one stays at its last frame."""
    columns = math.ceil(math.sqrt(len(videos_THWC)))
    rows = math.ceil(len(videos_THWC) / columns)
    frames, height, width = (max(video.shape[axis] for video in videos_THWC) for axis in range(3))
    grid = np.zeros((frames, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), dtype=np.uint8)
    for number, video_THWC in enumerate(videos_THWC):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        length, rows_here, columns_here, _ = video_THWC.shape
        place = grid[:, top : top + rows_here, left : left + columns_here]
        place[:length], place[length:] = video_THWC, video_THWC[-1]
    return grid


def read_frames_of(path: Path) -> np.ndarray:
    """All frames of a video, a picture, or a folder of pictures."""
    parts = sorted(path.glob("*.png")) if path.is_dir() else [path]
    frames = []
    for part in parts:
        with Video(str(part)) as video:
            frames += list(video.frames(range(video.info.num_frames)))
    return np.stack(frames)
