"""Sentences about a clip from what was measured: size, length, light, colors, the camera, how much moves.

`describe` names nothing that its row does not say: a cell that is empty gives no words. `look` measures light and colors.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from opensora.datasets.decode import Frames, Video
from opensora.datasets.missing_values import is_missing
from opensora.datasets.sampled_frames import sampled_frames, spread
from tools.runner import Row
from tools.score.clip_span import clip_span

CAPTIONER = "template"  # the cell of the column `captioner`
_FRAMES = 4  # looked at for light and colors
_SIDE = 48  # pixels
_DARK, _BRIGHT = 25, 70  # lightness L of Lab, of 100
_COLOR_SHARE = 0.15  # of the pixels: a color with less is not named
_MOST_COLORS = 3
_ROUNDS = 5  # of k-means
_SLOW, _FAST = 8.0, 40.0  # percent of the shorter side per second
_HARDLY, _MUCH = 1.0, 20.0  # percent of the shorter side per second, of the mean flow
_PART = 0.3  # of all movement: a part of a mixed one that is named
_RADIUS = 0.5  # of the shorter side: where zoom and roll are compared with pan and tilt

_CAMERA = {  # cmotion -> words, which a speed may follow
    "pan_left": "pans left",
    "pan_right": "pans right",
    "tilt_up": "tilts up",
    "tilt_down": "tilts down",
    "zoom_in": "zooms in",
    "zoom_out": "zooms out",
    "roll_cw": "rolls clockwise",
    "roll_ccw": "rolls counterclockwise",
}
_PALETTE = {  # name -> red, green, blue of its shades
    "black": [(12, 12, 12)],
    "gray": [(70, 70, 70), (120, 120, 120), (170, 170, 170)],
    "white": [(245, 245, 245)],
    "red": [(200, 30, 30), (120, 20, 25)],
    "orange": [(240, 140, 30), (215, 110, 50)],
    "yellow": [(240, 220, 50), (245, 235, 130)],
    "green": [(40, 160, 50), (30, 80, 30), (130, 190, 90), (90, 110, 50)],
    "turquoise": [(40, 190, 180), (30, 120, 120)],
    "blue": [(40, 80, 200), (25, 35, 90), (110, 170, 230), (90, 120, 160)],
    "purple": [(120, 50, 160), (80, 40, 90)],
    "pink": [(240, 130, 180), (240, 190, 205)],
    "brown": [(110, 70, 40), (70, 45, 30), (150, 110, 80)],
    "beige": [(215, 195, 165), (235, 220, 195)],
}


def measure(row: Row) -> Row:
    """The row with size, length, brightness and colors where it lacks them; BadClip where the file cannot be read."""
    with Video(row["path"]) as video:
        info = video.info
        first, end = clip_span(row, info)
        facts: Row = {
            "height": info.height,
            "width": info.width,
            "fps": round(info.fps, 4),
            "num_frames": end - first,
        }
        if is_missing(row.get("brightness")) or is_missing(row.get("colors")):
            facts |= look(list(sampled_frames(video, spread(first, end, _FRAMES))))
    return {**row, **{name: value for name, value in facts.items() if is_missing(row.get(name))}}


def look(frames: Sequence[Frames]) -> Row:
    """brightness: mean lightness, 0 to 100. colors: names of those that fill much of the frames, the largest first."""
    import cv2

    small = [cv2.resize(frame, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for frame in frames]
    pixels = _lab(np.concatenate(small).reshape(-1, 3).astype(np.uint8))
    names, centers = _shades()
    start = centers.copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(pixels, start)
        for number in set(nearest.tolist()):
            start[number] = pixels[nearest == number].mean(0)
    nearest = _nearest(pixels, start)
    name_of_cluster = _nearest(start, centers)
    shares: dict[str, float] = {}
    for number, count in enumerate(np.bincount(nearest, minlength=len(start))):
        name = names[name_of_cluster[number]]
        shares[name] = shares.get(name, 0.0) + count / len(pixels)
    large = sorted((name for name in shares if shares[name] >= _COLOR_SHARE), key=lambda name: -shares[name])
    return {"brightness": round(float(pixels[:, 0].mean()), 1), "colors": " ".join(large[:_MOST_COLORS])}


def describe(row: Row) -> str:
    """One or two sentences from the cells of the row; those that are empty give no words.

    Cells: width, height (pixels), num_frames, fps; brightness, colors (of `look`); cmotion, camera_pan, camera_tilt,
    camera_zoom, camera_roll (of tools.score.camera); flow (of tools.score.motion).
    """
    sentences = [f"{_subject(row)}{_colors(row)}."]
    camera, amount = _camera(row), _amount(row)
    if camera or amount:
        both = " and ".join(part for part in (camera, amount) if part)
        sentences.append(f"{both[0].upper()}{both[1:]}.")
    return " ".join(sentences)


def _subject(row: Row) -> str:
    width, height, frames, fps = (_number(row, name) for name in ("width", "height", "num_frames", "fps"))
    light, shape = _light(row), ""
    if width and height:
        ratio = width / height
        shape = "wide" if ratio > 1.5 else "tall" if ratio < 1 / 1.2 else "square" if 0.97 < ratio < 1.03 else ""
    words = [light, shape, "picture" if frames == 1 else "video"]
    first, *rest = [word for word in words if word]
    text = f"A {' '.join([first, *rest])}"
    if width and height:
        text += f" of {width:.0f}x{height:.0f} pixels"
    if frames and frames > 1 and fps:
        text += f"{' and' if width and height else ' of'} {_seconds(frames / fps)}"
    return text


def _seconds(seconds: float) -> str:
    value = f"{seconds:.0f}" if seconds >= 9.95 else f"{seconds:.1f}".removesuffix(".0")
    return "1 second" if value == "1" else f"{value} seconds"


def _light(row: Row) -> str:
    brightness = _number(row, "brightness")
    if brightness is None:
        return ""
    return "dark" if brightness < _DARK else "bright" if brightness > _BRIGHT else ""


def _colors(row: Row) -> str:
    cell = row.get("colors")
    names = [] if is_missing(cell) else [name for name in str(cell).split() if name in _PALETTE]
    return f", mostly {_list(names)}" if names else ""


def _camera(row: Row) -> str:
    """Words for the camera's movement, without a period; empty where it was not measured."""
    cell = row.get("cmotion")
    kind = "" if is_missing(cell) else str(cell)
    if kind == "static":
        return "the camera is static"
    if kind == "shake":
        return "the camera shakes"
    speeds = _speeds(row)
    if kind == "mixed":
        total = sum(speeds.values())
        parts = [_CAMERA[name] for name, speed in speeds.items() if total and speed >= _PART * total]
        slowly = " slowly" if max(speeds.values(), default=0) < _SLOW else ""
        return f"the camera {_list(parts)}{slowly}" if len(parts) > 1 else "the camera moves in several ways"
    if kind not in _CAMERA:
        return ""
    speed = speeds.get(kind)
    adverb = "" if speed is None else " slowly" if speed < _SLOW else " fast" if speed > _FAST else ""
    return f"the camera {_CAMERA[kind]}{adverb}"


