from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from opensora.errors import BadClip, ConfigError
from tests.support.media_files import write_video
from tools.caption.read_text import ReadText, merge_lines
from tools.datasets.contact_sheet import _font

pytest.importorskip("rapidocr", reason="reads text; install requirements/onnx.txt")


def sign(*lines: str) -> NDArray[np.uint8]:
    """[H, W, 3]: white lines on a blue ground."""
    page = Image.new("RGB", (224, 96), (20, 40, 90))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((16, 10 + 44 * number), line, (255, 255, 255), _font(24, bold=True))
    return np.asarray(page)


@pytest.fixture(scope="module")
def reader() -> ReadText:
    return ReadText(frames=2)


def test_text_of_all_frames_once(reader: ReadText, tmp_path: Path) -> None:
    frames = [sign("MAIN STREET", "Exit 24")] * 4 + [sign("MAIN STREET")] * 4
    rows = [
        {"path": write_video(tmp_path / "sign.mp4", frames), "id": 7},
        {"path": str(tmp_path / "missing.mp4")},
        {"path": write_video(tmp_path / "plain.mp4", [sign()] * 4)},
    ]
    results = reader(rows)
    assert results[0] == {**rows[0], "ocr_text": "MAIN STREET / Exit 24"}
    assert isinstance(results[1], BadClip)
    assert results[2] == {**rows[2], "ocr_text": ""}


def test_lines_that_are_not_sure_are_left_out(reader: ReadText, monkeypatch: pytest.MonkeyPatch) -> None:
    output = SimpleNamespace(txts=("EXIT", "q@x"), scores=(0.7, 0.69))
    monkeypatch.setattr(reader, "_reader", lambda frame: output)
    assert reader._lines(sign()) == [("EXIT", 0.7)]


def test_readings_of_one_line_are_merged() -> None:
    frames = [[("EX1T 24", 0.8), ("Open", 0.9)], [("EXIT 24", 0.95), ("Closed", 0.9)], [], [("exit 24", 0.7)]]
    assert merge_lines(frames) == ["EXIT 24", "Open", "Closed"]


@pytest.mark.parametrize("flags", [{"frames": 0}, {"sure": 2.0}, {"max_side": -1}, {"threads": 0}])
def test_flags_that_are_refused(flags: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="frames and threads are at least 1"):
        ReadText(**flags)  # type: ignore[arg-type]
