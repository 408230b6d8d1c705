"""Shots: where they are found, and that a cut clip holds exactly its frames."""

from pathlib import Path

import numpy as np
import pytest

from opensora.datasets.decode import probe, read_frames
from opensora.datasets.table import read_table, write_table
from opensora.errors import BadClip
from tests.support.media_files import frame_number, write_video
from tools.datasets.caption_table import caption, caption_table
from tools.datasets.videos import demo_videos
from tools.runner import main
from tools.scene_cut.cut import cut
from tools.scene_cut.detect import detect, scenes

BIKES_CUTS = [30, 76, 137, 187, 242]


def colour_video(path: Path, *lengths: int) -> str:
    """Shots of plain colours, of these lengths in frames, 8 frames per second."""
    colours = ([220, 30, 30], [30, 30, 220], [30, 200, 30])
    frames = [np.full((32, 64, 3), colours[i % 3], np.uint8) for i, n in enumerate(lengths) for _ in range(n)]
    return write_video(path, frames)


def test_detect_finds_every_cut_and_no_more(tmp_path: Path) -> None:
    found = list(detect({"path": colour_video(tmp_path / "a.mp4", 10, 7, 9), "text": "kept"}))
    assert [(row["start_frame"], row["end_frame"]) for row in found] == [(0, 10), (10, 17), (17, 26)]
    assert [(row["start"], row["end"]) for row in found] == [(0, 1.25), (1.25, 2.125), (2.125, 3.25)]
    assert [row["shot"] for row in found] == [0, 1, 2]
    assert {row["text"] for row in found} == {"kept"}
    assert {(row["num_frames"], row["fps"], row["height"], row["width"]) for row in found} == {(26, 8.0, 32, 64)}


def test_short_scenes_join_the_one_before() -> None:
    assert scenes([10, 12, 20], 30, 5) == [(0, 12), (12, 20), (20, 30)]
    assert scenes([2, 10], 30, 5) == [(0, 10), (10, 30)]  # the first has none before it
    assert scenes([10, 28], 30, 5) == [(0, 10), (10, 30)]
    assert scenes([], 30, 5) == [(0, 30)]
    assert scenes([10, 28], 30, 0) == [(0, 10), (10, 28), (28, 30)]


def test_real_footage() -> None:
    """bikes.mp4 has six shots, the last one a third of a second long."""
    found = list(detect({"path": demo_videos()[0]}))
    assert [row["start_frame"] for row in found] == [0, *BIKES_CUTS]
    assert found[-1]["end_frame"] == 250


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


def test_from_videos_to_a_training_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's chain of tools on small videos; a shot without a caption is told and left out."""
    colour_video(tmp_path / "a.mp4", 6, 6)
    colour_video(tmp_path / "b.mp4", 6)
    captions = tmp_path / "captions.csv"
    captions.write_text('video,shot,text\na.mp4,0,"red, all over"\nb.mp4,0,red again\n')
    scenes_csv, clips_csv, train_csv = (
        str(tmp_path / name) for name in ("scenes.csv", "clips/clips.csv", "clips/train.csv")
    )
    assert main(detect, [str(tmp_path), scenes_csv]) == 0
    assert main(cut, [scenes_csv, clips_csv, "--folder", str(tmp_path / "clips")]) == 0
    assert main(caption, [clips_csv, train_csv, "--captions", str(captions)]) == 0
    rows = read_table(train_csv).rows
    assert [(row["text"], row["num_frames"]) for row in rows] == [("red, all over", "6"), ("red again", "6")]
    assert all((tmp_path / "clips" / row["path"]).exists() for row in rows)
    assert "clips.csv:3: video 'a.mp4', shot '1': no caption in" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "says"), [("a,0,\n", "caption is empty"), ("a,0,x\na,0,y\n", "repeats")])
def test_caption_table_with_a_bad_line(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.csv").write_text("video,shot,text\n" + text)
    write_table(str(tmp_path / "in.csv"), [{"path": "a.mp4", "video": "a", "shot": 0}])
    arguments = [str(tmp_path / name) for name in ("in.csv", "out.csv")]
    assert main(caption, [*arguments, "--captions", str(tmp_path / "captions.csv")]) == 1
    assert says in capsys.readouterr().err


def test_every_shot_of_the_demo_has_a_caption() -> None:
    table = caption_table("configs/demo/captions.csv")
    shots = [("bikes.mp4", str(shot)) for shot in range(6)]
    assert sorted(table) == sorted([*shots, ("bigbuckbunny.mp4", "0"), ("carphone_pristine.mp4", "0")])
    assert len(set(table.values())) == 8
