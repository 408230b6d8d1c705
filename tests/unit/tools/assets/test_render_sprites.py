"""Drawings as pictures: which are chosen, and the files."""

import json
from pathlib import Path

from PIL import Image

from tests.unit.tools.assets.test_render_objects import ICONS, renderer
from tools.assets.render_sprites import choose, main

__all__ = ["renderer"]  # a fixture


def test_variants_are_left_out_and_the_choice_repeats() -> None:
    names = ["cat", "dog", "cat-dark", "hand-medium-skin-tone", "flag-chad", "bus", "owl"]
    assert sorted(choose(names, 10)) == ["bus", "cat", "dog", "owl"]
    assert choose(names, 2) == choose(reversed(names), 2) == choose(names, 4)[:2]


def test_pictures_carry_the_names(tmp_path: Path, renderer: list[str], capsys) -> None:
    (tmp_path / "icons.json").write_text(json.dumps(ICONS))
    assert main([str(tmp_path / "icons.json"), str(tmp_path / "sprites"), "--count", "2", "--side", "64"]) == 0
    names = choose(ICONS["icons"], 2)
    assert sorted(path.stem for path in (tmp_path / "sprites").iterdir()) == sorted(names)
    colors = {"red": (255, 0, 0, 255), "green": (0, 128, 0, 255), "blue": (0, 0, 255, 255)}
    for name in names:
        with Image.open(tmp_path / "sprites" / f"{name}.png") as picture:
            assert picture.getpixel((5, 5)) == colors[name]
    assert all('width="64"' in svg for svg in renderer)
    assert "sprites: 2 pictures" in capsys.readouterr().out


def test_a_missing_file_is_a_sentence(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "none.json"), str(tmp_path / "sprites")]) == 1
    assert "none.json: cannot be read as JSON" in capsys.readouterr().err
