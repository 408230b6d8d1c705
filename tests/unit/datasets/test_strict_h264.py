"""Strict reading of H.264: damage is found, and copies from the middle of an open group of pictures are sound."""

from pathlib import Path

import av
import numpy as np
import pytest

from opensora.datasets.decode import Video
from opensora.datasets.manifest import ManifestRow
from opensora.errors import BadClip
from tests.support.damage import flip_bytes
from tests.support.media_files import write_video
from tools.datasets.manifest_files import file_problem

FRAMES = 36
OPEN = "open-gop=1:bframes=3:b-pyramid=strict:keyint=12:min-keyint=12:scenecut=0:ref=2"
SLICES = "slices=2:bframes=1:keyint=12:scenecut=0"


def write_film(path: Path, params: str = OPEN) -> Path:
    """A texture that moves, with a key frame at 0, 12 and 24."""
    texture = np.random.default_rng(0).integers(0, 255, (20, 80, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    frames = [texture[7 * n % 13 : 7 * n % 13 + 32, 3 * n : 3 * n + 64] for n in range(FRAMES)]
    return Path(write_video(path, frames, codec_options={"x264-params": params}))


def copy_from_last_key(path: Path, target: Path) -> Path:
    """The stream from its third key frame, without the frames that are shown before it."""
    with av.open(str(path)) as film, av.open(str(target), "w") as copy:
        stream = copy.add_stream_from_template(film.streams.video[0], opaque=True)
        packets = [packet for packet in film.demux(film.streams.video[0]) if packet.size]
        begin = [packet for packet in packets if packet.is_keyframe][2]
        for packet in packets[packets.index(begin) :]:
            if packet.pts >= begin.pts:
                packet.pts, packet.dts, packet.stream = packet.pts - begin.dts, packet.dts - begin.dts, stream
                copy.mux(packet)
    return target


def explodes(path: Path) -> bool:
    """True where FFmpeg's err_detect=explode ends the decoding."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        try:
            for _ in container.decode(video=0):
                pass
        except av.InvalidDataError:
            return True
        return False


def count(path: Path) -> int:
    """Frames that a strict reader gives."""
    with Video(str(path), strict=True) as video:
        return sum(1 for _ in video.frames(range(video.info.num_frames)))


def is_refused(path: Path) -> bool:
    try:
        return count(path) != FRAMES
    except BadClip:
        return True


def test_commands_on_missing_frames_are_no_damage(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mp4")
    copy = copy_from_last_key(film, tmp_path / "copy.mp4")
    assert explodes(copy)
    assert (count(film), count(copy)) == (FRAMES, 12)
    # A seek into the film meets the same commands.
    row = ManifestRow(0, "a.csv:2", str(film), "x", None, None, None, None, 24 / 8, None)
    assert file_problem(row, decode=True) is None


@pytest.mark.parametrize(("params", "more"), [(OPEN, False), (SLICES, True)])
def test_what_explodes_is_found(tmp_path: Path, params: str, more: bool) -> None:
    """In frames of several slices more is: the option sees no missing one while threads share the frames."""
    film = write_film(tmp_path / "film.mp4", params)
    assert not is_refused(film)
    data, rng = film.read_bytes(), np.random.default_rng(0)
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    verdicts = []
    for _ in range(20):
        film.write_bytes(data[:begin] + flip_bytes(data[begin:end], rng) + data[end:])
        verdicts.append((explodes(film), is_refused(film)))
    assert verdicts.count((True, False)) == 0
    assert sum(refused for _, refused in verdicts) >= 12
    assert (verdicts.count((False, True)) >= 5) is more
