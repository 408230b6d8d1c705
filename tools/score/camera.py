"""Name the movement of the camera: static, pan, tilt, zoom, roll, shake or mixed.

Run: python -m tools.score.camera clips.csv moving.csv

The names are those of the camera, not of the content: in `pan_right` the camera turns (or moves) to the right and the
content moves to the left; `tilt_up`: up, the content moves down; `zoom_in`: the content grows; `roll_cw`: the camera
turns clockwise, as seen by its operator, and the content counterclockwise. A dolly or a truck looks like a zoom or a pan
and has its name. Of a film with cuts the movement is that of most shots: cut it first.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames, Video
from opensora.datasets.sampled_frames import sampled_frames, spread_runs
from opensora.errors import BadClip, ConfigError
from opensora.evaluation.optical_flow import SECONDS_BETWEEN, SIDE, Gray, shrink
from tools.runner import Row, run
from tools.score.camera_step import Step, camera_step
from tools.score.clip_span import clip_span

PACKAGES = ("cv2",)
_RUN = 5  # frames of a run
_POOR = 0.5  # of the places that move alike: below it the frames of a pair may lie too far apart
# Frames of a run further apart measure slow movements better. Lossy coding holds a faint texture still for some frames: a
# camera at rest shows the same picture after them, too.
_FARTHER = ((4, 8.0), (15, 2.5))  # steps apart, and the movement in percent per second below which they are compared
_STATIC = 1.0  # percent of the shorter side per second: a slower steady movement is none
_RESTLESS = 2.5  # percent per second: less deviation from the steady movement is none
_MAIN_SHARE = 0.6  # of all movement: makes it the one that is named
_TO_AND_FRO = 1.25  # times the steady movement: with more deviation from it there is no one movement
_REVERSALS = 1.5  # per second, from which a movement to and fro is a shake
_TRIMMED = 0.2  # of the steps on each side, which may lie on a cut
_RADIUS = 0.5  # of the shorter side: distance from the middle at which zoom and roll are compared with pan and tilt
_WEIGHTS = np.array([1, 1, _RADIUS, _RADIUS])
_NAMES = (("pan_right", "pan_left"), ("tilt_up", "tilt_down"), ("zoom_in", "zoom_out"), ("roll_cw", "roll_ccw"))

Rates = NDArray[np.float64]  # pan, tilt, zoom and roll, in percent per second (roll: of a radian)
Read = Callable[[list[int]], Iterable[Frames]]  # ascending indices -> frames [H, W, 3]


@dataclass(frozen=True)
class CameraMotion:
    """The steady movement of the camera, and how much it shakes.

    pan (right), tilt (up), zoom (in), shake: percent of the shorter side per second, zoom in percent of the size.
    roll: degrees clockwise per second.
    """

    kind: str
    pan: float
    tilt: float
    zoom: float
    roll: float
    shake: float


def camera(row: Row, *, runs: int = 6) -> Row:
    """The row with cmotion, camera_pan, camera_tilt, camera_zoom, camera_roll and camera_shake; empty where textureless.

    runs: places in the clip that are looked at, each for a third of a second
    """
    if runs < 1:
        raise ConfigError(f"camera: --runs {runs}; at least 1 is needed")
    motion = measure_file(row, runs)
    names = ("pan", "tilt", "zoom", "roll", "shake")
    rates = {f"camera_{name}": None if motion is None else round(getattr(motion, name), 2) for name in names}
    return {**row, "cmotion": None if motion is None else motion.kind, **rates}


def measure_file(row: Row, runs: int) -> CameraMotion | None:
    """The camera's movement in the row's clip, or None where too little texture shows."""
    with Video(row["path"]) as video:
        first, end = clip_span(row, video.info)
        if end - first < 2:
            raise BadClip(f"{row['path']}: has one frame; motion needs at least two; remove the row")
        return measure(lambda indices: sampled_frames(video, indices, SIDE), first, end, video.info.fps, runs)


def measure(read: Read, first: int, end: int, fps: float, runs: int) -> CameraMotion | None:
    """The camera's movement in frames [first, end) of which `read` gives some, at `fps` frames per second."""
    gap = min(max(1, round(fps * SECONDS_BETWEEN)), end - first - 1)
    grays = _read_runs(read, spread_runs(first, end, gap, runs, _RUN))
    steps = _steps(grays, 1)
    if gap > 1 and np.mean([0 if step is None else step.share for each in steps for step in each]) < _POOR:
        finer = _read_runs(read, spread_runs(first, end, 1, runs, _RUN))
        finer_steps = _steps(finer, 1)
        if _known(finer_steps):
            grays, steps, gap = finer, finer_steps, 1
    if not _known(steps):
        return None
    seconds = gap / fps
    rates = [[_rates(step, seconds) for step in each] for each in steps]
    steady = _steady(rates)
    longest, rests = max(len(each) for each in grays) - 1, True
    for far, slow in _FARTHER:
        apart = min(far, longest)
        if apart > 1 and float(np.linalg.norm(steady * _WEIGHTS)) < slow:
            wide = _steps(grays, apart)
            rests = _known(wide)
            if rests:
                steady = _steady([[_rates(step, seconds * apart) for step in each] for each in wide])
    motion = name_motion(steady, rates, seconds)
    return None if motion.kind == "static" and not rests else motion


