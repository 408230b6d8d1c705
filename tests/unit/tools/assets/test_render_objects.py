import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from opensora.errors import ConfigError, DataError
from tools.assets.render_objects import main, render_sheet

ICONS = {"width": 32, "height": 32, "icons": {name: {"body": f"<{name}/>"} for name in ("red", "green", "blue")}}


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for resvg that fills the picture with the color whose name is the body; returns the SVGs it got."""
    svgs: list[str] = []

    def svg_to_bytes(svg_string: str) -> list[int]:
        svgs.append(svg_string)
        color = svg_string.rpartition("/></svg>")[0].rpartition("<")[2]
        data = io.BytesIO()
        Image.new("RGBA", (64, 64), color).save(data, "PNG")
        return list(data.getvalue())

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))  # type: ignore[arg-type]
    return svgs


def test_drawings_stand_in_the_order_of_the_names(renderer: list[str]) -> None:
    names = {f"name {n}": ("blue", "red")[n % 2] for n in range(11)}
    sheet = render_sheet(ICONS, names)
    assert sheet.size == (640, 128)
    assert sheet.getpixel((32, 32)) == (0, 0, 255, 255)
    assert sheet.getpixel((64 * 9 + 32, 32)) == (255, 0, 0, 255)
    assert sheet.getpixel((32, 96)) == (0, 0, 255, 255)
    assert sheet.getpixel((100, 96)) == (0, 0, 0, 0)
    assert renderer[0].startswith('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="64" height="64">')


def test_a_name_that_the_package_lacks_is_a_sentence(renderer: list[str]) -> None:
    with pytest.raises(DataError, match=r"names\.json: the package has no drawing pink; correct"):
        render_sheet(ICONS, {"a": "red", "b": "pink"})


def test_command(renderer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "icons.json").write_text(json.dumps(ICONS))
    (tmp_path / "names.json").write_text('{"leaf": "green"}')
    assert main([str(tmp_path / "icons.json"), str(tmp_path)]) == 0
    assert Image.open(tmp_path / "drawings.png").getpixel((0, 0)) == (0, 128, 0, 255)
    (tmp_path / "names.json").write_text("[]")
    assert main([str(tmp_path / "icons.json"), str(tmp_path)]) == 1
    assert "names.json: found no table of names" in capsys.readouterr().err


def test_without_the_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "resvg_py", missing)
    with pytest.raises(ConfigError, match="resvg"):
        render_sheet(ICONS, {"a": "red"})
