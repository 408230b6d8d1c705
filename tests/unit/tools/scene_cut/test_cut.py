"""A cut clip holds exactly its frames."""

import os
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from opensora.datasets.decode import FileFacts, Video, probe, read_frames
from opensora.datasets.video_file import VideoFile
from opensora.errors import BadClip, ConfigError
from tests.support.media_files import frame_number, set_display_matrix, write_video
from tools.runner import LeftOut, Row
from tools.scene_cut import stream_copy
from tools.scene_cut.cut import _even_size, _fingerprint, _lower, cut, parts, sampled


def clips(row: Row, folder: Path, **flags: Any) -> list[Row]:
    """The rows of the clips that are made of a scene."""
    return [each for each in cut(row, folder=str(folder), **flags) if isinstance(each, dict)]


def test_cut_holds_exactly_its_frames(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", 40, size=(33, 65), codec="ffv1")
    row = {"path": video, "shot": 2, "start": 1.25, "end": 2.5, "start_frame": 10, "end_frame": 20, "text": "kept"}
    [done] = clips(row, tmp_path / "clips")
    assert [frame_number(frame) for frame in read_frames(done["path"], range(10))] == list(range(10, 20))
    info = probe(done["path"])
    assert (info.num_frames, info.fps, info.height, info.width) == (10, 8.0, 32, 64)  # even sides
    assert (done["num_frames"], done["fps"], done["height"], done["width"]) == (10, 8.0, 32, 64)
    assert (done["video"], done["shot"], done["source_start"], done["source_end"], done["text"]) == (
        "a.mkv",
        2,
        1.25,
        2.5,
        "kept",
    )
    assert done["source_path"] == video
    assert "start" not in done  # it would be read as a part of the clip
    assert [path.name for path in (tmp_path / "clips").iterdir()] == [Path(done["path"]).name]


def test_clip_names_depend_on_content_and_settings(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, two = write_video(tmp_path / "a.mp4", 10), write_video(tmp_path / "other" / "a.mp4", 11)
    names = set()
    for path, end, crf in ((one, 5, 18), (two, 5, 18), (one, 6, 18), (one, 5, 30), (one, 5, 18)):
        [done] = clips({"path": path, "start_frame": 0, "end_frame": end}, tmp_path / "clips", crf=crf)
        names.add(done["path"])
    assert len(names) == 4
    assert len(list((tmp_path / "clips").iterdir())) == 4


def test_fingerprints_are_of_the_whole_file(tmp_path: Path) -> None:
    """Recordings without compression have one size, and often one dark beginning."""
    files = [tmp_path / name for name in ("monday.avi", "tuesday.avi", "copy.avi")]
    for file, last in zip(files, (1, 2, 1), strict=True):
        file.write_bytes(bytes(200_000) + bytes([last]))
    monday, tuesday, copy = (_fingerprint(str(file), 18, 32) for file in files)
    assert monday == copy != tuesday
    files[0].write_bytes(bytes(200_000) + bytes([2]))
    os.utime(files[0], ns=(0, 0))
    assert _fingerprint(str(files[0]), 18, 32) == tuesday
    assert _fingerprint(str(files[0]), 18, 30) != tuesday


def test_cut_leaves_no_half_clip(tmp_path: Path) -> None:
    """The video promises more frames than it has."""
    path = Path(write_video(tmp_path / "a.mp4", 60, options={"movflags": "faststart"}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(BadClip):
        clips({"path": str(path), "start_frame": 0, "end_frame": 60}, tmp_path / "clips")
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"start_frame": "x", "end_frame": "3"},
        {"start_frame": 3, "end_frame": 3},
        {"start_frame": -1, "end_frame": 3},
        {"start_frame": 0.5, "end_frame": 3},
        {"start_frame": float("nan"), "end_frame": 3},
    ],
)
def test_cut_needs_frame_numbers(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(BadClip, match=r"a\.mp4: start_frame"):
        clips({"path": write_video(tmp_path / "a.mp4", 4), **row}, tmp_path)


def test_a_film_without_an_index_is_read_once_for_all_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, passes = write_video(tmp_path / "a.mkv", 24), list[str]()
    original = VideoFile._read_to_the_end

    def counted(self: VideoFile) -> FileFacts:
        passes.append(self.path)
        return original(self)

    monkeypatch.setattr(VideoFile, "_read_to_the_end", counted)
    for first in (0, 7, 14):
        [done] = clips({"path": path, "start_frame": first, "end_frame": first + 5}, tmp_path / "clips")
        assert numbers(done["path"]) == list(range(first, first + 5))
    assert passes == [path]


def numbers(path: str) -> list[int]:
    """Of all frames of a clip."""
    return [frame_number(frame) for frame in read_frames(path, range(probe(path).num_frames))]


def kinds(path: str) -> str:
    """Pictures of a clip by kind, as stored."""
    with av.open(path) as container:
        return "".join("IPB"[frame.pict_type - 1] for frame in container.decode(video=0))


B_FRAMES = {"x264-params": "bframes=2:b-adapt=0:keyint=6:min-keyint=6:scenecut=0"}
OPEN_GOP = {"x264-params": "bframes=2:b-adapt=0:keyint=6:min-keyint=6:scenecut=0:open-gop=1"}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_scenes_between_key_frames_are_copied(tmp_path: Path, suffix: str) -> None:
    """A copy has the pixels of the film, to the bit; any other clip has its frames."""
    path = write_video(tmp_path / f"a.{suffix}", 30, size=(48, 80), codec_options=B_FRAMES)
    film = read_frames(path, range(30))
    for first, last in ((0, 12), (6, 18), (24, 30), (7, 18), (6, 17)):
        [done] = clips({"path": path, "start_frame": first, "end_frame": last}, tmp_path / "clips", crf=51)
        clip = read_frames(done["path"], range(last - first))
        assert [frame_number(frame) for frame in clip] == list(range(first, last))
        assert np.array_equal(film[first:last], clip) == (first % 6 == last % 6 == 0)
        assert (done["num_frames"], done["fps"], done["codec"], done["audio"]) == (last - first, 8.0, "h264", False)
    [encoded] = clips({"path": path, "start_frame": 0, "end_frame": 12}, tmp_path / "clips", crf=51, copy="never")
    assert numbers(encoded["path"]) == list(range(12))
    assert not np.array_equal(film[:12], read_frames(encoded["path"], range(12)))
    assert len(list((tmp_path / "clips").iterdir())) == 6


def test_open_groups_of_pictures_are_not_copied_wrongly(tmp_path: Path) -> None:
    """Frames shown before the second key frame need the first group; where it begins, a copy would lack them."""
    path = write_video(tmp_path / "a.mkv", 30, size=(48, 80), codec_options=OPEN_GOP)
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keys = [packet.pts // 125 for packet in packets if packet.is_keyframe]
    assert len(keys) > 1
    for first in keys:
        [done] = clips({"path": path, "start_frame": first, "end_frame": first + 6}, tmp_path / "clips")
        assert numbers(done["path"]) == list(range(first, first + 6))


def test_a_copy_that_differs_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the container said that frame 7 was a key frame."""
    path = write_video(tmp_path / "a.mp4", 30, codec_options={"x264-params": "bframes=0:keyint=6:scenecut=0"})
    original = Video.packets
    monkeypatch.setattr(Video, "packets", lambda self, *_: (original(self, 6, 12) or [])[1:])
    [done] = clips({"path": path, "start_frame": 7, "end_frame": 12}, tmp_path / "clips")
    assert numbers(done["path"]) == list(range(7, 12))
    assert kinds(done["path"]).startswith("I")
    assert len(list((tmp_path / "clips").iterdir())) == 1


def test_a_copy_that_a_strict_reader_refuses_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if parts of its frames were missing."""

    class CarefulVideo(Video):
        def __enter__(self) -> Video:
            if self._strict:
                raise BadClip(f"{self.path}: damaged data")
            return super().__enter__()

    path = write_video(tmp_path / "a.mp4", 30, codec_options={"x264-params": "bframes=0:keyint=6:scenecut=0"})
    row = {"path": path, "start_frame": 6, "end_frame": 12}
    [copied] = clips(row, tmp_path / "copied")
    monkeypatch.setattr(stream_copy, "Video", CarefulVideo)
    [encoded] = clips(row, tmp_path / "encoded")
    assert numbers(encoded["path"]) == numbers(copied["path"]) == list(range(6, 12))
    assert Path(encoded["path"]).read_bytes() != Path(copied["path"]).read_bytes()


def test_a_copy_is_shown_as_the_film(tmp_path: Path) -> None:
    """Turned, and with pixels that are not square."""
    path = write_video(tmp_path / "a.mp4", 12, size=(32, 64), pixel_ratio=2, codec_options=B_FRAMES)
    set_display_matrix(path, (0, 1, -1, 0, 64, 0))
    [done] = clips({"path": path, "start_frame": 6, "end_frame": 12}, tmp_path / "clips")
    assert (done["height"], done["width"]) == (128, 32)
    assert np.array_equal(read_frames(path, range(6, 12)), read_frames(done["path"], range(6)))


def test_codecs_that_browsers_do_not_play_are_encoded(tmp_path: Path) -> None:
    for name, codec, options in (("a.avi", "mpeg4", {}), ("b.mp4", "libx264", {"pix_fmt": "yuv420p10le"})):
        path = write_video(tmp_path / name, 12, codec=codec, **options)
        [done] = clips({"path": path, "start_frame": 6, "end_frame": 12}, tmp_path / "clips")
        assert (done["codec"], done["pix_fmt"], done["num_frames"]) == ("h264", "yuv420p", 6)


def test_a_variable_rate_is_encoded_at_its_mean(tmp_path: Path) -> None:
    """The clip shows at each moment the frame of the film."""
    path = write_video(tmp_path / "a.mkv", 12, times=[0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 14, 15])
    with Video(path) as video:
        shown = [frame_number(frame) for frame in video.frames(range(video.info.num_frames))]
    [done] = clips({"path": path, "start_frame": 0, "end_frame": len(shown)}, tmp_path / "clips")
    assert numbers(done["path"]) == shown
    assert Counter(shown).most_common(1)[0][1] > 1
    assert not done["variable_rate"]


def test_long_scenes_are_split_and_short_ones_left_out(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 40)
    row = {"path": path, "start": 1.0, "end": 4.5, "start_frame": 8, "end_frame": 36, "shot": 3}
    done = clips(row, tmp_path / "clips", max_seconds=2.0)
    assert [numbers(each["path"]) for each in done] == [[*range(8, 22)], [*range(22, 36)]]
    assert [(each["shot"], each["part"], each["source_start"], each["source_end"]) for each in done] == [
        (3, 0, 1.0, 2.75),
        (3, 1, 2.75, 4.5),
    ]
    with pytest.raises(LeftOut, match=r"frames 8 to 36 last less than 4\.0 seconds"):
        clips(row, tmp_path / "clips", min_seconds=4.0)
    [whole] = clips(row, tmp_path / "clips", min_seconds=3.5, max_seconds=3.5)
    assert whole["num_frames"] == 28
    assert "part" not in whole


def test_parts() -> None:
    assert parts(5, 25, 100, 0, even=True) == [(5, 25)]
    assert parts(5, 25, 8, 0, even=True) == [(5, 11), (11, 18), (18, 25)]
    assert parts(5, 25, 8, 0, even=False) == [(5, 13), (13, 21), (21, 25)]
    assert parts(5, 25, 8, 5, even=False) == [(5, 13), (13, 21)]
    assert parts(0, 11, 10, 8, even=True) == [(0, 10)]  # halves would be too short
    assert parts(0, 5, 10, 8, even=True) == []
    assert parts(0, 3, 1, 1, even=True) == [(0, 1), (1, 2), (2, 3)]


def test_a_lower_rate_takes_the_frames_on_screen(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 24)
    [done] = clips({"path": path, "start_frame": 2, "end_frame": 22}, tmp_path / "clips", fps=4.0)
    assert numbers(done["path"]) == list(range(2, 22, 2))
    assert (done["fps"], done["num_frames"], done["seconds"]) == (4.0, 10, 2.5)
    [same] = clips({"path": path, "start_frame": 6, "end_frame": 12}, tmp_path / "clips", fps=60.0)
    assert (same["fps"], same["num_frames"]) == (8.0, 6)
    assert sampled(10, 20, Fraction(30), Fraction(24)) == [10, 11, 12, 13, 15, 16, 17, 18]
    assert sampled(10, 11, Fraction(30), Fraction(1)) == [10]
    assert _lower(Fraction(24000, 1001), 23.976) == Fraction(24000, 1001)
    assert _lower(Fraction(30), 23.976) == Fraction(23.976).limit_denominator(1001)


@pytest.mark.parametrize(
    ("size", "shorter", "made"),
    [
        ((272, 640), None, (272, 640)),
        ((33, 65), None, (32, 64)),
        ((1080, 1920), 480, (480, 852)),
        ((1920, 1080), 480, (852, 480)),
        ((1080, 1920), 2000, (1080, 1920)),
        ((4, 640), 2, (2, 320)),
    ],
)
def test_sizes(size: tuple[int, int], shorter: int | None, made: tuple[int, int]) -> None:
    assert _even_size(*size, shorter) == made


def test_the_shorter_side_is_shrunk(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12, size=(96, 48))
    [done] = clips({"path": path, "start_frame": 0, "end_frame": 6}, tmp_path / "clips", height=24)
    assert (done["height"], done["width"], done["resolution"]) == (48, 24, 1152)


def test_numbers_from_other_programs_and_long_names(tmp_path: Path) -> None:
    name = "\N{CLAPPER BOARD}" * 60 + " 'x\n;rm"
    path = write_video(tmp_path / "a.mp4", 12)
    os.rename(path, tmp_path / f"{name}.mp4")
    row = {"path": str(tmp_path / f"{name}.mp4"), "start_frame": "0.0", "end_frame": 6.0}
    [done] = clips(row, tmp_path / "clips")
    assert numbers(done["path"]) == list(range(6))
    assert Path(done["path"]).name.startswith("\N{CLAPPER BOARD}" * 50 + "-")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"crf": 52}, "--crf 52"),
        ({"height": 1}, "--height 1"),
        ({"fps": 0.0}, "--fps 0"),
        ({"min_seconds": -1.0}, "--min-seconds -1"),
        ({"min_seconds": 3.0, "max_seconds": 2.0}, "not less than min-seconds"),
        ({"max_seconds": 0.0}, "--max-seconds 0"),
    ],
)
def test_wrong_flags(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        clips({"path": "a.mp4", "start_frame": 0, "end_frame": 9}, Path(), **flags)
