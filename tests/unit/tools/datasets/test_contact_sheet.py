"""The contact sheet: the middle frame of every shot, and the captions to fill in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opensora.datasets.table import read_table, write_table
from tests.unit.tools.scene_cut.test_detect import color_video
from tools.datasets.contact_sheet import GAP, LINE, film_names, main

RED, BLUE = (220, 30, 30), (30, 30, 220)


def center(sheet: Path, place: int, columns: int = 2, height: int = 36) -> tuple[int, ...]:
    """The color in the middle of a cell."""
    left, top = GAP + place % columns * (64 + GAP), GAP + place // columns * (height + 2 * LINE + GAP)
    return tuple(np.asarray(Image.open(sheet))[top + height // 2, left + 32].tolist())


def close(color: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(color, expected, strict=True)) < 12


def test_middle_frames_and_captions_to_fill_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scenes of one film, as detect writes them; the frame is the scene's, not the film's."""
    path = color_video(tmp_path / "film.mp4", 10, 8)
    scenes = [
        {"path": path, "shot": 0, "start_frame": 0, "end_frame": 10},
        {"path": path, "shot": 1, "start_frame": 10, "end_frame": 18},
        {"path": str(tmp_path / "gone.mp4"), "shot": 2, "start_frame": 0, "end_frame": 4},
    ]
    write_table(str(tmp_path / "scenes.csv"), scenes)
    (tmp_path / "captions.csv").write_text("video,shot,text\nfilm.mp4,1,blue\nother.mp4,7,kept\n")
    files = [str(tmp_path / name) for name in ("scenes.csv", "sheet.png", "captions.csv")]
    assert main([*files[:2], "--captions", files[2], "--columns", "2", "--height", "36"]) == 0
    sheet = tmp_path / "sheet.png"
    assert Image.open(sheet).size == (GAP + 2 * (64 + GAP), GAP + 2 * (36 + 2 * LINE + GAP))
    assert close(center(sheet, 0), RED)
    assert close(center(sheet, 1), BLUE)
    assert center(sheet, 2) == (255, 255, 255)
    printed = capsys.readouterr()
    assert printed.out == f"{sheet}\n"
    assert "scenes.csv:4: " in printed.err
    assert "2 captions, 2 to fill in" in printed.err
    assert [tuple(row.values()) for row in read_table(files[2]).rows] == [
        ("film.mp4", "1", "blue"), ("other.mp4", "7", "kept"), ("film.mp4", "0", ""), ("gone.mp4", "2", "")
    ]  # fmt: skip


def test_clips_of_their_own_on_several_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As cut writes them: the video that a clip was cut from names it."""
    rows = [{"path": color_video(tmp_path / f"{n}.mp4", 6), "video": "film.mp4", "shot": n} for n in range(3)]
    write_table(str(tmp_path / "shots.csv"), rows)
    arguments = [str(tmp_path / name) for name in ("shots.csv", "sheet.png")]
    assert main([*arguments, "--page", "2", "--height", "36", "--columns", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "sheet.png"), str(tmp_path / "sheet-2.png")]
    assert close(center(tmp_path / "sheet-2.png", 0), RED)


def test_films_of_one_name_are_named_with_their_folders() -> None:
    paths = ["/f/monday/clip.mp4", "/f/tuesday/clip.mp4", "/f/monday/other.mp4", "/f/monday/clip.mp4"]
    rows: list[dict[str, Any]] = [{"path": f"/clips/{n}.mp4", "source_path": path} for n, path in enumerate(paths)]
    assert film_names(rows) == ["monday/clip.mp4", "tuesday/clip.mp4", "other.mp4", "monday/clip.mp4"]
    assert film_names([{"path": "/a/b.mp4"}, {"path": "/clips/x.mp4", "video": "film.mp4"}]) == ["b.mp4", "film.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["none.csv", "sheet.png"], 1, "none.csv: no such manifest"),
        (["empty.csv", "sheet.png"], 1, "empty.csv: found no rows"),
        (["empty.csv", "sheet.jpg"], 2, "allowed: a name that ends in .png"),
        (["empty.csv", "sheet.png", "--columns", "0"], 2, "whole numbers from 1"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.csv").write_text("path,shot\n")
    assert main(arguments) == code
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "empty.csv"]
