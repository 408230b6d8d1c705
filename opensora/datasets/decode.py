"""Videos and images to frames, by seeking: only the frames requested are decoded, and one is in memory at a time.

Frames are named by their index on a grid of the file's mean frame rate, counted from the first frame. For a file of
constant rate that is the frame's number; where the rate varies, an index shows the frame on screen at that moment.
Layout: T frames, H W rows and columns, C colors (red, green, blue), uint8. Rotation flags are applied.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from opensora.errors import BadClip

if TYPE_CHECKING:
    from av import VideoFrame

Frames = NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif")

_BUFFER_BYTES = 1 << 18
_NO_SEEK_BELOW = 16  # indices: so near the start, decoding on is cheaper than a seek
_BACK_SECONDS = (0, 1, 4, 16)  # a seek may land after its target; then it is repeated this much earlier


@dataclass(frozen=True)
class VideoInfo:
    """Size, rate and length of a file, from its header and first frame."""

    path: str
    num_frames: int
    rate: Fraction  # frames per second
    height: int  # pixels, after rotation
    width: int  # pixels, after rotation

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def probe(path: str) -> VideoInfo:
    """Size, rate and length of a video or image. BadClip says why a file cannot be read."""
    with Video(path) as video:
        return video.info


def read_frames(path: str, indices: Sequence[int]) -> Frames:
    """The frames at `indices` (ascending, repeats allowed), [T, H, W, 3]. BadClip says why they cannot be read."""
    with Video(path) as video:
        return np.stack(list(video.frames(indices)))


class Video:
    """An open video or image. Use it in a `with` statement: the file is closed on the way out, errors included.

    num_frames: the number of frames counted on an earlier visit; it saves reading the whole file where the header does
    not count them (`counted_by_header` is False).
    """

    def __init__(self, path: str, num_frames: int | None = None) -> None:
        self.path = path
        self._num_frames = num_frames
        self._stack = ExitStack()

    def __enter__(self) -> "Video":
        try:
            self._file = self._stack.enter_context(_open_file(self.path))
            self._open()
            first = next(self._decoded(), None)
            if first is None:
                raise BadClip(f"{self.path}: holds no frame that can be decoded; make it again or remove the row")
            self._first_pts = first.pts
            self._quarter_turns = round(first.rotation / 90) % 4
            self.info = self._describe(first)
            return self
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def frames(self, indices: Sequence[int]) -> Iterator[Frames]:
        """Frames [H, W, 3] at ascending `indices`, one by one; several calls may be made, one after the other."""
        wanted = list(indices)
        if not wanted:
            return
        if wanted != sorted(wanted) or wanted[0] < 0:
            raise ValueError(f"indices must ascend from 0, not {wanted}")
        if wanted[-1] >= self.info.num_frames:
            have = self.info.num_frames
            raise BadClip(
                f"{self.path}: has {have} frame{'s' if have > 1 else ''}, {wanted[-1] + 1} are needed; "
                "use a longer clip, a smaller num_frames or frame_interval, or remove the row"
            )
        position, shown, last = 0, None, -1
        for number, frame in self._numbered_from(wanted[0]):
            while number > wanted[position]:  # the frame before this one was on screen at that index
                yield self._to_array(shown or frame)
                position += 1
                if position == len(wanted):
                    return
            shown, last = frame, self.index_at((frame.pts or 0) + (frame.duration or 0)) - 1
            last = max(last, number)
            while number == wanted[position]:
                yield self._to_array(frame)
                position += 1
                if position == len(wanted):
                    return
        for index in wanted[position:]:
            if shown is None or index > last + 1:  # one frame of slack for a rounded frame rate
                raise BadClip(
                    f"{self.path}: the data ends after frame {last}, frame {index} of {self.info.num_frames} is needed; "
                    "the file is truncated; copy it again or remove the row"
                )
            yield self._to_array(shown)

    def _open(self) -> None:
        import av

        self._file.seek(0)
        try:
            container = av.open(self._file, mode="r", buffer_size=_BUFFER_BYTES)
        except av.FFmpegError as error:
            raise BadClip(f"{self.path}: {_unreadable(self._file, error)}") from error
        self._container = self._stack.enter_context(container)
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise BadClip(f"{self.path}: holds {kinds} only; a video stream is needed; remove the row")
        self._stream = container.streams.video[0]

    def _decoded(self) -> "Iterator[VideoFrame]":
        """Decode on from where the container stands."""
        import av

        try:
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt:
                    raise BadClip(f"{self.path}: damaged data at {frame.time} s; copy the file again or remove the row")
                yield frame
        except av.FFmpegError as error:
            raise BadClip(
                f"{self.path}: cannot be decoded ({error.strerror}); it is truncated or damaged; "
                "copy it again or remove the row"
            ) from error

    def _describe(self, first: "VideoFrame") -> VideoInfo:
        stream = self._stream
        rate = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
        self._rate, self._time_base = rate, Fraction(stream.time_base or 1)
        count = stream.frames
        self.counted_by_header = bool(count)
        if not count:
            count = self._num_frames or self._count_packets()
        elif stream.duration:  # an edit list may hide some of the frames that the header counts
            count = min(count, max(1, round(stream.duration * self._time_base * rate)))
        height, width = first.height, first.width
        if self._quarter_turns % 2:
            height, width = width, height
        return VideoInfo(self.path, count, rate, height, width)

    def _count_packets(self) -> int:
        """Frames of a file whose header does not count them (Matroska, raw streams): packets, without decoding."""
        import av

        self._restart()
        packets, last_pts = 0, None
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    packets += 1
                    if packet.pts is not None:
                        last_pts = packet.pts if last_pts is None else max(last_pts, packet.pts)
        except av.FFmpegError as error:
            raise BadClip(f"{self.path}: cannot be read to its end ({error.strerror}); copy it again") from error
        if last_pts is None or self._first_pts is None:
            return max(1, packets)
        return self.index_at(last_pts) + 1

    def index_at(self, pts: int) -> int:
        """Index of the frame with this presentation time stamp, in units of the stream's time base."""
        return round((pts - (self._first_pts or 0)) * self._time_base * self._rate)

    def _restart(self) -> None:
        """Back to the first frame, for formats that cannot seek as well."""
        self._container.close()
        self._open()

    def _numbered_from(self, first: int) -> "Iterator[tuple[int, VideoFrame]]":
        """(index, frame) in order; the first index is not above `first`, unless the file begins later."""
        import av

        if self._first_pts is None:  # no time stamps, as in raw streams: count
            self._restart()
            yield from enumerate(self._decoded())
            return
        target = self._first_pts + int(first / self._rate / self._time_base)
        for seconds in _BACK_SECONDS if first >= _NO_SEEK_BELOW else ():
            try:
                self._container.seek(target - int(seconds / self._time_base), stream=self._stream, backward=True)
            except av.FFmpegError:
                break  # not a seekable format
            decoded = self._decoded()
            # Frames shown before the first key frame depend on data before the seek point, and may be damaged.
            key = next((frame for frame in decoded if frame.key_frame), None)
            if key is not None and key.pts is not None and self.index_at(key.pts) <= first:
                yield self.index_at(key.pts), key
                yield from self._numbered(decoded)
                return
        self._restart()
        yield from self._numbered(self._decoded())

    def _numbered(self, decoded: "Iterator[VideoFrame]") -> "Iterator[tuple[int, VideoFrame]]":
        for frame in decoded:
            if frame.pts is not None:
                yield self.index_at(frame.pts), frame

    def _to_array(self, frame: "VideoFrame") -> Frames:
        pixels: Frames = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return np.ascontiguousarray(np.rot90(pixels, self._quarter_turns)) if self._quarter_turns else pixels


def _open_file(path: str) -> BinaryIO:
    """Open by ourselves rather than by FFmpeg, which would take names with % or : for patterns and protocols."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
        if os.fstat(file.fileno()).st_size == 0:
            file.close()
            raise BadClip(f"{path}: the file is empty (0 bytes); copy it again or remove the row")
        return file
    except FileNotFoundError:
        raise BadClip(f"{path}: no such file; paths are relative to the manifest's folder; correct the path") from None
    except IsADirectoryError:
        raise BadClip(f"{path}: is a folder; a video or image file is needed; correct the path") from None
    except OSError as error:
        raise BadClip(f"{path}: cannot be opened ({error.strerror}); check its permissions") from error


def _unreadable(file: BinaryIO, error: Exception) -> str:
    """Why FFmpeg could not open it, in words that help."""
    file.seek(0)
    head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the video itself; run `git lfs pull`"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "is a text file, not a video; correct the path or remove the row"
    reason = getattr(error, "strerror", None) or str(error)
    return f"is not a readable video ({reason}); it is truncated or of another kind; copy it again or remove the row"
