"""A cut clip holds exactly its frames."""

import os
from pathlib import Path

import pytest

from opensora.datasets.decode import probe, read_frames
from opensora.errors import BadClip
from tests.support.media_files import frame_number, write_video
from tools.scene_cut.cut import _fingerprint, cut


def test_cut_holds_exactly_its_frames(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mkv", 40, size=(33, 65), codec="ffv1")
    row = {"path": video, "shot": 2, "start": 1.25, "end": 2.5, "start_frame": 10, "end_frame": 20, "text": "kept"}
    done = cut(row, folder=str(tmp_path / "clips"))
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
        names.add(
            cut({"path": path, "start_frame": 0, "end_frame": end}, folder=str(tmp_path / "clips"), crf=crf)["path"]
        )
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
        cut({"path": str(path), "start_frame": 0, "end_frame": 60}, folder=str(tmp_path / "clips"))
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize("row", [{}, {"start_frame": "x", "end_frame": "3"}, {"start_frame": 3, "end_frame": 3}])
def test_cut_needs_frame_numbers(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(BadClip, match=r"a\.mp4: start_frame"):
        cut({"path": write_video(tmp_path / "a.mp4", 4), **row}, folder=str(tmp_path))
