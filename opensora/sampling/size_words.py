"""Sizes and lengths in words: "480p" at "16:9" is a height and a width in pixels, "4s" a number of frames.

The table of pixels is Open-Sora's (datasets/aspect.py). Open-Sora 1.x writes a ratio as height:width, people and
Open-Sora 2 as width:height: "16:9" is a wide picture here, and "h9:w16" or "w16:h9" say it in either order.
"""

import math
import re
from collections.abc import Callable, Sequence

from opensora.datasets import aspect
from opensora.datasets.aspect import Size
from opensora.errors import ConfigError
from opensora.schema import SampleRun

OPEN_SORA_FPS = 24.0  # of its releases: their "2s" are 51 frames
NEAR, FAR = 0.03, 0.25  # a table's ratio that differs by more is mentioned, or refused


def check_words(run: SampleRun) -> None:
    """ConfigError for words of a run that mean nothing, or that contradict each other; imports nothing heavy."""
    if run.image_size is not None and (run.resolution is not None or run.aspect_ratio is not None):
        raise ConfigError(
            f"config: keys 'image_size', 'resolution', 'aspect_ratio': found {tuple(run.image_size)}, {run.resolution!r} and "
            f"{run.aspect_ratio!r}; allowed: pixels, or a resolution and a ratio; remove one of them"
        )
    if run.aspect_ratio is not None:
        ratio_of(run.aspect_ratio)
    if run.resolution is not None:
        name = str(run.resolution).lower()
        if name not in aspect.tables() and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", name):
            names = ", ".join(name for name in aspect.tables() if not name.endswith("_16d"))
            raise ConfigError(
                f"config: key 'resolution': found {run.resolution!r}; allowed: {names}, or HEIGHTxWIDTH; name one of them"
            )
    if run.num_frames is not None:
        frames_of_words(run.num_frames, OPEN_SORA_FPS)


def ratio_of(written: str) -> float:
    """Height / width of "16:9" (width:height), "w16:h9" or "h9:w16"; ConfigError for anything else."""
    number = r"(\d+(?:\.\d+)?)"
    plain = re.fullmatch(f"{number}:{number}", written.strip())
    marked = re.fullmatch(f"([wh]){number}:([wh]){number}", written.strip().lower())
    sides: dict[str, float] = {}
    if plain is not None:
        sides = {"w": float(plain[1]), "h": float(plain[2])}
    elif marked is not None:
        sides = {marked[1]: float(marked[2]), marked[3]: float(marked[4])}
    if len(sides) != 2 or not min(sides.values()) > 0:
        raise ConfigError(
            f"config: key 'aspect_ratio': found {written!r}; allowed: WIDTH:HEIGHT such as 16:9 for a wide picture, or marked "
            "sides such as w16:h9 and h9:w16, Open-Sora's order; correct it"
        )
    return sides["h"] / sides["w"]


def pixel_size(
    resolution: str | int | None, aspect_ratio: str | None, trained: Callable[[], Sequence[int]]
) -> tuple[Size, str]:
    """(height, width) of a resolution's name and a ratio, and a remark where the table lacks the ratio.

    One of the two may be None: `trained`, the model's own (height, width), stands for it. ConfigError for an unknown
    name, and for a ratio far from all of the table.
    """
    height, width = (1.0, 1.0) if resolution is not None and aspect_ratio is not None else map(float, trained())
    wanted = height / width if aspect_ratio is None else ratio_of(aspect_ratio)
    if resolution is None:
        area = height * width
        return (max(1, round(math.sqrt(area * wanted))), max(1, round(math.sqrt(area / wanted)))), ""
    name = str(resolution).lower()
    sizes = aspect.resolution(name).sizes
    nearest = aspect.closest_ratio(wanted, 1.0, name)
    size = sizes[nearest]
    off = abs(size[0] / size[1] / wanted - 1)
    if off > FAR:
        raise ConfigError(
            f"config: keys 'resolution', 'aspect_ratio': found {resolution} at {aspect_ratio or f'h{height:g}:w{width:g}'}; "
            f"allowed: {', '.join(_ratios(name))} (width:height); change one of them, or give image_size"
        )
    remark = f"Open-Sora's table has no such ratio at {name}, the nearest is {_size_text(size)}" if off > NEAR else ""
    return size, remark


def frames_of_words(num_frames: str | int, fps: float) -> int | None:
    """Frames of "4s" at `fps`, or of "2x", which is 2 times 51 frames; None for a plain number.

    At 24 frames per second Open-Sora's names mean the lengths its models were trained at: 2s is 51 frames, 4s 102, and so
    on. ConfigError for other texts and for lengths that are no video.
    """
    if isinstance(num_frames, int):
        return None
    text = num_frames.strip().lower()
    seconds = re.fullmatch(r"(\d+(?:\.\d+)?)\s*s(?:ec|econds?)?", text)
    if text in aspect.NUM_FRAMES and (text.endswith("x") or fps == OPEN_SORA_FPS):
        return aspect.NUM_FRAMES[text]
    if seconds is None or float(seconds[1]) <= 0:
        raise ConfigError(
            f"config: key 'num_frames': found {num_frames!r}; allowed: a number of frames, or seconds such as 4s; correct it"
        )
    return max(1, round(float(seconds[1]) * fps))


def fit_to_steps(size: Size, steps: Sequence[int]) -> Size:
    """The size cut down to multiples of `steps` (rows, columns), as Open-Sora cuts it, and at least one of each."""
    height, width = (max(step, side // step * step) for side, step in zip(size, steps, strict=True))
    return height, width


def size_remark(words: str, size: Size, fitted: Size, steps: Sequence[int], reason: str = "") -> str:
    """The sentence that names the size a run makes, and the reason where that is not the size of the table."""
    parts = [f"{words} is {_size_text(size)}"]
    if reason:
        parts.append(reason)
    if size != fitted:
        multiples = " and ".join(dict.fromkeys(f"{step}" for step in steps))
        parts.append(
            f"autoencoder and patches take multiples of {multiples} pixels, so it becomes {_size_text(fitted)}"
        )
    return "; ".join(parts)


def _ratios(name: str) -> list[str]:
    """The ratios people write that a resolution has, as width:height."""
    sizes = {f"{float(ratio):.2f}" for ratio in aspect.resolution(name).sizes}
    written = [ratio.split(":") for ratio, key in aspect.ratio_names().items() if f"{float(key):.2f}" in sizes]
    return [f"{width}:{height}" for height, width in written]


def _size_text(size: Size) -> str:
    return f"{size[0]} rows of {size[1]} pixels"
