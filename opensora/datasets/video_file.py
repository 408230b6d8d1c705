"""VideoFile: a file that FFmpeg reads, by seeking; only the frames requested are decoded, one in memory at a time.

Of several video streams the film is taken, not a cover picture. Frames come as a player shows them: square pixels,
turned and mirrored by the display matrix, over white where they are transparent.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from opensora.datasets.frame_times import DEPTH, PacketTimes, first_of, in_order, likely_rate, uneven
from opensora.datasets.media_kind import has_fragments, open_container, unreadable
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
    from av import FFmpegError, Packet, VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

_BUFFER_BYTES = 1 << 18
_NO_SEEK_BELOW = 16  # indices: so near the start, decoding on is cheaper than a seek
_BACK_SECONDS = (0, 1, 4, 16)  # a seek may land after its target; then it is repeated this much earlier
_PACKETS_OF_ORDER = 32  # among that many, a stream with B-frames has times that do not ascend
_JUMP_SECONDS = 10  # a greater gap in a broadcast stream is a new clock, as for ffmpeg, or a damaged time
_LONGEST_SECONDS = 3600  # no frame of any other format is shown longer; its time is damaged
# In an MPEG program stream, frames of a pack of 2048 bytes share one time: a seek into small frames may miss by several.
_BYTES_OF_SHARED_TIME = 2 * 2048
_WIDEST_PIXEL = 10  # sides of a pixel: beyond it the aspect ratio is nonsense

# Values of AVColorSpace; swscale refuses all but _SPACES.
_UNSPECIFIED, _BT2020_NCL, _BT2020_CL = 2, 9, 10
_SPACES = {0, 1, _UNSPECIFIED, 4, 5, 6, 7, _BT2020_NCL}
_OTHER_SPACES = {8: "YCgCo", 11: "SMPTE 2085", 12: "derived from primaries", 13: "derived from primaries", 14: "ICtCp"}


class VideoFile:
    """An open video. `facts` are those of an earlier visit, or None; `threads` and `strict` are those of decode.Video."""

    def __init__(
        self,
        path: str,
        file: BinaryIO,
        stack: ExitStack,
        facts: FileFacts | None,
        *,
        threads: int = 1,
        strict: bool = False,
    ) -> None:
        self.path, self.facts = path, facts
        self._file, self._stack = file, stack
        self._threads, self._strict = threads, strict
        self._scaler: VideoReformatter | None = None
        self._packets: PacketTimes | None = None
        self._open()
        first = self._first_frame()
        self._first_pts = first.pts
        self.info = self._describe(first)

    def details(self) -> MediaDetails:
        """Facts about the coding; where no index lists all frames, the file is read to its end."""
        stream, context = self._stream, self._stream.codec_context
        listed = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
        times = listed if len(listed) >= stream.frames > 0 and self.facts is None else sorted(self._read_packets().pts)
        total = self._packets.bytes * 8 / self.info.seconds if self._packets is not None else None
        return MediaDetails(
            codec=context.name,
            pix_fmt=context.pix_fmt or "",
            rotation=self._orientation.degrees,
            pixel_aspect=float(self._pixel_aspect()),
            variable_rate=not self._by_order and uneven(times, unit=1),
            audio=bool(self._container.streams.audio),
            bitrate=round(stream.bit_rate or total or self._container.bit_rate) or None,
        )

    def numbered_from(self, first: int) -> Iterator[Shown]:
        """Frames in order; the first is not after index `first`, unless the file begins later."""
        if self._by_order:
            self._restart()
            for number, frame in enumerate(self._decoded()):
                yield Shown(number, number, frame)
            return
        last = -1
        for frame in self._from(first):
            number = last + 1 if frame.pts is None else self.index_at(frame.pts)
            last = max(number, self.index_at((frame.pts or 0) + (frame.duration or 0)) - 1)
            yield Shown(number, last, frame)

    def pixels(self, frame: "VideoFrame", widest: int | None = None) -> Frames:
        """One frame as it is shown, [H, W, 3]; BadClip when its size or its colors are not those of the file.

        widest: shrink a wider one to this width.
        """
        orientation = self._orientation if frame.rotation == self._angle else _orientation(frame)
        size = self._square_size(frame)
        wanted = self.info.height, self.info.width
        if orientation.size(*size) != wanted:
            shown = orientation.size(*size)
            if abs(shown[0] * wanted[1] - shown[1] * wanted[0]) > max(*shown, *wanted):
                seconds = float(((frame.pts or 0) - (self._first_pts or 0)) * self._time_base)
                raise BadClip(
                    f"{self.path}: the picture changes from {wanted[1]}x{wanted[0]} to {shown[1]}x{shown[0]} pixels at "
                    f"{seconds:.2f} s; one size is needed; cut the video there or remove the row"
                )
            size = orientation.size(*wanted)
        smaller = shrunk(*wanted, widest)
        if smaller != wanted:
            return orientation.apply(self._rgb(frame, *orientation.size(*smaller), interpolation="AREA"))
        return orientation.apply(self._rgb(frame, *size))

    def packets(self, first: int, last: int) -> "list[Packet[VideoStream]] | None":
        """The packets of frames `first` to `last` (exclusive), in the order of the file.

        None where they do not begin with a key frame and lie together. They are of use until frames are read again.
        """
        import av

        if self._by_order or self._times_as_stored:
            return None
        packets: list[Packet[VideoStream]] = []
        try:
            for packet in self._packets_from(first):
                number = first - 1 if packet.pts is None else self.index_at(packet.pts)
                if packets and not first <= number < last:
                    break
                if packets or (number == first and packet.is_keyframe):
                    packets.append(packet)
                elif number == first:
                    break
        except av.FFmpegError:
            return None
        numbers = sorted(self.index_at(packet.pts or 0) for packet in packets)
        return packets if numbers == list(range(first, last)) else None

    def _packets_from(self, first: int) -> "Iterator[Packet[VideoStream]]":
        """Packets from a key frame that is not after index `first`, or from the start of the file."""
        target = (self._first_pts or 0) + math.ceil(first / self._rate / self._time_base)
        for seconds in _BACK_SECONDS if first >= _NO_SEEK_BELOW else ():
            self._container.seek(target - int(seconds / self._time_base), stream=self._stream, backward=True)
            packets = self._container.demux(self._stream)
            key = next((packet for packet in packets if packet.is_keyframe), None)
            if key is not None and key.pts is not None and self.index_at(key.pts) <= first:
                yield key
                yield from packets
                return
        self._restart()
        yield from self._container.demux(self._stream)

    def index_at(self, pts: int) -> int:
        """Index of the frame with this presentation time stamp, in units of the stream's time base."""
        return round((pts - (self._first_pts or 0)) * self._time_base * self._rate)

    def _open(self) -> None:
        import av
        from av.codec.context import ThreadType

        self._file.seek(0)
        try:
            # Titles may be in any encoding; nothing here reads them.
            container = open_container(self._file, buffer_size=_BUFFER_BYTES, metadata_errors="replace")
        except av.FFmpegError as error:
            raise BadClip(f"{self.path}: {unreadable(self._file, error)}") from error
        self._container = self._stack.enter_context(container)
        self._stream = self._film()
        context = self._stream.codec_context
        # To that option commands of H.264 on frames before the file, which players pass over, are damage as well.
        if (
            self._strict and context.name != "h264"
        ) or context.name == "mjpeg":  # half a picture would be filled with gray
            context.options = {"err_detect": "explode"}
        # Threads that share a frame do not mark it where parts are missing.
        if self._threads > 1 or self._strict:
            context.thread_type, context.thread_count = ThreadType.FRAME, self._threads

    def _film(self) -> "VideoStream":
        """The stream that a player shows: no cover picture; marked as default, of the largest picture, the first."""
        from av.stream import Disposition

        streams = self._container.streams
        picture = Disposition.attached_pic | Disposition.timed_thumbnails
        films = [stream for stream in streams.video if not stream.disposition & picture]
        if not films:
            kinds: list[str] = sorted({stream.type for stream in streams} - {"video"}) or ["nothing"]
            kinds += ["a cover picture"] * bool(streams.video)
            raise BadClip(f"{self.path}: holds {', '.join(kinds)} only; a video stream is needed; remove the row")
        known = [stream for stream in films if stream.codec_context is not None]
        if not known:
            raise BadClip(
                f"{self.path}: no decoder for its video stream; H.264, H.265, VP9, AV1 and the like are read; convert it "
                "or remove the row"
            )

        def rank(stream: "VideoStream") -> tuple[bool, int]:
            size = stream.codec_context
            return bool(stream.disposition & Disposition.default), size.width * size.height

        return max(known, key=rank)

    def _first_frame(self) -> "VideoFrame":
        """The first frame; on the way, find out if the packets carry the times at which frames are shown."""
        import av

        first, times = None, []
        context = self._stream.codec_context
        try:
            for packet in self._container.demux(self._stream):
                times.append(packet.pts)
                first = first or next(iter(packet.decode()), None)
                if first and (not context.has_b_frames or len(times) >= _PACKETS_OF_ORDER):
                    break
        except av.FFmpegError as error:
            if first is None:
                raise BadClip(self._undecodable(error)) from error
        if first is None:
            raise BadClip(f"{self.path}: holds no frame that can be decoded; make it again or remove the row")
        known = [time for time in times if time is not None]
        # Stored in another order than shown, and numbered as stored: AVI does that.
        self._times_as_stored = bool(context.has_b_frames) and len(known) > 2 and known == sorted(known)
        return self._sound(first)

    def _decoded(self) -> "Iterator[VideoFrame]":
        """Decode on from where the container stands."""
        import av

        try:
            for frame in self._container.decode(self._stream):
                yield self._sound(frame)
        except av.FFmpegError as error:
            raise BadClip(self._undecodable(error)) from error

    def _sound(self, frame: "VideoFrame") -> "VideoFrame":
        if frame.is_corrupt:
            raise BadClip(f"{self.path}: damaged data at {frame.time} s; copy the file again or remove the row")
        space = int(frame.colorspace)
        if space in _OTHER_SPACES:
            raise BadClip(
                f"{self.path}: its color matrix is {_OTHER_SPACES[space]}; BT.601, BT.709 and BT.2020 are read; "
                "convert it or remove the row"
            )
        if space not in _SPACES:
            frame.colorspace = _BT2020_NCL if space == _BT2020_CL else _UNSPECIFIED
        return frame

    def _undecodable(self, error: "FFmpegError") -> str:
        return (
            f"{self.path}: cannot be decoded ({error.strerror}); it is truncated or damaged; "
            "copy it again or remove the row"
        )

    def _describe(self, first: "VideoFrame") -> VideoInfo:
        stream = self._stream
        self._rate = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
        self._time_base = Fraction(stream.time_base or 1)
        if self._is_counted():
            count, self.facts = stream.frames, None
            if stream.duration:  # an edit list may hide some of the frames that the header counts
                count = min(count, max(1, round(stream.duration * self._time_base * self._rate)))
        else:
            self.facts = self.facts or self._read_to_the_end()
            count, self._rate = self.facts.num_frames, self.facts.rate
        self._by_order = self._first_pts is None or (self.facts is not None and self.facts.by_order)
        self._orientation, self._angle = _orientation(first), first.rotation
        shown = self._orientation.size(*self._square_size(first))
        return VideoInfo(self.path, count, self._rate, *shown, first.height, first.width)

    def _is_counted(self) -> bool:
        """True where the header counts all frames of the file."""
        stream, name = self._stream, self._container.format.name
        if not stream.frames:
            return False
        if "mp4" in name:
            return not has_fragments(self._file)
        if name == "avi":  # a recording that was cut off has a stale count; its index has every frame
            return abs(len(stream.index_entries) - stream.frames) <= 1
        return True

    def _read_to_the_end(self) -> FileFacts:
        """Count the frames of a file whose header does not (Matroska, raw streams): packets, without decoding."""
        packets, name = self._read_packets(), self._container.format.name
        pairs = itertools.chain(itertools.pairwise(packets.dts), itertools.pairwise(sorted(packets.pts)))
        jump = max((abs(after - before) for before, after in pairs), default=0)
        new_clock = jump * self._time_base > (_JUMP_SECONDS if name in ("mpeg", "mpegts") else _LONGEST_SECONDS)
        shared = name == "mpeg" and packets.bytes < packets.count * _BYTES_OF_SHARED_TIME
        if not packets.pts or self._first_pts is None or new_clock or shared:
            return FileFacts(max(1, packets.count), self._rate, by_order=True)
        self._rate = likely_rate(self._rate, sorted(packets.pts), self._time_base)
        return FileFacts(max(1, self.index_at(max(packets.pts)) + 1), self._rate)

    def _read_packets(self) -> PacketTimes:
        """Sizes and times of all packets, kept for the next call."""
        import av

        if self._packets is not None:
            return self._packets
        self._restart()
        self._packets = packets = PacketTimes()
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and not packet.is_discard:
                    packets.count, packets.bytes = packets.count + 1, packets.bytes + packet.size
                    packets.pts += [] if packet.pts is None else [packet.pts]
                    packets.dts += [] if packet.dts is None else [packet.dts]
        except av.FFmpegError as error:
            raise BadClip(f"{self.path}: cannot be read to its end ({error.strerror}); copy it again") from error
        return packets

    def _restart(self) -> None:
        """Back to the first frame, for formats that cannot seek as well."""
        self._container.close()
        self._open()

    def _from(self, first: int) -> "Iterator[VideoFrame]":
        """Frames from a key frame that is not after index `first`, or from the start of the file."""
        import av

        target = (self._first_pts or 0) + int(first / self._rate / self._time_base)
        for seconds in _BACK_SECONDS if first >= _NO_SEEK_BELOW else ():
            try:
                self._container.seek(target - int(seconds / self._time_base), stream=self._stream, backward=True)
            except av.FFmpegError:
                break  # not a seekable format
            decoded = self._decoded()
            # Frames shown before the first key frame depend on data before the seek point, and may be damaged.
            key = next((frame for frame in decoded if frame.key_frame), None)
            if key is not None and key.pts is not None and self.index_at(key.pts) <= first:
                if not self._times_as_stored:
                    yield key
                    yield from decoded
                    return
                begin, rest = first_of(decoded, DEPTH)
                if self._is_complete([key, *begin]):
                    yield from in_order(itertools.chain([key], begin, rest))
                    return
        self._restart()
        yield from in_order(self._decoded()) if self._times_as_stored else self._decoded()

    def _is_complete(self, begin: "list[VideoFrame]") -> bool:
        """True where no frame is missing that is stored behind the key frame and shown before it."""
        numbers = [self.index_at(frame.pts) for frame in begin if frame.pts is not None]
        return numbers == sorted(numbers) or {*range(numbers[0], max(numbers[: DEPTH // 2]))} <= {*numbers}

    def _square_size(self, frame: "VideoFrame") -> tuple[int, int]:
        """Height and width of the frame in square pixels, as stored; the shorter side of a pixel is stretched."""
        ratio = self._pixel_aspect()
        if ratio > 1:
            return frame.height, round(frame.width * ratio)
        return round(frame.height / ratio), frame.width

    def _pixel_aspect(self) -> Fraction:
        """Width of a stored pixel over its height."""
        ratio = self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio
        return ratio if ratio and Fraction(1, _WIDEST_PIXEL) <= ratio <= _WIDEST_PIXEL else Fraction(1)

    def _rgb(self, frame: "VideoFrame", height: int, width: int, interpolation: str = "BICUBIC") -> Frames:
        from av.video.reformatter import VideoReformatter

        transparent = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
        target = "rgba" if transparent else "rgb24"
        if self._scaler is None:  # one for all frames: its tables take longer to make than a small picture
            self._scaler = VideoReformatter()
        try:
            if (height, width) != (frame.height, frame.width):
                frame = self._scaler.reformat(
                    frame,
                    width,
                    height,
                    target,
                    interpolation=interpolation,
                    threads=1,  # a forked process has no others
                )
            array = frame.to_ndarray() if frame.format.name == target else frame.to_ndarray(format=target)
            pixels: Frames = np.asarray(array, np.uint8)
        except OSError as error:
            raise BadClip(
                f"{self.path}: pixel format {frame.format.name} is not read ({error.strerror}); convert it or remove the row"
            ) from error
        return over_white(pixels) if transparent else pixels


def _orientation(frame: "VideoFrame") -> Orientation:
    from av.video.reformatter import VideoReformatter

    # PyAV's side data and frame refer to each other. A frame of its own, tiny and without threads, may wait for the garbage
    # collector; the decoded one would keep its memory, and a forked process would hang on threads that it does not have.
    tiny = VideoReformatter().reformat(frame, width=16, height=16, format="gray", interpolation="POINT", threads=1)
    entries: Iterable[Any] = tiny.side_data
    matrix = next((entry for entry in entries if entry.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Orientation()
    return Orientation.of_matrix(tuple(np.frombuffer(bytes(matrix), np.int32).tolist()))