def _speeds(row: Row) -> dict[str, float]:
    """Movement -> percent of the shorter side per second, of those that were measured."""
    axes = (
        ("camera_pan", "pan_right", "pan_left", 1.0),
        ("camera_tilt", "tilt_up", "tilt_down", 1.0),
        ("camera_zoom", "zoom_in", "zoom_out", _RADIUS),
        ("camera_roll", "roll_cw", "roll_ccw", 100 * math.radians(1) * _RADIUS),
    )
    speeds = {}
    for column, forward, backward, weight in axes:
        rate = _number(row, column)
        if rate:
            speeds[forward if rate > 0 else backward] = abs(rate) * weight
    return speeds


def _amount(row: Row) -> str:
    """Words for the amount of motion, of the camera or of what it shows."""
    flow = _number(row, "flow")
    if flow is None:
        return ""
    return (
        "hardly anything moves"
        if flow < _HARDLY
        else "there is much motion"
        if flow > _MUCH
        else "there is some motion"
    )


def _number(row: Row, name: str) -> float | None:
    cell = row.get(name)
    if is_missing(cell):
        return None
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _lab(rgb_N3: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.cvtColor(rgb_N3[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0], np.float32)


@cache
def _shades() -> tuple[list[str], NDArray[np.float32]]:
    names = [name for name, shades in _PALETTE.items() for _ in shades]
    return names, _lab(np.array([shade for shades in _PALETTE.values() for shade in shades], np.uint8))


def _nearest(points: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.asarray(((points[:, None] - centers[None]) ** 2).sum(2).argmin(1))
