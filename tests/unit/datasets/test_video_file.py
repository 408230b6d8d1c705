"""Videos that are whole but unusual: what a player shows is read, wherever one seeks to."""

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from opensora.datasets.decode import Video, probe, read_frames
from opensora.datasets.video_file import _BUFFER_BYTES, VideoFile
from opensora.errors import BadClip
from tests.support.media_files import (
    add_cover,
    corner_names,
    corners,
    frame_number,
    set_display_matrix,
    write_turned,
    write_video,
)

if TYPE_CHECKING:
    from av import VideoFrame


def numbers(path: str) -> list[int]:
    """Of all frames; each is also sought alone."""
    everything = read_frames(path, range(probe(path).num_frames))
    for index in range(len(everything)):
        assert np.array_equal(read_frames(path, [index])[0], everything[index]), index
    return [frame_number(frame) for frame in everything]


def test_mirrored_and_turned(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [corners()] * 3)
    set_display_matrix(path, (0, -1, -1, 0, 48, 64))
    assert (probe(path).height, probe(path).width) == (64, 48)
    assert (probe(path).stored_height, probe(path).stored_width) == (48, 64)
    assert corner_names(read_frames(path, [0])[0]) == "wgbr"


@pytest.mark.parametrize("first", [True, False])
def test_cover_picture_is_not_the_film(tmp_path: Path, first: bool) -> None:
    path = write_video(tmp_path / "a.mp4", 20)
    add_cover(path, first=first)
    info = probe(path)
    assert (info.num_frames, info.fps, info.height, info.width) == (20, 8.0, 32, 64)
    assert numbers(path) == list(range(20))


def test_cover_picture_alone_is_no_video(tmp_path: Path) -> None:
    from tests.support.media_files import write_audio

    path = write_audio(tmp_path / "song.mp4")
    add_cover(path, first=False)
    with pytest.raises(BadClip, match=r"song\.mp4: holds audio, a cover picture only"):
        probe(path)


