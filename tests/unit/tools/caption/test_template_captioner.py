from pathlib import Path

import numpy as np

from opensora.errors import BadClip
from tests.support.media_files import write_video
from tools.caption.caption import Caption


def red(folder: Path, name: str) -> str:
    return write_video(folder / name, [np.full((48, 64, 3), (200, 30, 30), np.uint8)] * 16)


def test_default_puts_measures_into_words(tmp_path: Path) -> None:
    rows = [
        {"path": red(tmp_path, "pan.mp4"), "cmotion": "pan_left", "flow": 30.0},
        {"path": str(tmp_path / "missing.mp4")},
        {"path": red(tmp_path, "plain.mp4")},
    ]
    panned, missing, plain = Caption()(rows)  # type: ignore[arg-type]
    assert isinstance(panned, dict)
    assert isinstance(plain, dict)
    assert panned["captioner"] == plain["captioner"] == "template"
    assert panned["text"].startswith("A video of 64x48 pixels and 2 seconds, mostly red. The camera pans left")
    assert plain["text"] == "A video of 64x48 pixels and 2 seconds, mostly red."
    assert isinstance(missing, BadClip)
    assert set(panned) == {"path", "text", "cmotion", "flow", "captioner"}