def _read_runs(read: Read, runs: Sequence[Sequence[int]]) -> list[list[Gray]]:
    wanted = sorted({index for each in runs for index in each})
    grays = {index: shrink(frame) for index, frame in zip(wanted, read(wanted), strict=True)}
    return [[grays[index] for index in each] for each in runs]


def name_motion(steady: Rates, rates: Sequence[Sequence[Rates | None]], seconds: float) -> CameraMotion:
    """The name of a movement. rates: of the steps of each run, `seconds` apart."""
    known = np.array([each for run_rates in rates for each in run_rates if each is not None])
    deviation = float(np.median(np.linalg.norm((known - steady) * _WEIGHTS, axis=1)))
    parts = np.abs(steady) * _WEIGHTS
    moving = float(np.linalg.norm(parts))
    if deviation > _RESTLESS and deviation > _TO_AND_FRO * moving:
        kind = "shake" if _reversals(rates, steady, deviation, seconds) >= _REVERSALS else "mixed"
    elif moving < _STATIC:
        kind = "static"
    elif parts.max() < _MAIN_SHARE * parts.sum():
        kind = "mixed"
    else:
        main = int(parts.argmax())
        kind = _NAMES[main][0 if steady[main] > 0 else 1]
    pan, tilt, zoom, roll = (float(rate) for rate in steady)
    return CameraMotion(kind, pan, tilt, zoom, math.degrees(roll / 100), deviation)


def _reversals(rates: Sequence[Sequence[Rates | None]], steady: Rates, deviation: float, seconds: float) -> float:
    """Changes of direction per second, along the axis in which the camera moves most."""
    known = np.array([each for run_rates in rates for each in run_rates if each is not None])
    axis = np.linalg.svd((known - steady) * _WEIGHTS, full_matrices=False)[2][0]
    changes, steps = 0, 0
    for run_rates in rates:
        along = [float(((each - steady) * _WEIGHTS) @ axis) for each in run_rates if each is not None]
        clear = [value > 0 for value in along if abs(value) > deviation / 4]
        changes += sum(one != other for one, other in pairwise(clear))
        steps += len(along)
    return changes / max(1, steps) / seconds


def _steps(grays: Sequence[Sequence[Gray]], apart: int) -> list[list[Step | None]]:
    """Steps between frames `apart` frames of each run away from each other."""
    return [
        [camera_step(run_grays[at], run_grays[at + apart]) for at in range(0, len(run_grays) - apart, apart)]
        for run_grays in grays
    ]


def _known(steps: Sequence[Sequence[object]]) -> bool:
    """True if at least half of the steps have an answer."""
    every = [each is not None for run_steps in steps for each in run_steps]
    return bool(every) and sum(every) * 2 >= len(every)


def _rates(step: Step | None, seconds: float) -> Rates | None:
    """The camera moves against its content, but grows with it."""
    if step is None:
        return None
    moves = (-step.right / SIDE, step.down / SIDE, step.growth, -step.turn)
    return 100 * np.array(moves) / seconds


def _steady(rates: Sequence[Sequence[Rates | None]]) -> Rates:
    """The mean over the steps, without the extremes of each rate."""
    known = np.sort([each for run_rates in rates for each in run_rates if each is not None], axis=0)
    cut = int(len(known) * _TRIMMED)
    return np.asarray(known[cut : len(known) - cut].mean(0))


if __name__ == "__main__":
    run(camera, packages=PACKAGES)
