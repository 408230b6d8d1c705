"""Measures of technical faults follow the fault, and quality ranks copies of one clip."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from opensora.errors import BadClip, ConfigError
from tests.support.camera_clips import footage, pictures, render
from tests.support.media_files import write_video
from tools.score.technical import blocking, blur, technical

Picture = NDArray[np.uint8]
PHOTOS = {"actress": 0, "rabbit": 1, "street": 5, "driver": 8}


def gray(number: int) -> Image.Image:
    return Image.fromarray(pictures()[number]).convert("L")


def as_jpeg(picture: Image.Image, quality: int) -> Picture:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def moving(count: int = 24, fps: int = 24) -> list[Picture]:
    """A camera that goes to the right by 0.3 shorter sides per second."""
    poses = np.zeros((count, 4))
    poses[:, 0], poses[:, 2] = 0.3 * np.arange(count) / fps, 1
    return render(pictures()[1], poses, 96, 128, np.random.default_rng(2))


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_blur_grows_with_the_radius(photo: int) -> None:
    picture = gray(photo)
    blurs = [blur(np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 0.7, 1.5, 3, 5)]
    assert blurs == sorted(blurs)
    assert blurs[-1] - blurs[0] > 0.15
    assert blurs[0] > 0
    assert blurs[-1] < 1


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_blocking_grows_as_the_quality_of_a_jpeg_falls(photo: int) -> None:
    blocks = [blocking(as_jpeg(gray(photo), quality)) for quality in (80, 40, 15, 5)]
    assert blocks == sorted(blocks)
    assert blocking(np.asarray(gray(photo))) < 0.25
    assert blocks[-1] > 0.85


def test_the_edges_of_blocks_do_not_pass_for_sharpness() -> None:
    blurs = [blur(as_jpeg(gray(5), quality)) for quality in (95, 40, 5)]
    assert blurs == sorted(blurs)


def test_a_grid_may_begin_anywhere() -> None:
    coded = as_jpeg(gray(1), 15)
    assert blocking(coded[3:, 5:]) == pytest.approx(blocking(coded), abs=0.02)


def test_flat_pictures_are_not_sharp_and_have_no_blocks() -> None:
    flat = np.full((64, 64), 90, np.uint8)
    assert (blur(flat), blocking(flat)) == (1, 0)
    assert blocking(np.zeros((5, 9), np.uint8)) == 0


def test_the_pristine_copy_ranks_above_the_distorted_one() -> None:
    pristine, distorted = (technical({"path": footage(f"carphone_{name}.mp4")}) for name in ("pristine", "distorted"))
    assert pristine["blur"] < distorted["blur"] - 0.05
    assert pristine["blocking"] < distorted["blocking"] - 0.1
    assert pristine["quality"] > 1.3 * distorted["quality"]


def test_stronger_coding_ranks_lower(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{crf}.mp4", moving(), codec_options={"crf": str(crf)}) for crf in (5, 28, 38, 45)]
    qualities = [technical({"path": path})["quality"] for path in paths]
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_smaller_copies_rank_lower_at_any_size(photo: int, tmp_path: Path) -> None:
    """A quarter of the photograph, half of it, all of it; and the half made as large as the photograph."""
    original = gray(photo)

    def rank(picture: Image.Image) -> float:
        picture.save(tmp_path / "a.png")
        return float(technical({"path": str(tmp_path / "a.png")})["quality"])

    def scaled(part: float) -> Image.Image:
        return original.resize((round(original.width * part), round(original.height * part)), Image.Resampling.BOX)

    ranks = [rank(scaled(part)) for part in (0.25, 0.5, 1)]
    assert ranks == sorted(ranks)
    assert rank(scaled(0.5).resize(original.size, Image.Resampling.BICUBIC)) < ranks[-1]


def test_duplicate_and_black_frames_are_counted(tmp_path: Path) -> None:
    """Every second frame repeats the one before; a sixth is black."""
    frames = [frame for frame in moving(10, fps=12) for _ in range(2)]
    row = technical({"path": write_video(tmp_path / "a.mp4", frames, fps=24), "text": "kept"})
    assert row["duplicate_frames"] == pytest.approx(10 / 19, abs=0.06)  # coding may change one of the ten
    assert (row["black_frames"], row["text"]) == (0, "kept")
    assert technical({"path": write_video(tmp_path / "b.mp4", moving(), fps=24)})["duplicate_frames"] == 0
    dark = [np.full_like(frames[0], 4)] * 4
    row = technical({"path": write_video(tmp_path / "c.mp4", moving(16) + dark)})
    assert row["black_frames"] == 0.2
    assert row["underexposed"] == pytest.approx(0.2, abs=0.05)
    assert row["overexposed"] < 0.05
    assert row["exposure"] == pytest.approx(row["underexposed"] + row["overexposed"], abs=1e-3)


def test_slow_motion_gives_no_duplicates(tmp_path: Path) -> None:
    """Thirty percent of the shorter side per second, half a pixel per frame."""
    frames = moving(24, fps=60)
    assert technical({"path": write_video(tmp_path / "a.mp4", frames, fps=60)})["duplicate_frames"] == 0
    still = [frames[0]] * 12
    assert technical({"path": write_video(tmp_path / "b.mp4", still)})["duplicate_frames"] > 0.9


def test_a_black_clip_has_the_lowest_quality(tmp_path: Path) -> None:
    row = technical({"path": write_video(tmp_path / "a.mp4", [np.zeros((32, 64, 3), np.uint8)] * 8)})
    assert (row["black_frames"], row["duplicate_frames"], row["exposure"], row["quality"]) == (1, 1, 1, 0)


def test_a_picture_is_measured_too(tmp_path: Path) -> None:
    gray(1).save(tmp_path / "a.png")
    row = technical({"path": str(tmp_path / "a.png")})
    assert (row["duplicate_frames"], row["black_frames"]) == (0, 0)
    assert 10 < row["quality"] < 720


def test_a_long_film_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 400 frames at most 25 become pictures."""
    from opensora.datasets.video_file import VideoFile

    path = write_video(tmp_path / "a.mp4", 400, fps=25, gop=25, codec_options={"preset": "ultrafast"})
    pixels, shown = VideoFile.pixels, []
    monkeypatch.setattr(VideoFile, "pixels", lambda self, *frame: (shown.append(1), pixels(self, *frame))[1])
    technical({"path": path})
    assert len(shown) == 25


def test_bad_clips_are_sentences(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not a video")
    with pytest.raises(BadClip, match=r"a\.mp4"):
        technical({"path": str(path)})
    with pytest.raises(ConfigError, match="--runs 0; at least 1"):
        technical({"path": str(path)}, runs=0)
