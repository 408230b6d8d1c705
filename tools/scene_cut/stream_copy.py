"""Cut a scene out of a film without decoding: its packets are written as they are, which takes no quality."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opensora import files
from opensora.datasets.decode import Video
from opensora.errors import BadClip, DataError

if TYPE_CHECKING:
    from av import Packet
    from av.video.stream import VideoStream

_CODECS = ("h264", "vp9", "libdav1d", "av1")  # which browsers play in an mp4
_FORMATS = ("yuv420p", "yuvj420p")
_RATE = 0.01  # relative difference between the rates of clip and film: rounded times


class _Differs(Exception):
    """The copy does not show the frames of the film."""


def copy_scene(video: Video, first: int, last: int, target: str) -> bool:
    """Copy frames `first` to `last` (exclusive) into the mp4 `target`; False, and no file, where that cannot be done.

    The scene must begin and end at key frames. The copy is decoded and compared with the film, frame by frame.
    """
    packets = video.packets(first, last)
    if packets is None:
        return False
    coding = packets[0].stream.codec_context
    if coding.name not in _CODECS or coding.pix_fmt not in _FORMATS:
        return False

    def write(part: Path) -> None:
        _mux(part, packets)
        _compare(part, video, first, last)

    try:
        with files.write_errors_as(DataError, target, "choose a writable folder with free space"):
            files.atomic_write(target, write)
    except _Differs:
        return False
    return True


def _mux(path: Path, packets: "list[Packet[VideoStream]]") -> None:
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream_from_template(packets[0].stream, opaque=True)
        for packet, (shown, decoded) in zip(packets, _times([packet.pts or 0 for packet in packets]), strict=True):
            packet.pts, packet.dts, packet.stream = shown, decoded, stream
            container.mux(packet)


def _times(shown: list[int]) -> list[tuple[int, int]]:
    """(pts, dts) from 0 of packets with these pts, in the order in which they are decoded; some formats store no dts."""
    ordered = sorted(shown)
    ahead = max(then - pts for then, pts in zip(ordered, shown, strict=True))
    return [(pts - ordered[0], then - ordered[0] - ahead) for then, pts in zip(ordered, shown, strict=True)]


def _compare(path: Path, video: Video, first: int, last: int) -> None:
    try:
        # Strictly: a copy must not hold damage that decoders cover up.
        with Video(str(path), strict=True) as clip:
            if clip.info.num_frames != last - first or abs(clip.info.fps / video.info.fps - 1) > _RATE:
                raise _Differs
            wanted = video.frames(range(first, last))
            for one, other in zip(wanted, clip.frames(range(last - first)), strict=True):
                if not np.array_equal(one, other):
                    raise _Differs
    except BadClip as error:
        if str(path) in str(error):  # the copy's fault, not the film's
            raise _Differs from error
        raise
