"""Times of frames: their order, their rate, and if they are evenly spaced."""

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heapify, heappop, heappushpop
from typing import TYPE_CHECKING

from opensora.errors import BadClip

if TYPE_CHECKING:
    from av import VideoFrame

DEPTH = 16  # frames that H.264 may decode before the one that is shown first
_FACTOR_OF_RATE = Fraction(3, 2)  # rates further apart than this contradict each other
_UNEVEN = 0.1  # of the usual time between two frames


@dataclass
class PacketTimes:
    """Counts of a stream's packets, and those of their times that are known, in the stream's time base."""

    count: int = 0
    bytes: int = 0
    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)


def first_of(decoded: "Iterator[VideoFrame]", count: int) -> "tuple[list[VideoFrame], Iterator[VideoFrame]]":
    """At most `count` frames, and those after them, which begin with the error where the data is damaged."""
    frames: list[VideoFrame] = []

    def fail(error: BadClip) -> "Iterator[VideoFrame]":
        raise error
        yield

    try:
        for frame in itertools.islice(decoded, count):
            frames.append(frame)
    except BadClip as error:
        return frames, fail(error)
    return frames, decoded


def in_order(decoded: "Iterator[VideoFrame]") -> "Iterator[VideoFrame]":
    """The frames with their times in ascending order: decoders put frames in order, but not the numbers of packets."""
    begin, rest = first_of(decoded, DEPTH)
    frames = deque(begin)
    times = [_time(frame) for frame in begin]
    heapify(times)
    damage: BadClip | None = None
    try:
        for frame in rest:
            frames.append(frame)
            yield _at(frames.popleft(), heappushpop(times, _time(frame)))
    except BadClip as error:  # the frames before it are sound
        damage = error
    while frames:
        yield _at(frames.popleft(), heappop(times))
    if damage is not None:
        raise damage


def _time(frame: "VideoFrame") -> float:
    return math.inf if frame.pts is None else frame.pts


def _at(frame: "VideoFrame", time: float) -> "VideoFrame":
    frame.pts = None if math.isinf(time) else int(time)
    return frame


def likely_rate(rate: Fraction, pts: list[int], time_base: Fraction) -> Fraction:
    """The header's rate, unless the times of the frames, ascending, contradict it: browsers write 1000."""
    steps = sorted(after - before for before, after in itertools.pairwise(pts) if after > before)
    if not steps:
        return rate
    usual = 1 / (steps[len(steps) // 2] * time_base)
    if _alike(rate, usual):
        return rate
    mean = (len(pts) - 1) / ((pts[-1] - pts[0]) * time_base)
    return (mean if _alike(mean, usual) else usual).limit_denominator(1001)


def _alike(one: Fraction, other: Fraction) -> bool:
    return 1 / _FACTOR_OF_RATE < one / other < _FACTOR_OF_RATE


def uneven(times: Sequence[float], unit: float) -> bool:
    """True if ascending times differ in their steps by more than rounding to `unit` explains."""
    steps = sorted(after - before for before, after in itertools.pairwise(times))
    if not steps:
        return False
    usual = steps[len(steps) // 2]
    return max(usual - steps[0], steps[-1] - usual) > max(1.5 * unit, _UNEVEN * usual)
