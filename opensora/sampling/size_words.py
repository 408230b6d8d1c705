"""Sizes and lengths in words: "480p" at "16:9" is a height and a width in pixels, "4s" a number of frames.

The table of pixels is Open-Sora's (datasets/aspect.py). Open-Sora 1.x writes a ratio as height:width, people and
Open-Sora 2 as width:height: "16:9" is a wide picture here, and "h9:w16" or "w16:h9" say it in either order.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opensora.datasets import aspect
from opensora.datasets.aspect import Size
from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder
from opensora.log import logger
from opensora.models.build import pixel_steps
from opensora.models.frame_counts import nearest_frame_counts
from opensora.schema import SampleRun

OPEN_SORA_FPS = 24.0  # of its releases: their "2s" are 51 frames
NEAR, FAR = 0.03, 0.25  # a table's ratio that differs by more is mentioned, or refused


class ClipSize(NamedTuple):
    """The size of a run's clips."""

    num_frames: int
    image_size: Sequence[int]  # height, width in pixels
    fps: float  # frames per second of a video of which every `frame_interval`-th frame is made


def clip_size(
    run: SampleRun,
    value_of: Callable[[str], Any],
    vae: Callable[[], Autoencoder],
    model: Mapping[str, Any],
) -> ClipSize:
    """The run's size in numbers. Words are rounded to what the autoencoder and the patches hold, and a line says so.

    value_of: num_frames, image_size or fps from the run or, where it leaves one out, as the model was trained; raises
    ConfigError where both do. vae: builds the autoencoder. model: its config. Numbers stay as they are: what does not fit
    is refused where it is used. Raises ConfigError for words that mean nothing or contradict each other.
    """
    fps, image_size, num_frames = float(value_of("fps")), run.image_size, value_of("num_frames")
    if run.resolution is None and run.aspect_ratio is None:
        image_size = value_of("image_size")
    else:
        if image_size is not None:
            raise ConfigError(
                f"config: keys 'image_size', 'resolution', 'aspect_ratio': found {tuple(image_size)}, {run.resolution!r} and "
                f"{run.aspect_ratio!r}; allowed: pixels, or a resolution and a ratio; remove one of them"
            )
        size, remark = pixel_size(run.resolution, run.aspect_ratio, lambda: value_of("image_size"))
        steps = pixel_steps(vae(), model)
        image_size = fit_to_steps(size, steps)
        named = [str(word) for word in (run.resolution, run.aspect_ratio) if word is not None]
        logger().info("sampling: %s", _size_remark(" at ".join(named), size, image_size, steps, remark))
    frames = _frames_of_words(num_frames, fps / run.frame_interval)
    if frames is not None:
        rate, text = fps / run.frame_interval, num_frames
        num_frames = frames if vae().holds_frames(frames) else _nearest(nearest_frame_counts(vae(), frames), frames)
        rounding = "" if num_frames == frames else f"; the autoencoder holds {num_frames}, so the video has these"
        logger().info("sampling: %s is %d frames at %g frames per second%s", text, frames, rate, rounding)
    return ClipSize(num_frames, image_size, fps)


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


def _frames_of_words(num_frames: str | int, fps: float) -> int | None:
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


def _nearest(counts: Sequence[int], frames: int) -> int:
    """The count next to `frames`, the larger of two that are equally near."""
    return min(reversed(counts), key=lambda count: abs(count - frames))


def fit_to_steps(size: Size, steps: Sequence[int]) -> Size:
    """The size cut down to multiples of `steps` (rows, columns), as Open-Sora cuts it, and at least one of each."""
    height, width = (max(step, side // step * step) for side, step in zip(size, steps, strict=True))
    return height, width


def warn_of_cut_size(size: Size, steps: Sequence[int]) -> None:
    """A warning where the video will be smaller than the (height, width) of the request."""
    fitted = fit_to_steps(size, steps)
    if fitted != size:
        logger().warning("sampling: %s", _size_remark("image_size", size, fitted, steps))


def _size_remark(words: str, size: Size, fitted: Size, steps: Sequence[int], reason: str = "") -> str:
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
