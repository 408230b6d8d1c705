"""Facts about files, and files that cannot be used."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.decode import Video
from opensora.datasets.table import read_table
from opensora.errors import BadClip
from tests.support.media_files import (
    add_cover,
    frame_picture,
    set_display_matrix,
    write_audio,
    write_picture,
    write_sound,
    write_video,
)
from tools.datasets.probe import SUFFIXES, demo_videos, probe
from tools.runner import main
from tools.scene_cut.cut import cut
from tools.scene_cut.detect import detect

COLUMNS = ["path", "num_frames", "fps", "height", "width", "aspect_ratio", "resolution", "seconds"]
COLUMNS += ["codec", "pix_fmt", "rotation", "pixel_aspect", "variable_rate", "audio", "bitrate"]


def test_a_folder_of_videos_and_pictures(tmp_path: Path) -> None:
    folder, table = tmp_path / "films", tmp_path / "videos.csv"
    folder.mkdir()
    write_video(folder / "a.mp4", 4, pixel_ratio=2)
    write_picture(folder / "b.JPG")
    assert main(probe, [str(folder), str(table)], suffixes=SUFFIXES) == 0
    assert read_table(str(table)).columns == COLUMNS
    lines = [line.split("/")[-1] for line in table.read_text().splitlines()[1:]]
    video, _, bitrate = lines[0].rpartition(",")
    assert video == "a.mp4,4,8.0,32,128,0.25,4096,0.5,h264,yuv420p,0,2.0,False,False"
    assert lines[1] == "b.JPG,1,25.0,32,64,0.5,2048,0.04,jpeg,RGB,0,1.0,False,False,"
    assert int(bitrate) > 0


def test_real_footage() -> None:
    row = probe({"path": demo_videos()[1], "text": "kept"}, decode=True)
    path, bitrate = row.pop("path"), row.pop("bitrate")
    assert path.endswith("bigbuckbunny.mp4")
    assert bitrate == pytest.approx(1_205_959, rel=0.05)
    assert row == {
        "text": "kept",
        "num_frames": 132,
        "fps": 25.0,
        "height": 720,
        "width": 1280,
        "aspect_ratio": 0.5625,
        "resolution": 921600,
        "seconds": 5.28,
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "rotation": 0,
        "pixel_aspect": 1.0,
        "variable_rate": False,
        "audio": True,
    }


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_rates_bitrates_and_sound(tmp_path: Path, suffix: str) -> None:
    """The bitrate is that of the film alone; times that a format rounds do not make the rate variable."""
    codec = "mpeg4" if suffix == "avi" else "libx264"
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 64, 3), dtype=np.uint8)
    row = probe({"path": write_video(tmp_path / f"a.{suffix}", list(noise), fps=24, codec=codec)})
    size = (tmp_path / f"a.{suffix}").stat().st_size * 8
    assert row["bitrate"] == pytest.approx(size, rel=0.15 if suffix != "ts" else 0.3)
    assert (row["variable_rate"], row["audio"], row["fps"], row["seconds"]) == (False, False, 24.0, 1.0)
    if suffix in ("mp4", "mkv"):
        times = [*range(12), *range(14, 26)]
        assert probe({"path": write_video(tmp_path / f"b.{suffix}", 24, times=times)})["variable_rate"]
        assert probe({"path": write_sound(tmp_path / f"c.{suffix}")})["audio"]


@pytest.mark.parametrize(
    ("matrix", "rotation"),
    [((0, 1, -1, 0, 32, 0), 90), ((-1, 0, 0, -1, 64, 32), 180), ((0, -1, 1, 0, 0, 64), 270), ((-1, 0, 0, 1, 64, 0), 0)],
)
def test_rotation_is_clockwise(tmp_path: Path, matrix: tuple[int, ...], rotation: int) -> None:
    path = write_video(tmp_path / "a.mp4", 2)
    set_display_matrix(path, matrix)
    row = probe({"path": path})
    assert (row["rotation"], row["height"], row["width"]) == (rotation, *((64, 32) if rotation % 180 else (32, 64)))


@pytest.mark.parametrize(("tag", "rotation"), enumerate([0, 0, 0, 180, 180, 270, 90, 90, 270]))
def test_rotation_of_pictures(tmp_path: Path, tag: int, rotation: int) -> None:
    image, exif = Image.fromarray(frame_picture(3)), Image.Exif()
    exif[274] = tag
    image.save(tmp_path / "a.jpg", exif=exif)
    assert probe({"path": str(tmp_path / "a.jpg")})["rotation"] == rotation


def test_animations(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame_picture(number)) for number in range(4)]
    for name, times, variable in (("a.gif", [100] * 4, False), ("b.gif", [100, 300, 100, 100], True)):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=times)
        row = probe({"path": str(tmp_path / name)})
        assert (row["codec"], row["variable_rate"], row["bitrate"]) == ("gif", variable, None)


def test_decode_names_the_damage(tmp_path: Path) -> None:
    """Without the flag, damage behind the first frame is not seen."""
    rng, path = np.random.default_rng(0), tmp_path / "a.mp4"
    noise = list(rng.integers(0, 255, (48, 32, 64, 3), dtype=np.uint8))
    write_video(path, noise)
    data = bytearray(path.read_bytes())
    assert probe({"path": str(path)}, decode=True)["num_frames"] == 48
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 400] = rng.bytes(400)
    path.write_bytes(data)
    assert probe({"path": str(path)})["num_frames"] == 48
    with pytest.raises(BadClip, match=r"a\.mp4: (cannot be decoded|damaged data at)"):
        probe({"path": str(path)}, decode=True)


def test_decode_finds_missing_frames(tmp_path: Path) -> None:
    path = Path(write_video(tmp_path / "a.mp4", 48, options={"movflags": "faststart"}))
    path.write_bytes(path.read_bytes()[:-300])
    assert probe({"path": str(path)})["num_frames"] == 48
    with pytest.raises(BadClip, match=r"a\.mp4: (the data ends|cannot be decoded|damaged data)"):
        probe({"path": str(path)}, decode=True)


def as_8k(path: str) -> None:
    """Write 8192x8192 pixels into the headers of an mp4 of 64x32."""
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"tkhd") + 80
    data[at : at + 8] = struct.pack(">II", 8192 << 16, 8192 << 16)
    at = data.index(b"avc1") + 28
    data[at : at + 4] = struct.pack(">HH", 8192, 8192)
    Path(path).write_bytes(data)


def shorten(path: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])


def patched(change: Callable[[str], object], name: str = "a.mp4", **video: Any) -> Callable[[Path], str]:
    """Maker of a file that is written, and then changed."""

    def make(folder: Path) -> str:
        path = write_video(folder / name, 24, **video)
        change(path)
        return path

    return make


def text(folder: Path) -> str:
    (folder / "a.mp4").write_text("not a video, but a page")
    return str(folder / "a.mp4")


def empty(folder: Path) -> str:
    (folder / "a.mp4").touch()
    return str(folder / "a.mp4")


UNUSABLE = {
    "zero bytes": (empty, "the file is empty"),
    "text": (text, "is a text file"),
    "audio only": (lambda folder: write_audio(folder / "a.mp4"), "holds audio only"),
    "truncated": (patched(shorten), "is not a readable video"),
    "no such file": (lambda folder: str(folder / "none.mp4"), "no such file"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_are_named(tmp_path: Path, case: str) -> None:
    """By all tools alike; no clip is left."""
    make, says = UNUSABLE[case]
    row = {"path": make(tmp_path), "start_frame": 0, "end_frame": 5}
    for tool in (lambda: [probe(row)], lambda: detect(row), lambda: cut(row, folder=str(tmp_path / "clips"))):
        with pytest.raises(BadClip, match=says) as caught:
            list(tool())  # type: ignore[operator]
        assert str(caught.value).startswith(row["path"])
    assert not (tmp_path / "clips").exists()


def no_change(path: str) -> None:
    pass


NO_B_FRAMES = {"x264-params": "bframes=0"}
UNUSUAL = {
    "one frame": (lambda folder: write_video(folder / "a.mp4", 1), (1, 32, 64)),
    "8k by 8k in the header": (patched(as_8k), (24, 32, 64)),
    "10 bit": (patched(no_change, pix_fmt="yuv420p10le"), (24, 32, 64)),
    "odd sizes": (patched(no_change, "a.mkv", codec="ffv1", size=(33, 65)), (24, 33, 65)),
    "one pixel": (patched(no_change, "a.mkv", codec="ffv1", size=(1, 8), pix_fmt="yuv444p"), (24, 1, 8)),
    "no time stamps": (patched(no_change, "a.h264", codec_options=NO_B_FRAMES), (24, 32, 64)),
    "variable rate": (patched(no_change, times=[*range(12), *range(20, 32)]), (24, 32, 64)),
    "a cover picture": (patched(lambda path: add_cover(path, first=True)), (24, 32, 64)),
    "turned": (patched(lambda path: set_display_matrix(path, (0, 1, -1, 0, 32, 0))), (24, 64, 32)),
    "mirrored": (patched(lambda path: set_display_matrix(path, (-1, 0, 0, 1, 64, 0))), (24, 32, 64)),
    "an odd name": (patched(no_change, "-rf 'x\"\n;rm %d\N{CLAPPER BOARD}.mp4"), (24, 32, 64)),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_files_go_through_the_chain(tmp_path: Path, case: str) -> None:
    """Probe, detect and cut agree on the frames; the clip shows those of the film."""
    make, expected = UNUSUAL[case]
    row = probe({"path": make(tmp_path)}, decode=True)
    frames, height, width = expected
    assert (row["num_frames"], row["height"], row["width"]) == expected
    scenes = [each for each in detect(row) if isinstance(each, dict)]
    assert (scenes[0]["start_frame"], scenes[-1]["end_frame"]) == (0, frames)
    scene = {**row, "start_frame": 0, "end_frame": frames}
    [clip] = [each for each in cut(scene, folder=str(tmp_path / "clips")) if isinstance(each, dict)]
    assert clip["num_frames"] == frames
    assert (clip["height"], clip["width"]) == (max(2, height // 2 * 2), max(2, width // 2 * 2))
    with Video(row["path"]) as film, Video(clip["path"]) as video:
        shown = zip(film.frames(range(frames)), video.frames(range(frames)), strict=True)
        assert all(abs(float(one.mean()) - float(other.mean())) < 8 for one, other in shown)
