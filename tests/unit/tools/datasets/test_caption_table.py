"""Captions of shots, and the chain of tools that ends with them."""

import re
from pathlib import Path

import pytest

from opensora.datasets.table import read_table, write_table
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.datasets.caption_table import caption, caption_table, check_captions
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


def run_caption(folder: Path, captions: str, rows: list[dict[str, object]]) -> tuple[int, list[str]]:
    """Exit code, and the captions of the clips that got one."""
    (folder / "captions.csv").write_text("video,shot,text\n" + captions)
    write_table(str(folder / "in.csv"), rows)
    output = folder / "out.csv"
    output.unlink(missing_ok=True)
    arguments = [str(folder / "in.csv"), str(output), "--captions", str(folder / "captions.csv")]
    caption_table.cache_clear()
    code = main(caption, arguments, check=check_captions)
    return code, [row["text"] for row in read_table(str(output)).rows] if output.exists() else []


def clip(film: str, shot: object = 0) -> dict[str, object]:
    """A row as tools.scene_cut.cut writes it."""
    name = film.replace("/", "-")
    return {
        "path": f"/clips/{name}-{shot}.mp4",
        "video": film.split("/")[-1],
        "source_path": f"/f/{film}",
        "shot": shot,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,0,\n", "all 1 rows are left out; the first: .*in.csv:2: .*captions.csv:2: the caption is empty; write one"),
        ("a,0,NaN\n", "captions.csv:2: the caption is empty"),
        ("a,0,\u200b\n", "captions.csv:2: the caption is empty"),
        ("a,0,x\na,0.0,y\n", "captions.csv:3: repeats .*captions.csv:2"),
    ],
)
def test_caption_table_with_a_bad_line(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_caption(tmp_path, text, [clip("a")]) == (1, [])
    assert re.search(says, capsys.readouterr().err)


def test_uncaptioned_clips_are_counted_and_unused_captions_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four of six shots have no caption, two of them a line that waits for one; one caption is of a shot that is not there."""
    captions = "a.mp4,1,one\na.mp4,2,\na.mp4,3,  \na.mp4,5,five\na.mp4,99,typo\n"
    assert run_caption(tmp_path, captions, [clip("a.mp4", shot) for shot in range(6)]) == (0, ["one", "five"])
    lines = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/captions.csv:6: not used, no clip is of video 'a.mp4', shot '99'" in lines
    [counted] = [line for line in lines if "in.csv:" in line]
    assert counted.startswith(
        f"left out: 4 of 6 rows, the first: {tmp_path}/in.csv:2: video 'a.mp4', shot '0': no caption in"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "captions.csv",
        "in.csv",
        "out.csv",
        "out.csv.history.json",
    ]


TWO = [clip("monday/clip.mp4"), clip("tuesday/clip.mp4")]


@pytest.mark.parametrize(
    ("captions", "texts"),
    [
        ("monday/clip.mp4,0,lighter\ntuesday/clip.mp4,0,darker\n", ["lighter", "darker"]),
        ("/f/monday/clip.mp4,0,lighter\n./tuesday/clip.mp4, 0.0,darker\n", ["lighter", "darker"]),
        ("clip.mp4,0,darker\nmonday/clip.mp4,0,lighter\n", ["lighter", "darker"]),
        ("monday/clip.mp4,0,lighter\nday/clip.mp4,0,x\n", ["lighter"]),
    ],
)
def test_films_of_one_name_by_their_folders(tmp_path: Path, captions: str, texts: list[str]) -> None:
    assert run_caption(tmp_path, captions, TWO) == (0, texts)


def test_a_line_that_fits_several_films(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_caption(tmp_path, "a.mp4,0,x\nclip.mp4,0,lighter\n", TWO) == (2, [])
    message = capsys.readouterr().err
    assert "captions.csv:3: video 'clip.mp4' fits several films, /f/monday/clip.mp4 and /f/tuesday/clip.mp4" in message
    before = [
        {name: cell for name, cell in row.items() if name != "source_path"} for row in TWO
    ]  # tables of old versions
    assert run_caption(tmp_path, "clip.mp4,0,lighter\n", before) == (2, [])
    assert run_caption(tmp_path, "clip.mp4,0,lighter\n", before[:1]) == (0, ["lighter"])


def test_damaged_lines_are_named_and_the_others_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = 'a.mp4,0,a red, round ball\nb.mp4,0,"a 5 inch screen\nc.mp4,0,fine\n'
    assert run_caption(tmp_path, captions, [clip("a.mp4"), clip("b.mp4"), clip("c.mp4")]) == (0, ["fine"])
    message = capsys.readouterr().err
    assert "captions.csv:2: 1 more cells than the header" in message
    assert "captions.csv:3: a quote opens and is not closed" in message
    assert "in.csv:2: video 'a.mp4', shot '0': no caption in" in message


def test_every_shot_of_the_demo_has_a_caption() -> None:
    table = caption_table("configs/demo/captions.csv").texts
    shots = [("bikes.mp4", str(shot)) for shot in range(6)]
    assert sorted(table) == sorted([*shots, ("bigbuckbunny.mp4", "0"), ("carphone_pristine.mp4", "0")])
    assert len(set(table.values())) == 8
