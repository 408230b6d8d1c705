"""Clips from still pictures: the camera, the drawings on top, and the files."""

import itertools
from pathlib import Path

import numpy as np

from opensora.datasets.decode import Video
from opensora.datasets.manifest import read_manifest
from tests.support.media_files import write_video
from tools.demo.varied_footage import Camera, camera_path, crop_footage, main, make_clip, put, view, write_clip


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows by 1 per column, green by 1 per row."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(width)[None, :], np.arange(height)[:, None]
    return picture


def test_the_view_is_where_the_camera_looks() -> None:
    """Pixel centers: frame pixel (row, column) shows the picture at the middle plus its offset times the scale."""
    picture = ramp(200, 240)
    frame = view(picture, Camera(x=100.0, y=80.0, pixels=2.0, angle=0.0), (16, 24)).astype(float)
    columns, rows = np.meshgrid(np.arange(24) - 11.5, np.arange(16) - 7.5)
    np.testing.assert_allclose(frame[..., 0], 100 + 2 * columns, atol=1.0)
    np.testing.assert_allclose(frame[..., 1], 80 + 2 * rows, atol=1.0)


def test_the_camera_turns_clockwise() -> None:
    """A quarter turn: the right of the frame shows what lies below in the picture, the bottom what lies left."""
    frame = view(ramp(200, 200), Camera(100.0, 100.0, 1.0, np.pi / 2), (20, 20)).astype(float)
    np.testing.assert_allclose(frame[..., 1], np.tile(100 + np.arange(20) - 9.5, (20, 1)), atol=1.0)
    np.testing.assert_allclose(frame[..., 0], np.tile(100 - np.arange(20) + 9.5, (20, 1)).T, atol=1.0)


def test_camera_paths_stay_in_their_bounds() -> None:
    for seed in range(50):
        cameras = camera_path(np.random.default_rng(seed), (480, 720), (64, 96), 17)
        assert len(cameras) == 17
        steps = [np.hypot(b.x - a.x, b.y - a.y) / a.pixels for a, b in itertools.pairwise(cameras)]
        assert np.mean(steps) < 4.5  # pixels of the clip per frame, a shaking hand included
        assert all(0.8 < camera.pixels < 9 for camera in cameras)


def test_a_drawing_covers_where_it_is_opaque() -> None:
    ground = np.full((5, 64, 96, 3), 100, dtype=np.uint8)
    sprite = np.zeros((32, 32, 4), dtype=np.uint8)
    sprite[8:24, 8:24] = (255, 0, 0, 255)
    clip = put(ground, sprite, np.random.default_rng(3))
    changed = (clip != 100).any(-1)
    assert changed.sum(axis=(1, 2)).min() > 20
    inside = clip[(clip[..., 0] > 250) & (clip[..., 1] < 5)]
    assert len(inside) > 100
    assert (clip[~changed] == 100).all()


def test_clips_repeat_with_their_seed_and_differ_without() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    one, same, other = (make_clip(picture, [], np.random.default_rng(seed), 5, (32, 48)) for seed in (1, 1, 2))
    assert one.shape == (5, 32, 48, 3)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_footage_keeps_its_motion() -> None:
    """The window does not move: a still film gives equal frames, a film that brightens gives brighter ones."""
    film = np.tile(ramp(100, 150)[None], (9, 1, 1, 1))
    film[..., 2] = np.arange(9)[:, None, None] * 10
    clip = crop_footage(film, np.random.default_rng(0), 5, (32, 48))
    assert (np.diff(clip[..., 2].astype(int), axis=0) == 10).all()
    assert (clip[1:, ..., :2] == clip[:1, ..., :2]).all()


def test_files_are_without_loss(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    write_clip(tmp_path / "clip.mp4", clip)
    with Video(str(tmp_path / "clip.mp4")) as video:
        assert np.array_equal(np.stack(list(video.frames(range(5)))), clip)


def test_the_command_writes_a_manifest_of_pictures_words_and_footage(tmp_path: Path, capsys) -> None:
    from PIL import Image

    Image.fromarray(ramp(100, 140)).save(tmp_path / "picture.png")
    long, short = tmp_path / "long.mp4", tmp_path / "short.mp4"
    write_video(long, frames=20, size=(48, 64))
    write_video(short, frames=5, size=(48, 64))
    (tmp_path / "shots.csv").write_text("path,num_frames\nlong.mp4,20\nshort.mp4,5\n")
    arguments = ["--pictures", str(tmp_path), "--each", "2", "--texts", "4", "--num-frames", "9", "--size", "32", "48"]
    arguments += ["--footage", str(tmp_path / "shots.csv"), "--footage-each", "3"]
    assert main([str(tmp_path / "out"), *arguments]) == 0
    assert "shots.csv:3: left out: 3 frames in the first 70%, a clip has 9" in capsys.readouterr().out
    rows = read_manifest(str(tmp_path / "out" / "manifest.csv"), captions=False).rows
    assert len(rows) == 2 + 4 + 3
    assert all((row.num_frames, row.height, row.width) == (9, 32, 48) for row in rows)
    assert all(Path(row.path).is_file() for row in rows)


def test_a_folder_without_pictures_is_a_sentence(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "out"), "--pictures", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: no picture; allowed endings: .jpg" in capsys.readouterr().err


def test_a_damaged_picture_is_named(tmp_path: Path, capsys) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main([str(tmp_path / "out"), "--pictures", str(tmp_path)]) == 1
    assert f"error: {tmp_path / 'half.png'}: cannot be read as a picture" in capsys.readouterr().err
