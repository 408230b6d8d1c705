"""Frames of a part of a video that stand for all of it: a bounded number of indices, and those frames by seeking."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from opensora.datasets.decode import Frames, Video

_DECODE_ON = 250  # frames: over a smaller gap decoding on is as cheap as a seek, which lands at a key frame before it


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
