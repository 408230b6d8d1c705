"""Formats that finished videos are written in, by the names people use for them.

All keep the run's settings inside the file, where `read_settings` finds them. The same frames and settings are the same
bytes, on every machine with the same libraries. Layout: T frames, H W rows and columns, RGB bytes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opensora import files
from opensora.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

CRF = 18  # x264's constant quality, 0 (lossless) to 51; 18 is commonly taken as visually lossless
KEY = "opensora"  # of the settings in a picture
STEP = 10  # milliseconds, in which GIF counts
PALETTE_FRAMES = 16  # of a video, from which the colors of its GIF are taken
SHORTEST = 20  # milliseconds; browsers slow down a GIF of shorter frames


@dataclass(frozen=True)
class VideoFormat:
    """A container and a codec of FFmpeg; without a codec, pictures that Pillow writes."""

    ending: str  # of a file name; "" is a folder
    codec: str = ""
    options: Mapping[str, str] = field(default_factory=dict)  # of the encoder
    tag: str = ""  # of the codec, where players want another than FFmpeg's


# One thread, for encoders' decisions depend on how many there are; x264 without its macroblock tree, which with B frames
# gives other bytes now and then for the same frames; x265 without its assembly, which writes beyond its buffers for frames
# of fewer than 32 rows or columns (in PyAV 18.1, as glibc reports); without it, it takes 1.6 times the time.
FORMATS = {
    "mp4": VideoFormat(".mp4", "libx264", {"crf": str(CRF), "threads": "1", "x264-params": "mbtree=0"}),
    "hevc": VideoFormat(
        ".mp4", "libx265", {"crf": "20", "x265-params": "pools=none:frame-threads=1:asm=0:log-level=none"}, tag="hvc1"
    ),
    "webm": VideoFormat(
        ".webm", "libvpx-vp9", {"crf": "24", "b:v": "0", "threads": "1", "deadline": "good", "cpu-used": "2"}
    ),
    "av1": VideoFormat(".webm", "libsvtav1", {"crf": "25", "preset": "6", "svtav1-params": "lp=1"}),
    "gif": VideoFormat(".gif"),
    "png": VideoFormat(""),
}


def check_encoder(save_format: str) -> None:
    """ConfigError where this machine's FFmpeg lacks the encoder: PyAV's wheels have all, a system's FFmpeg may not."""
    from av.codec import Codec

    name = FORMATS[save_format].codec
    try:
        if name:
            Codec(name, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError
        raise ConfigError(
            f"config: key 'save_format': {save_format!r} needs the encoder {name}, which the FFmpeg of this PyAV lacks; allowed: "
            "gif and png always; take one of them, or install PyAV from its wheel: pip install --force-reinstall av"
        ) from None


def write_frames(
    frames_THWC: np.ndarray, path: Path, save_format: str, fps: float, settings: Mapping[str, Any] | None
) -> None:
    """Write all frames to `path`, which for "png" is a new folder with a picture for each. Raises OSError, FFmpegError.

    settings: kept inside the file; None: nothing. Codecs with halved color planes need even sides.
    """
    chosen = FORMATS[save_format]
    if save_format == "png":
        path.mkdir(parents=True)
        for number, frame_HWC in enumerate(frames_THWC):
            write_png(frame_HWC, path / f"{number:05d}.png", settings)
    elif save_format == "gif":
        _write_gif(frames_THWC, path, fps, settings)
    else:
        _encode(frames_THWC, path, chosen, fps, settings)


def write_png(frame_HWC: np.ndarray, path: Path, settings: Mapping[str, Any] | None) -> None:
    """Write one picture."""
    from PIL import Image

    Image.fromarray(frame_HWC).save(path, format="PNG", pnginfo=None if settings is None else _png_text(settings))


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings inside a video, picture or folder of pictures, else those of the .json next to it.

    Raises DataError for a file without any, or one that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        pictures = sorted(path.glob("*.png"))
        if not pictures:
            raise DataError(
                f"{path}: holds no png; allowed: a video, a picture or a folder of pictures made by opensora"
            )
        path = pictures[0]
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a video or picture that opensora sample made")
    note = path if path.suffix == ".json" else path.with_suffix(".json")
    text = None if path.suffix == ".json" else _embedded(path)
    if text is None and note.is_file():
        text = note.read_text(encoding="utf-8", errors="replace")
    try:
        settings = json.loads(text or "")
        if isinstance(settings, dict) and "prompt" in settings:
            return settings
    except ValueError:
        pass
    raise DataError(
        f"{path}: holds no settings of opensora sample, and {note.name} is not next to it; the file was made or written "
        "again by another program"
    )


def as_text(settings: Mapping[str, Any]) -> str:
    """JSON in one line. Paths may hold bytes that are not UTF-8, which Python carries as lone surrogates: they become
    escapes of JSON, from which a reader gets the same text back.
    """
    return json.dumps(settings, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _encode(
    frames_THWC: np.ndarray, path: Path, chosen: VideoFormat, fps: float, settings: Mapping[str, Any] | None
) -> None:
    import av
    from av.video.reformatter import Colorspace

    os.putenv("SVT_LOG", "1")  # errors only; SVT-AV1 offers no other way to be quiet
    _, height, width, _ = frames_THWC.shape
    # bitexact: without a random identifier and the version of FFmpeg
    options = {"fflags": "+bitexact"} | ({"movflags": "faststart"} if chosen.ending == ".mp4" else {})
    with av.open(files.ffmpeg_path(path), "w", format=chosen.ending.removeprefix("."), options=options) as container:
        if settings is not None:
            container.metadata["comment"] = as_text(settings)
        rate = Fraction(fps).limit_denominator(1001)
        stream: Any = container.add_stream(chosen.codec, rate=rate, options=dict(chosen.options))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # BT.601 and said so: players read the tag, and readers that ignore it (OpenCV) assume just that.
        context = stream.codec_context
        context.color_range, context.colorspace = 1, 6
        if chosen.tag:
            context.codec_tag = chosen.tag
        for frame_HWC in frames_THWC:
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU601)))
        container.mux(stream.encode())


