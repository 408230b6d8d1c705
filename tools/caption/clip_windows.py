"""The frames of a clip that a model sees."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensora.datasets.decode import Frames, Video
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip
from tools.clip_frames import clip_part, spread

GRID_GAP = 4  # white pixels between the frames of a grid


@dataclass(frozen=True)
class Window:
    """Frames from one part of a clip."""

    frames: Frames  # [T, H, W, 3]
    start: float  # seconds from the beginning of the clip
    end: float
    fps: float  # frames per second of `frames`


def clip_windows(
    row: Mapping[str, Any],
    frames: int,
    *,
    max_side: int = 0,
    window_seconds: float | None = None,
    most_windows: int = 16,
    overlap: bool = False,
) -> list[Window]:
    """The windows of a row's clip in order; without `window_seconds` one window, the whole clip.

    The clip is from `start_frame` to `end_frame` of the row, else from `start` to `end` (seconds), else all of the file. Raises
    BadClip when the file cannot be read or the clip has no frame.
    """
    with Video(str(row["path"])) as video:
        info = video.info
        first, stop = bounds(row, info.num_frames, info.fps)
        parts = window_bounds(first, stop, info.fps, window_seconds, most_windows)
        chosen: list[list[int]] = []
        for start, end in parts:
            own = list(dict.fromkeys(spread(range(start, end), frames)))
            chosen.append([chosen[-1][-1], *own] if overlap and chosen else own)
        wanted = sorted({index for indices in chosen for index in indices})
        pictures = dict(zip(wanted, (shrink(frame, max_side) for frame in video.frames(wanted)), strict=True))
    windows = []
    for (start, end), indices in zip(parts, chosen):
        seconds = (end - start) / info.fps
        windows.append(
            Window(
                np.stack([pictures[index] for index in indices]),
                (start - first) / info.fps,
                (end - first) / info.fps,
                len(indices) / seconds if seconds > 0 else info.fps,
            )
        )
    return windows


def bounds(row: Mapping[str, Any], num_frames: int, fps: float) -> tuple[int, int]:
    """The first frame of a row's clip and the one behind its last. Raises BadClip when there is none between."""
    if not any(is_missing(row.get(name)) for name in ("start_frame", "end_frame")):
        part = clip_part(row, num_frames)
        return part.start, part.stop
    start, end = _number(row, "start"), _number(row, "end")
    begin = 0 if start is None else round(start * fps)
    behind = num_frames if end is None else min(round(end * fps), num_frames)
    if not 0 <= begin < behind:
        raise BadClip(
            f"{row['path']}: the clip goes from frame {begin} to {behind} of {num_frames}; at least one frame is needed; "
            "correct start and end"
        )
    return begin, behind


def _number(row: Mapping[str, Any], name: str) -> float | None:
    cell = row.get(name)
    if is_missing(cell):
        return None
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise BadClip(f"{row['path']}: {name} is {cell!r}; a number is needed; correct it")
    return value


def window_bounds(first: int, stop: int, fps: float, seconds: float | None, most_windows: int) -> list[tuple[int, int]]:
    """Cut [first, stop) into windows of nearly equal length: about `seconds`, at least one frame, no more than allowed."""
    length = stop - first
    count = 1 if seconds is None else max(1, round(length / fps / seconds))
    count = min(count, length, most_windows)
    edges = [first + length * number // count for number in range(count + 1)]
    return list(itertools.pairwise(edges))


def shrink(frame: Frames, max_side: int) -> Frames:
    """The frame [H, W, 3] with a longer side of at most `max_side` pixels; 0: unchanged."""
    height, width = frame.shape[:2]
    scale = max_side / max(height, width)
    if not max_side or scale >= 1:
        return frame
    from PIL import Image

    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def grid(frames: Frames | Sequence[Frames]) -> Frames:
    """Draw [T, H, W, 3] into one picture, row by row, as square as possible, with white gaps between."""
    count = len(frames)
    height, width = frames[0].shape[:2]
    columns = min(range(1, count + 1), key=lambda n: (abs(math.log(n * width / (-(-count // n) * height))), n))
    rows = -(-count // columns)
    page = np.full(
        (rows * (height + GRID_GAP) - GRID_GAP, columns * (width + GRID_GAP) - GRID_GAP, 3), 255, dtype=np.uint8
    )
    for number, frame in enumerate(frames):
        top, left = number // columns * (height + GRID_GAP), number % columns * (width + GRID_GAP)
        page[top : top + height, left : left + width] = frame
    return page
