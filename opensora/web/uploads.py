"""Limits of files that visitors send, checked before anything of them is decoded."""

import os
from dataclasses import dataclass

from opensora.datasets.decode import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.media_kind import open_container
from opensora.errors import BadClip


@dataclass(frozen=True)
class UploadLimits:
    """The most that is read."""

    megabytes: float = 200.0
    pixels: int = 4096 * 4096  # of a picture or a frame
    frames: int = 10_000
    seconds: float = 300.0


def upload_folder() -> str:
    """The folder into which gradio writes what visitors send."""
    from gradio.utils import get_upload_folder

    return get_upload_folder()


def check_upload(path: str, folder: str, limits: UploadLimits = UploadLimits()) -> str:
    """The path of a file that was sent and is within the limits; reads its header only.

    folder: of what visitors send; gradio looks as well (see serve.mount). Raises BadClip with a sentence that names no folder.
    """
    name, ending = os.path.basename(path), os.path.splitext(path)[1].lower()
    if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(folder), "")) or not os.path.isfile(path):
        raise BadClip(f"{name}: is no file that was sent; send it with the form, or upload it first")
    megabytes = os.path.getsize(path) / 1e6
    if megabytes > limits.megabytes:
        raise BadClip(
            f"{name}: has {megabytes:.0f} MB; at most {limits.megabytes:.0f} are allowed; shorten or shrink it"
        )
    if ending in IMAGE_SUFFIXES:
        width, height = _picture_size(path, name)
        frames, seconds = 1, 0.0
    elif ending in VIDEO_SUFFIXES:
        width, height, frames, seconds = _video_size(path, name)
    else:
        raise BadClip(
            f"{name}: not the name of a picture or video; allowed: {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}"
        )
    if width * height > limits.pixels:
        raise BadClip(f"{name}: has {width}x{height} pixels; at most {limits.pixels:,} are allowed; shrink it")
    if frames > limits.frames or seconds > limits.seconds:
        raise BadClip(
            f"{name}: has {frames:,} frames and {seconds:.0f} seconds; at most {limits.frames:,} frames and "
            f"{limits.seconds:.0f} seconds are allowed; cut it"
        )
    return path


def _picture_size(path: str, name: str) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:  # reads the header
            return image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise BadClip(f"{name}: no picture that can be read; send another file") from error


def _video_size(path: str, name: str) -> tuple[int, int, int, float]:
    """Width, height, frames and seconds, as the header has them."""
    import av

    with open(path, "rb") as file:
        try:
            container = open_container(file)
        except (av.FFmpegError, BadClip, OSError, ValueError) as error:
            raise BadClip(f"{name}: no video that can be read; send another file") from error
        with container:
            if not container.streams.video:
                raise BadClip(f"{name}: has no pictures, only sound or text; send another file")
            stream = container.streams.video[0]
            lengths = [float(stream.duration * stream.time_base)] if stream.duration and stream.time_base else []
            lengths += [container.duration / 1e6] if container.duration else []
            seconds = max(lengths, default=0.0)
            frames = stream.frames or round(seconds * float(stream.average_rate or 0))
            return stream.width, stream.height, frames, seconds
