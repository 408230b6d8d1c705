"""The part of a file that a row names, a bounded number of frame indices in it, and those frames by seeking."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from opensora.datasets.decode import Frames, Video, VideoInfo
from opensora.datasets.missing_values import is_missing
from opensora.errors import BadClip
from tools.runner import Row

_ROUNDING = 1e-3  # frames: times are written with few digits, and must not move a boundary by one
_DECODE_ON = 250  # frames: over a smaller gap decoding on is as cheap as a seek, which lands at a key frame before it


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


def spread(first: int, end: int, count: int) -> list[int]:
    """At most `count` different frames of [first, end): the middles of equal parts."""
    count = min(count, end - first)
    return [first + int((2 * part + 1) * (end - first) / (2 * count)) for part in range(count)]


def spread_runs(first: int, end: int, gap: int, runs: int, length: int) -> list[list[int]]:
    """At most `runs` runs of `length` frames that lie `gap` apart, evenly over [first, end).

    A shorter clip gives one run: every frame that lies a multiple of `gap` after the first.
    """
    one = list(range(first, end, gap))
    if len(one) <= runs * (length - 1) + 1:
        return [one]
    reach = (length - 1) * gap + 1
    free = end - first - reach
    starts = [first + round(free * (part / (runs - 1) if runs > 1 else 0.5)) for part in range(runs)]
    return [list(range(start, start + reach, gap)) for start in starts]


def sampled_frames(video: Video, indices: Sequence[int], shorter_side: int | None = None) -> Iterator[Frames]:
    """Frames [H, W, 3] at ascending indices, one in memory at a time; far ones are reached by seeking.

    shorter_side: shrink larger frames to this many pixels.
    """
    height, width = video.info.height, video.info.width
    widest = None if shorter_side is None else max(1, round(shorter_side * width / min(height, width)))
    group: list[int] = []
    for index, after in pairwise([*indices, None]):
        group.append(index)  # type: ignore[arg-type]
        if after is None or after - index > _DECODE_ON:  # type: ignore[operator]
            yield from video.frames(group, widest)
            group = []
