"""Captions of shots, and the chain of tools that ends with them."""

from pathlib import Path

import pytest

from opensora.datasets.table import read_table, write_table
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.datasets.caption_table import caption, caption_table
from tools.runner import main
from tools.scene_cut.cut import cut
from tools.scene_cut.detect import detect


def test_from_videos_to_a_training_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's chain of tools on small videos; a shot without a caption is reported and left out."""
    color_video(tmp_path / "a.mp4", 6, 6)
    color_video(tmp_path / "b.mp4", 6)
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