def _write_gif(frames_THWC: np.ndarray, path: Path, fps: float, settings: Mapping[str, Any] | None) -> None:
    """256 colors for the whole video. Times are rounded so that their sum stays right, unless frames are too short."""
    from PIL import Image

    times = [round(1000 / fps * number / STEP) * STEP for number in range(len(frames_THWC) + 1)]
    lengths = [max(SHORTEST, end - start) for start, end in pairwise(times)]
    pictures = [Image.fromarray(frame_HWC) for frame_HWC in frames_THWC]
    # One palette for the whole video: with one for each frame, still parts would flicker.
    sampled = frames_THWC[:: max(1, len(frames_THWC) // PALETTE_FRAMES)]
    palette = Image.fromarray(sampled.reshape(-1, *sampled.shape[2:])).quantize(256)
    first, *rest = (picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures)
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=lengths,
        loop=0,
        comment=b"" if settings is None else as_text(settings).encode(),
        optimize=False,
    )


def _png_text(settings: Mapping[str, Any]) -> "PngInfo":
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt(KEY, as_text(settings))
    return text


def _embedded(path: Path) -> str | None:
    """The text inside a file; None for a file without one. Raises DataError."""
    import av
    from PIL import Image, UnidentifiedImageError

    try:
        if path.suffix.lower() in (".png", ".gif"):
            with Image.open(path) as image:
                text = image.info.get(KEY, image.info.get("comment"))
                return text.decode(errors="replace") if isinstance(text, bytes) else text
        with av.open(files.ffmpeg_path(path)) as container:
            return next((value for key, value in container.metadata.items() if key.lower() == "comment"), None)
    except (OSError, av.FFmpegError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); give a video or picture that opensora sample made"
        ) from None
