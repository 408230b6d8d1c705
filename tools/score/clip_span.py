"""The part of a file that a row names."""

import math

from opensora.datasets.decode import VideoInfo
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip
from tools.runner import Row

_ROUNDING = 1e-3  # frames: times are written with few digits, and must not move a boundary by one


def clip_span(row: Row, info: VideoInfo) -> tuple[int, int]:
    """First frame and end (exclusive) of the row's clip: `start_frame` and `end_frame`, else `start` and `end` in seconds.

    Without them it is the whole file. Raises BadClip where they are no numbers, or leave no frame.
    """
    first, stop = (_number(row, name) for name in ("start_frame", "end_frame"))
    if first is None or stop is None:
        start, end = (_number(row, name) for name in ("start", "end"))
        first = None if start is None else math.ceil(start * info.fps - _ROUNDING)
        stop = None if end is None else math.ceil(end * info.fps - _ROUNDING)
    begin = 0 if first is None else int(first)
    end_frame = info.num_frames if stop is None else min(info.num_frames, int(stop))
    if not 0 <= begin < end_frame:
        raise BadClip(
            f"{row['path']}: the row's clip is from frame {begin} to {end_frame}, the file has {info.num_frames}; a part of "
            "the file is needed; correct start and end, or start_frame and end_frame"
        )
    return begin, end_frame


def _number(row: Row, name: str) -> float | None:
    cell = row.get(name)
    if is_missing(cell):
        return None
    try:
        number = float(str(cell))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadClip(f"{row['path']}: {name} is {cell!r}; a number is needed; correct the row")
    return number
