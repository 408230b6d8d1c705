"""PictureFile: a picture that Pillow reads, of one frame or animated (GIF, PNG, WebP, AVIF).

Frames come as a browser shows them: turned and mirrored by EXIF, transparent parts over white, 16 bits as 8.
"""

import io
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from opensora.datasets.frame_times import uneven
from opensora.datasets.orientation import Orientation
from opensora.datasets.video_info import (
    FileFacts,
    Frames,
    MediaDetails,
    Shown,
    VideoInfo,
    over_white,
    shrunk,
)
from opensora.errors import BadClip

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")
_ANIMATED = ("PNG", "GIF", "WEBP", "AVIF")  # the further pictures of others are pages or depth
_STILL_RATE = Fraction(25)  # frames per second of a single picture, as FFmpeg has it
_EXIF_ORIENTATION = 274
_SHORTEST = 10  # milliseconds; browsers show a frame of at most this length for ...
_INSTEAD = 100  # ... this long


class PictureFile:
    """An open picture. `facts` are those of an earlier visit, or None."""

    def __init__(self, path: str, file: BinaryIO, facts: FileFacts | None) -> None:
        self.path, self.facts = path, facts
        self._file = file
        image = self._open()
        self._orientation = _orientation(image)
        self._codec, self._mode = (image.format or "").lower(), image.mode
        self.info = self._describe(image)

    def numbered_from(self, first: int) -> Iterator[Shown]:
        """Frames in order, from the start: each is made from the one before it."""
        if self.facts is None:
            yield Shown(0, 0, self._open())
            return
        image, times = self._open(), self.facts.times
        for number in range(len(times) - 1):
            self._load(image, number)
            begin, end = (round(time * self.info.rate) for time in times[number : number + 2])
            yield Shown(begin, max(begin, end - 1), image.copy())  # the next one is drawn over it

    def details(self) -> MediaDetails:
        """Facts about the coding of the picture."""
        times = [float(time) for time in self.facts.times] if self.facts else []
        return MediaDetails(
            codec=self._codec,
            pix_fmt=self._mode,
            rotation=self._orientation.degrees,
            pixel_aspect=1.0,
            variable_rate=uneven(times, unit=0.001),
            audio=False,
            bitrate=None,
        )

    def pixels(self, image: "Image.Image", widest: int | None = None) -> Frames:
        """The frame that the picture stands at, as it is shown, [H, W, 3]. widest: shrink a wider one to this width."""
        try:
            shown = self._orientation.apply(_rgb(image))
            size = shrunk(shown.shape[0], shown.shape[1], widest)
            return shown if size == shown.shape[:2] else _resize(shown, *size)
        except ValueError as error:
            raise BadClip(f"{self.path}: {error}; convert it to png or remove the row") from error

    def _open(self) -> "Image.Image":
        from PIL import Image

        self._file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd tags
            try:
                data = io.BytesIO(self._file.read())
                image = Image.open(data, formats=_FORMATS)
                if image.format == "PNG":  # loading it does not compare the checksums of its pixels
                    image.verify()
                    image = Image.open(data, formats=_FORMATS)
            except Image.DecompressionBombError as error:
                raise BadClip(f"{self.path}: is too large ({error}); shrink it or remove the row") from error
            except Exception as error:  # decoders of damaged pictures raise errors of many types
                raise BadClip(self._unreadable(error)) from error
        self._load(image, 0)
        return image

    def _load(self, image: "Image.Image", number: int) -> None:
        try:
            if number:
                image.seek(number)
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            raise BadClip(self._unreadable(error)) from error

    def _unreadable(self, error: Exception) -> str:
        return (
            f"{self.path}: cannot be decoded ({type(error).__name__}: {error}); it is truncated or damaged; "
            "copy it again or remove the row"
        )

    def _describe(self, image: "Image.Image") -> VideoInfo:
        stored = image.height, image.width
        frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
        if frames > 1:
            self.facts = self.facts or self._read_to_the_end(image, frames)
        else:
            self.facts = None
        count, rate = (self.facts.num_frames, self.facts.rate) if self.facts else (1, _STILL_RATE)
        return VideoInfo(self.path, count, rate, *self._orientation.size(*stored), *stored)

    def _read_to_the_end(self, image: "Image.Image", frames: int) -> FileFacts:
        """The times of an animation's frames, which are known as they are decoded."""
        times = [Fraction(0)]
        for number in range(frames):
            self._load(image, number)
            duration = float(image.info.get("duration") or 0)
            shown = Fraction(duration if duration > _SHORTEST else _INSTEAD).limit_denominator(1000)
            times.append(times[-1] + shown / 1000)
        return FileFacts(frames, frames / times[-1], times=tuple(times))


def _orientation(image: "Image.Image") -> Orientation:
    try:
        return Orientation.of_exif(image.getexif().get(_EXIF_ORIENTATION))
    except Exception:  # the picture is sound although its tags are not
        return Orientation()


def _resize(picture_HWC: Frames, height: int, width: int) -> Frames:
    from PIL import Image

    return np.asarray(Image.fromarray(picture_HWC).resize((width, height), Image.Resampling.BOX))


def _rgb(image: "Image.Image") -> Frames:
    """[H, W, 3] of a picture of any mode; ValueError for one whose range of values is not known."""
    if image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "whole numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind} of 32 bits; 8 and 16 bits are read")
    if image.has_transparency_data:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))  # a copy: Pillow's own is read-only
