from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from opensora.datasets.manifest import ManifestRow
from opensora.datasets.manifest_mismatch import mismatch
from opensora.datasets.table import write_table
from opensora.datasets.video import VideoTextDataset
from opensora.datasets.video_info import VideoInfo
from opensora.rng import Draw
from tests.support.media_files import write_picture

ROW = ManifestRow(0, "train.csv:2", "a.mp4", "x", 100, 25.0, 48, 128, None, None)
INFO = VideoInfo("a.mp4", 100, Fraction(25), 48, 128, stored_height=48, stored_width=64)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_frames": 101},
        {"fps": 24.975},
        {"height": 48, "width": 64},  # as stored
        {"height": 64, "width": 48},
        {"height": 50, "width": 128},
        {"num_frames": None, "fps": None, "height": None, "width": None},
    ],
)
def test_numbers_that_agree(change: dict[str, float]) -> None:
    assert mismatch(replace(ROW, **change), INFO) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 1080, "width": 1920}, "1920x1080 pixels, the file has 128x48"),
        ({"num_frames": 9999}, "9999 frames, the file has 100"),
        ({"fps": 50.0}, "50 frames per second, the file has 25"),
    ],
)
def test_numbers_that_do_not(change: dict[str, float], words: str) -> None:
    assert mismatch(replace(ROW, **change), INFO) == words  # type: ignore[arg-type]


def test_a_row_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_picture(tmp_path / "a.png")
    write_table(str(tmp_path / "train.csv"), [{"path": path, "text": "x", "height": 1080, "width": 1920}])
    data = VideoTextDataset(str(tmp_path / "train.csv"), num_frames=1, image_size=(16, 16))
    for step in range(3):
        assert data.clip(0, Draw(0, step, 0)).video_CTHW.shape == (3, 1, 16, 16)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/train.csv:2: {path}: the manifest says 1920x1080 pixels, the file has 64x32; "
        "make the manifest again with tools.datasets.probe"
    ]
