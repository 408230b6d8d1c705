"""The size and length of a run's clips, from numbers or words to what the model's parts hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from opensora.datasets.aspect import Size
from opensora.interfaces import Autoencoder
from opensora.log import logger
from opensora.models.build import pixel_steps
from opensora.models.frame_counts import nearest_frame_counts
from opensora.sampling.size_words import fit_to_steps, frames_of_words, pixel_size, size_remark
from opensora.schema import SampleRun


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
    is refused where it is used. `check_words` finds words that mean nothing.
    """
    fps, image_size, num_frames = float(value_of("fps")), run.image_size, value_of("num_frames")
    if run.resolution is None and run.aspect_ratio is None:
        image_size = value_of("image_size")
    else:
        size, remark = pixel_size(run.resolution, run.aspect_ratio, lambda: value_of("image_size"))
        steps = pixel_steps(vae(), model)
        image_size = fit_to_steps(size, steps)
        named = [str(word) for word in (run.resolution, run.aspect_ratio) if word is not None]
        logger().info("sampling: %s", size_remark(" at ".join(named), size, image_size, steps, remark))
    frames = frames_of_words(num_frames, fps / run.frame_interval)
    if frames is not None:
        rate, text = fps / run.frame_interval, num_frames
        num_frames = frames if vae().holds_frames(frames) else _nearest(nearest_frame_counts(vae(), frames), frames)
        rounding = "" if num_frames == frames else f"; the autoencoder holds {num_frames}, so the video has these"
        logger().info("sampling: %s is %d frames at %g frames per second%s", text, frames, rate, rounding)
    return ClipSize(num_frames, image_size, fps)


def warn_of_cut_size(size: Size, steps: Sequence[int]) -> None:
    """A warning where the video will be smaller than the (height, width) of the request."""
    fitted = fit_to_steps(size, steps)
    if fitted != size:
        logger().warning("sampling: %s", size_remark("image_size", size, fitted, steps))


def _nearest(counts: Sequence[int], frames: int) -> int:
    """The count next to `frames`, the larger of two that are equally near."""
    return min(reversed(counts), key=lambda count: abs(count - frames))
