"""Videos and pictures with damaged bytes: each is read with frames of its own, or refused by a sentence that names it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from opensora.datasets.decode import Video
from opensora.datasets.video import VideoTextDataset
from opensora.errors import BadClip
from opensora.rng import Draw
from tests.e2e.odd_inputs.case import Workbench
from tests.support.damage import DAMAGES, Damage
from tests.support.media_files import frame_number, frame_picture, write_video

FRAMES, HEIGHT, WIDTH = 12, 32, 64
VIDEOS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "ts": "mpeg2video", "avi": "mpeg4"}
PICTURES = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}
RANDOM = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,  # the same files on every machine
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Files(dict[str, bytes]):
    def __repr__(self) -> str:
        return "Files()"  # a failure prints no bytes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file of each kind, by its suffix; the picture is frame 9 of the videos."""
    folder, files = tmp_path_factory.mktemp("whole"), Files()
    for suffix, codec in VIDEOS.items():
        files[suffix] = Path(write_video(folder / f"a.{suffix}", FRAMES, codec=codec)).read_bytes()
    for suffix, kind in PICTURES.items():
        data = io.BytesIO()
        Image.fromarray(frame_picture(9, HEIGHT, WIDTH)).save(data, kind)
        files[suffix] = data.getvalue()
    return files


def read(path: Path) -> list[NDArray[np.uint8]]:
    """All frames that the file is said to have."""
    with Video(str(path)) as video:
        info = video.info
        frames = [frame.copy() for frame in video.frames(range(info.num_frames))]
    assert len(frames) == info.num_frames >= 1
    assert info.fps > 0
    assert {frame.shape for frame in frames} == {(info.height, info.width, 3)}
    return frames


@pytest.mark.parametrize("suffix", [*VIDEOS, *PICTURES])
def test_whole_files_are_read(whole: Files, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(whole[suffix])
    numbers = [frame_number(frame) for frame in read(tmp_path / f"a.{suffix}")]
    assert numbers == ([9] if suffix in PICTURES else list(range(FRAMES)))


@RANDOM
@given(suffix=st.sampled_from([*VIDEOS, *PICTURES]), damages=DAMAGES)
def test_damaged_files(whole: Files, tmp_path: Path, suffix: str, damages: list[Damage]) -> None:
    """Frames are those of the size and number that the file names, equal at each reading."""
    path, data = tmp_path / f"damaged.{suffix}", whole[suffix]
    for damage in damages:
        data = damage.apply(data)
    path.write_bytes(data)
    try:
        frames = read(path)
    except BadClip as error:
        assert str(path) in str(error)  # noqa: PT017
        return
    for one, other in zip(frames, read(path), strict=True):
        np.testing.assert_array_equal(one, other)
    if suffix == "png":  # a checksum notices any change of the content
        assert [frame_number(frame) for frame in frames] == [9]


def test_training_names_the_damaged_files_that_it_meets(
    whole: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and damaged files in turn; `check` counts and one training step names the ones that the reader refuses."""
    rng, rows = np.random.default_rng(0), ["path,text"]
    for number in range(6):
        for suffix in VIDEOS:
            data = bytearray(whole[suffix])
            if number % 2:
                for at in rng.integers(0, len(data), 20):
                    data[at] ^= 0xFF
            (tmp_path / f"{number}.{suffix}").write_bytes(bytes(data))
            rows.append(f"{number}.{suffix},clip {number} as {suffix}")
    manifest = tmp_path / "all.csv"
    manifest.write_text("\n".join(rows) + "\n")
    data_set = VideoTextDataset(str(manifest), num_frames=5, image_size=(16, 16), start="first")
    refused = set()
    for row in range(len(data_set)):
        try:
            clip = data_set.clip(row, Draw(0, 0, row))
        except BadClip as error:
            refused.add(str(error).split(": ")[0])
            continue
        assert clip.video_CTHW.shape == (3, 5, 16, 16)
    report = data_set.inspect()
    assert report.rows - report.kept == len(refused) >= 5
    outcome = Workbench(tmp_path, monkeypatch).train(manifest, "batch_size=8", "max_bad_rows=15", "dataset.start=first")
    assert outcome.has("30 rows in, 30 kept") == "exit 0"
    named = set(re.findall(rf"{re.escape(str(manifest))}:\d+", outcome.text))
    assert named
    assert named <= refused
