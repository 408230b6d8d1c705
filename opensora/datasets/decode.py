"""Videos and images to frames, by seeking: only the frames requested are decoded, and one is in memory at a time.

Frames are named by their index on a grid of the file's mean frame rate, counted from the first frame. For a file of
constant rate that is the frame's number; where the rate varies, an index shows the frame on screen at that moment.
Layout: T frames, H W rows and columns, C colors (red, green, blue), uint8. Frames come as a player or browser shows them:
turned, mirrored, with square pixels, over white where they are transparent.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import Packet
    from av.video.stream import VideoStream

from opensora.datasets.media_kind import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_picture, open_file
from opensora.datasets.picture_file import PictureFile
from opensora.datasets.video_file import VideoFile
from opensora.datasets.video_info import FileFacts, Frames, MediaDetails, VideoInfo
from opensora.errors import BadClip

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "FileFacts", "Frames", "Video", "VideoInfo", "probe", "read_frames"]


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

    facts: what an earlier visit kept of `facts`; it saves reading the whole file where the header does not count its
    frames. None where the header does.
    threads: that decode frames ahead of the one that is given, for a reader of long parts; 1: threads share each frame,
    where the file was encoded for that.
    strict: errors in the data that decoders would cover up raise BadClip.
    """

    def __init__(self, path: str, facts: FileFacts | None = None, *, threads: int = 1, strict: bool = False) -> None:
        self.path = path
        self.facts = facts
        self._threads, self._strict = threads, strict
        self._stack = ExitStack()

    def __enter__(self) -> "Video":
        try:
            file = self._stack.enter_context(open_file(self.path))
            self._file: PictureFile | VideoFile
            if is_picture(self.path, file):
                self._file = PictureFile(self.path, file, self.facts)
            else:
                self._file = VideoFile(
                    self.path, file, self._stack, self.facts, threads=self._threads, strict=self._strict
                )
            self.info, self.facts = self._file.info, self._file.facts
            return self
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def details(self) -> MediaDetails:
        """Facts about the coding of the file; of formats without an index, the file is read to its end."""
        return self._file.details()

    def packets(self, first: int, last: int) -> "list[Packet[VideoStream]] | None":
        """The coded data of frames `first` to `last` (exclusive), if they can be decoded without any other; else None."""
        return self._file.packets(first, last) if isinstance(self._file, VideoFile) else None

    def frames(self, indices: Sequence[int], widest: int | None = None) -> Iterator[Frames]:
        """Frames [H, W, 3] at ascending `indices`, one by one; several calls may be made, one after the other.

        widest: shrink wider frames to this many pixels, by averaging areas; much faster than shrinking them later.
        """
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
        for number, end, frame in self._file.numbered_from(wanted[0]):
            while number > wanted[position]:  # the frame before this one was on screen at that index
                yield self._file.pixels(frame if shown is None else shown, widest)
                position += 1
                if position == len(wanted):
                    return
            shown, last = frame, end
            while number == wanted[position]:
                yield self._file.pixels(frame, widest)
                position += 1
                if position == len(wanted):
                    return
        for index in wanted[position:]:
            if shown is None or index > last + 1:  # one frame of slack for a rounded frame rate
                raise BadClip(
                    f"{self.path}: the data ends after frame {last}, frame {index} of {self.info.num_frames} is needed; "
                    "the file is truncated; copy it again or remove the row"
                )
            yield self._file.pixels(shown, widest)
