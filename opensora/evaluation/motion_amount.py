"""The motion of a clip: mean optical flow, the share of the picture that rests, jitter.

All three depend neither on the size nor on the frame rate of the video. A picture without texture does not flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from opensora.datasets.decode import Video
from opensora.datasets.sampled_frames import sampled_frames, spread_runs
from opensora.errors import BadClip
from opensora.evaluation.optical_flow import SECONDS_BETWEEN, SIDE, Gray, optical_flow, per_second, shrink

RUNS = 6  # places in a clip that are looked at, each for a third of a second
_RUN = 5  # frames of a run
_AT_REST = 2.0  # percent of the shorter side per second: a sixth of a pixel of a shrunken frame


@dataclass(frozen=True)
class MotionAmount:
    """flow: mean length of the optical flow, in percent of the frame's shorter side per second.
    static_share: part of the frame that rests, 0 to 1, on average.
    jitter: change of the whole frame's movement from one step to the next, in the unit of flow; a steady pan has none.
    changes: how many of them it is the mean of; with none, in a clip of one step, jitter is 0 and says nothing.
    """

    flow: float
    static_share: float
    jitter: float
    changes: int


def motion_of(video: Video, first: int, end: int, runs: int = RUNS) -> MotionAmount:
    """The motion in the frames [first, end) of an open video. Raises BadClip for fewer than two frames."""
    if end - first < 2:
        raise BadClip(f"{video.path}: has one frame; motion needs at least two; remove the row")
    gap = min(max(1, round(video.info.fps * SECONDS_BETWEEN)), end - first - 1)
    chosen = spread_runs(first, end, gap, runs, _RUN)
    wanted = sorted({index for each in chosen for index in each})
    grays = {index: shrink(frame) for index, frame in zip(wanted, sampled_frames(video, wanted, SIDE), strict=True)}
    return measure([[grays[index] for index in each] for each in chosen], gap / video.info.fps)


def measure(grays: Sequence[Sequence[Gray]], seconds: float) -> MotionAmount:
    """The motion in runs of shrunken frames, `seconds` from one to the next."""
    lengths: list[float] = []
    rests: list[float] = []
    changes: list[float] = []
    for run_grays in grays:
        whole = []
        for before, after in pairwise(run_grays):
            flow = per_second(optical_flow(before, after), seconds)
            length = np.linalg.norm(flow, axis=2)
            lengths.append(float(length.mean()))
            rests.append(float((length < _AT_REST).mean()))
            whole.append(np.median(flow, axis=(0, 1)))
        changes += [float(np.linalg.norm(after - before)) for before, after in pairwise(whole)]
    jitter = float(np.mean(changes)) if changes else 0.0
    return MotionAmount(float(np.mean(lengths)), float(np.mean(rests)), jitter, len(changes))