def test_largest_of_several_films(tmp_path: Path) -> None:
    import av

    path = str(tmp_path / "two.mkv")
    with av.open(path, "w") as container:
        streams = [container.add_stream("ffv1", rate=8) for _ in range(2)]
        for stream, (height, width) in zip(streams, ((16, 16), (48, 64)), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(corners(stream.height, stream.width), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    assert (probe(path).height, probe(path).width) == (48, 64)


def test_a_file_longer_than_the_buffer(tmp_path: Path) -> None:
    """FFmpeg reads on, instead of seeking, to a key frame shortly behind what it has in its buffer."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / "a.mp4", list(noise), gop=4, codec_options={"crf": "8"})
    assert _BUFFER_BYTES < Path(path).stat().st_size < 4 * _BUFFER_BYTES
    everything = read_frames(path, range(160))
    for first in range(17, 160, 4):
        assert np.array_equal(read_frames(path, [first, 159]), everything[[first, 159]]), first


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov", "cmaf", "hybrid_fragmented"])
def test_fragments_are_counted(tmp_path: Path, flags: str) -> None:
    path = write_video(tmp_path / "a.mp4", 40, gop=12, options={"movflags": flags})
    assert (probe(path).num_frames, probe(path).fps) == (40, 8.0)
    assert numbers(path) == list(range(40))


def test_a_stale_count_in_the_header(tmp_path: Path) -> None:
    """A recorder that was cut off leaves the count of frames in the header of an AVI as it was at the start."""
    path = Path(write_video(tmp_path / "a.avi", 40, codec="mpeg4"))
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32
    assert int.from_bytes(data[at : at + 4], "little") == 40
    for count in (0, 3, 10**6):
        data[at : at + 4] = count.to_bytes(4, "little")
        path.write_bytes(data)
        assert numbers(str(path)) == list(range(40))


@pytest.mark.parametrize("name", ["turn.ts", "turn.mkv"])
def test_a_picture_that_turns_is_named(tmp_path: Path, name: str) -> None:
    path = write_turned(tmp_path / name, [(48, 64), (64, 48)])
    assert corner_names(read_frames(path, range(20))[19]) == "rgbw"
    with pytest.raises(BadClip, match=rf"{name}: the picture changes from 64x48 to 48x64 pixels at 0\.80 s"):
        read_frames(path, range(40))


def test_a_stream_that_grows_keeps_its_first_size(tmp_path: Path) -> None:
    """Calls over the network change the size with the bandwidth, not the shape."""
    frames = read_frames(write_turned(tmp_path / "grow.mkv", [(48, 64), (72, 96)], codec="libvpx"), range(40))
    assert frames.shape == (40, 48, 64, 3)
    assert {corner_names(frame) for frame in frames} == {"rgbw"}


@pytest.mark.parametrize("name", ["wide.mp4", "wide.mkv", "wide.ts"])
@pytest.mark.parametrize(("ratio", "size"), [(2, (48, 128)), (Fraction(1, 2), (96, 64)), (Fraction(16, 11), (48, 93))])
def test_pixels_that_are_not_square(tmp_path: Path, name: str, ratio: Fraction | int, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / name, [corners()] * 3, pixel_ratio=ratio)
    info, frame = probe(path), read_frames(path, [1])[0]
    assert (info.height, info.width) == frame.shape[:2] == size
    assert (info.stored_height, info.stored_width) == (48, 64)
    assert corner_names(frame) == "rgbw"


def test_wide_pixels_of_a_turned_film(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [corners()] * 3, pixel_ratio=2)
    set_display_matrix(path, (0, 1, -1, 0, 48, 0))
    assert read_frames(path, [0])[0].shape == (128, 48, 3)
    assert corner_names(read_frames(path, [0])[0]) == "brwg"


def test_a_pixel_of_nonsense_shape_is_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", [corners()] * 3, pixel_ratio=Fraction(1000, 1))
    assert (probe(path).height, probe(path).width) == (48, 64)


@pytest.mark.parametrize("open_gop", [0, 1])
def test_avi_with_b_frames(tmp_path: Path, open_gop: int) -> None:
    """AVI numbers frames as they are stored, and stores them in another order than they are shown."""
    options = {"x264-params": f"bframes=2:b-adapt=0:keyint=12:scenecut=0:open-gop={open_gop}"}
    path = write_video(tmp_path / "b.avi", 60, gop=12, codec_options=options)
    assert numbers(path) == list(range(60))


def test_a_browser_recording_has_the_rate_of_its_frames(tmp_path: Path) -> None:
    """Its header says 1000 frames per second."""
    path = write_video(tmp_path / "a.webm", 20, fps=1000, codec="libvpx", times=[40 * number for number in range(20)])
    assert (probe(path).num_frames, probe(path).fps) == (20, 25.0)
    assert numbers(path) == list(range(20))


def test_a_new_clock_in_a_broadcast(tmp_path: Path) -> None:
    """Two recordings in one file, a day apart by their clocks."""
    parts = [Path(write_video(tmp_path / f"{n}.ts", 20, options={"output_ts_offset": str(80000 * n)})) for n in (0, 1)]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe(str(path)).num_frames == 40
    assert numbers(str(path)) == [*range(20), *range(20)]


def test_a_damaged_time_makes_no_endless_film(tmp_path: Path) -> None:
    """One frame claims to be shown hours later; a film with frames up to there would have none of its own."""
    ts, mkv = tmp_path / "a.ts", tmp_path / "a.mkv"
    write_video(ts, 40, codec_options={"x264-params": "bframes=2:b-adapt=0:scenecut=0"}, gop=20)
    data = bytearray(ts.read_bytes())
    at = data.index(b"\0\0\1\xe0", len(data) // 2)  # header of a frame with both times
    assert data[at + 7] & 0xC0 == 0xC0
    data[at + 9] ^= 8
    ts.write_bytes(data)
    write_video(mkv, 40, times=[*range(39), 8 * 4000])
    for path in (ts, mkv):
        assert numbers(str(path)) == list(range(40))
        assert probe(str(path)).num_frames == 40


def test_small_frames_of_a_program_stream_share_a_time(tmp_path: Path) -> None:
    pictures = [np.full((48, 64, 3), 16 + 3 * number, np.uint8) for number in range(60)]
    options = {"bf": "2", "threads": "1"}
    path = write_video(tmp_path / "a.mpg", pictures, fps=25, codec="mpeg2video", gop=12, codec_options=options)
    everything = read_frames(path, range(60))
    assert np.abs(everything[:, 20, 20, 0].astype(int) - 16 - 3 * np.arange(60)).max() <= 6
    for index in range(16, 60):
        assert np.array_equal(read_frames(path, [index])[0], everything[index]), index


def test_start_time_and_edit_list(tmp_path: Path) -> None:
    late = write_video(tmp_path / "late.mp4", 20, times=[30 + number for number in range(20)])
    assert numbers(late) == list(range(20))
    late = write_video(tmp_path / "late.ts", 20, options={"output_ts_offset": "5000"})
    assert numbers(late) == list(range(20))


PIX_FMTS = [
    ("yuv420p10le", "libx265", "mkv"),
    ("yuv444p", "libx264", "mp4"),
    ("yuv422p10le", "prores_ks", "mov"),
    ("gray", "ffv1", "mkv"),
    ("gray16le", "ffv1", "mkv"),
    ("rgb48le", "ffv1", "mkv"),
    ("bgr0", "ffv1", "mkv"),
    ("yuvj420p", "mjpeg", "avi"),
]


@pytest.mark.parametrize(("pix_fmt", "codec", "container"), PIX_FMTS)
def test_pixel_formats(tmp_path: Path, pix_fmt: str, codec: str, container: str) -> None:
    path = write_video(tmp_path / f"a.{container}", 4, codec=codec, pix_fmt=pix_fmt)
    assert numbers(path) == list(range(4))
    plain = read_frames(path, [3])[0]
    assert abs(int(plain.min()) - 40) < 8  # neither washed out nor clipped
    assert abs(int(plain.max()) - 190) < 8


@pytest.mark.parametrize(("codec", "pix_fmt"), [("png", "rgba"), ("qtrle", "argb"), ("prores_ks", "yuva444p10le")])
def test_transparent_parts_lie_over_white(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    picture = np.zeros((32, 64, 4), np.uint8)
    picture[:, 32:] = (255, 0, 0, 255)
    frame = read_frames(write_video(tmp_path / "a.mov", [picture] * 2, codec=codec, pix_fmt=pix_fmt), [0])[0]
    assert corner_names(frame) == "wrwr"


def test_empty_alpha_is_no_transparency(tmp_path: Path) -> None:
    picture = np.dstack([corners(), np.zeros((48, 64), np.uint8)])
    path = write_video(tmp_path / "a.mov", [picture] * 2, codec="qtrle", pix_fmt="argb")
    assert corner_names(read_frames(path, [0])[0]) == "rgbw"


def test_range_and_matrix_of_colors(tmp_path: Path) -> None:
    with Video(write_video(tmp_path / "a.mkv", 2, codec="ffv1")) as video:
        reader = video._file
        assert isinstance(reader, VideoFile)
        shown = {
            space: reader.pixels(reader._sound(flat_frame(100, 90, 200, space))) for space in (1, 2, 3, 9, 10, 200)
        }
        levels = {space: pixels[0, 0].tolist() for space, pixels in shown.items()}
        assert levels[1] == [226, 66, 16]  # BT.709
        assert levels[2] == levels[3] == levels[200] == [211, 52, 20]  # BT.601, also where nothing is said
        assert levels[9] == levels[10] == [217, 57, 15]  # BT.2020
        for color_range, level in ((0, 0), (1, 0), (2, 16)):
            frame = flat_frame(16, 128, 128, 2)
            frame.color_range = color_range
            assert reader.pixels(frame)[0, 0].tolist() == [level] * 3


def flat_frame(luma: int, blue: int, red: int, space: int) -> "VideoFrame":
    import av

    frame = av.VideoFrame(64, 32, "yuv420p")
    for plane, value in zip(frame.planes, (luma, blue, red), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace = space
    return frame


def test_colors_that_are_not_converted_are_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 2, codec_options={"x264-params": "colormatrix=YCgCo"})
    with pytest.raises(BadClip, match=r"a\.mp4: its color matrix is YCgCo; BT\.601"):
        probe(path)


def test_motion_jpeg_that_ends_half_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(4)]
    path = Path(write_video(tmp_path / "a.avi", pictures, codec="mjpeg", pix_fmt="yuvj420p"))
    assert read_frames(str(path), range(4)).shape == (4, 96, 128, 3)
    data = bytearray(path.read_bytes())
    third = [match.start() for match in re.finditer(b"00dc", data[data.index(b"movi") :])][2] + data.index(b"movi")
    size = int.from_bytes(data[third + 4 : third + 8], "little")
    data[third + 8 + size // 2 : third + 8 + size] = bytes(size - size // 2)
    path.write_bytes(data)
    assert read_frames(str(path), [0, 1]).shape == (2, 96, 128, 3)
    with pytest.raises(BadClip, match=r"a\.avi: cannot be decoded"):
        read_frames(str(path), [2])


def test_titles_in_another_encoding(tmp_path: Path) -> None:
    path = Path(write_video(tmp_path / "a.avi", 3, codec="mpeg4", options={"metadata": "x"}))
    data = path.read_bytes()
    at = data.index(b"ISFT") + 8
    path.write_bytes(data[:at] + b"caf\xe9" + data[at + 4 :])
    assert probe(str(path)).num_frames == 3
