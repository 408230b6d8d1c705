"""VideoTextDataset: which frames make a clip."""

from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.datasets.clip_sizes import NO_FRAMES
from opensora.datasets.table import write_table
from opensora.datasets.transforms import to_uint8
from opensora.datasets.video import VideoTextDataset
from opensora.errors import BadClip, ConfigError, DataError
from opensora.rng import Draw
from opensora.types import Clip
from tests.support.media_files import frame_number, frame_picture, write_audio, write_picture, write_video


def numbers(clip: Clip) -> list[int]:
    return [frame_number(frame.numpy()) for frame in to_uint8(clip.video_CTHW).permute(1, 2, 3, 0)]


def dataset(folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> VideoTextDataset:
    write_table(str(folder / "train.csv"), rows)
    return VideoTextDataset(
        **{"data_path": str(folder / "train.csv"), "num_frames": 4, "image_size": (32, 64), **arguments}
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """40 numbered frames at 8 per second."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 40)


def draws(count: int) -> list[Draw]:
    return [Draw(seed=0, step=step, sample_id=0) for step in range(count)]


def test_clip(tmp_path: Path, video: str) -> None:
    data = dataset(tmp_path, [{"path": "none.mp4", "text": ""}, {"path": video, "text": "a cat"}], start="center")
    clip = data.clip(0, Draw(0, 0, 0))
    assert clip.video_CTHW.shape == (3, 4, 32, 64)
    assert clip.video_CTHW.dtype == torch.float32
    assert -1 <= clip.video_CTHW.min() < -0.4
    assert 0.3 < clip.video_CTHW.max() <= 1
    assert numbers(clip) == [18, 19, 20, 21]
    assert (clip.caption, clip.fps, clip.row) == ("a cat", 8.0, 1)  # row of the manifest, dropped ones counted


def test_start(tmp_path: Path, video: str) -> None:
    row = [{"path": video, "text": "x"}]
    assert numbers(dataset(tmp_path, row, start="first").clip(0, Draw(0, 0, 0))) == [0, 1, 2, 3]
    data = dataset(tmp_path, row)
    starts = [numbers(data.clip(0, draw))[0] for draw in draws(40)]
    assert starts == [numbers(data.clip(0, draw))[0] for draw in draws(40)]
    assert len(set(starts)) > 15
    assert max(starts) <= 36
    tight = dataset(tmp_path, row, num_frames=39)
    assert {numbers(tight.clip(0, draw))[0] for draw in draws(12)} == {0, 1}  # both ends are reached, no more


def test_interval_and_rate(tmp_path: Path, video: str) -> None:
    row = [{"path": video, "text": "x"}]

    def first(**arguments: Any) -> tuple[list[int], float]:
        data = dataset(tmp_path, row, start="first", **arguments)
        clip = data.clip(0, Draw(0, 0, 0))
        assert data.fps == clip.fps
        return numbers(clip), clip.fps

    assert first(frame_interval=3) == ([0, 3, 6, 9], 8 / 3)
    assert first(fps=4) == ([0, 2, 4, 6], 4.0)
    assert first(fps=4, frame_interval=2) == ([0, 4, 8, 12], 2.0)
    assert first(fps=5) == ([0, 2, 3, 5], 5.0)  # 0, 1.6, 3.2, 4.8
    assert first(fps=16) == ([0, 1, 1, 2], 16.0)


def test_shot_of_a_longer_video(tmp_path: Path, video: str) -> None:
    """start is included, end is not: frames 8 to 15 of 8 per second."""
    data = dataset(tmp_path, [{"path": video, "text": "x", "start": 1.0, "end": 2.0}], num_frames=8)
    assert numbers(data.clip(0, Draw(0, 0, 0))) == list(range(8, 16))
    with pytest.raises(BadClip, match=r"train\.csv:2: .*a\.mp4: .*8 frames.* 9 "):
        dataset(tmp_path, [{"path": video, "text": "x", "start": 1.0, "end": 2.0}], num_frames=9).clip(0, Draw(0, 0, 0))


def test_time_range_divides_the_frames(tmp_path: Path, video: str) -> None:
    row = [{"path": video, "text": "x"}]
    parts = []
    for part in ((0.0, 0.8), (0.8, 1.0)):
        data = dataset(tmp_path, row, num_frames=1, time_range=part)
        parts.append({numbers(data.clip(0, draw))[0] for draw in draws(200)})
    assert parts == [set(range(32)), set(range(32, 40))]


@pytest.mark.parametrize("crop", ["center", "random"])
def test_cache_changes_nothing_but_the_reading(
    tmp_path: Path, video: str, crop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"path": video, "text": "x"}, {"path": video, "text": "y", "start": 1, "end": 4}]
    arguments = {"image_size": (16, 16), "crop": crop, "flip": True, "time_range": (0.1, 0.9)}
    plain, cached = (dataset(tmp_path, rows, cache_megabytes=megabytes, **arguments) for megabytes in (0, 1))
    for row in (0, 1):
        cached.clip(row, Draw(9, 9, 9))
    expected = [plain.clip(row, draw).video_CTHW for row in (0, 1) for draw in draws(5)]
    monkeypatch.setattr("opensora.datasets.video.Video", None)  # from here on, opening a file is an error
    actual = [cached.clip(row, draw).video_CTHW for row in (0, 1) for draw in draws(5)]
    assert all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    with pytest.raises(TypeError):
        plain.clip(0, Draw(0, 0, 0))


def test_cache_keeps_to_its_limit(tmp_path: Path, video: str) -> None:
    """A whole video is 40 x 96 x 192 x 3 bytes = 2.1 MiB: one fits into 3 MiB, two do not."""
    rows = [{"path": video, "text": "x"}, {"path": video, "text": "y", "end": 5}]
    data = dataset(tmp_path, rows, image_size=(96, 192), cache_megabytes=3)
    for row in (0, 1):
        data.clip(row, Draw(0, 0, 0))
    assert [row for row, _ in data._cache] == [0]


def test_flip_mirrors_about_half(tmp_path: Path, video: str) -> None:
    data = dataset(tmp_path, [{"path": video, "text": "x"}], num_frames=1, start="center", flip=True)
    plain = dataset(tmp_path, [{"path": video, "text": "x"}], num_frames=1, start="center")
    still = plain.clip(0, Draw(0, 0, 0)).video_CTHW
    flipped = [torch.equal(data.clip(0, draw).video_CTHW, still.flip(-1)) for draw in draws(40)]
    assert 10 < sum(flipped) < 30


def test_a_clip_of_any_size(tmp_path: Path, video: str) -> None:
    """The very clip that a data set of that size makes, with a cache or without."""
    row = [{"path": video, "text": "x"}]
    data = dataset(tmp_path, row, num_frames=None, image_size=None, crop="random", cache_megabytes=8)
    for frames, *image_size in ((1, 32, 64), (5, 16, 16), (3, 16, 24), (5, 16, 16)):
        fixed = dataset(tmp_path, row, num_frames=frames, image_size=tuple(image_size), crop="random")
        for draw in draws(3):
            clip = data.clip(0, draw, (frames, image_size[0], image_size[1]))
            assert torch.equal(clip.video_CTHW, fixed.clip(0, draw).video_CTHW)
            assert clip.fps == 8.0
    with pytest.raises(BadClip, match=r"train\.csv:2: .*40 frames.* 41 "):
        data.clip(0, Draw(0, 0, 0), (41, 16, 16))
    with pytest.raises(ValueError, match="size"):
        data.clip(0, Draw(0, 0, 0))


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_sizes_are_what_a_clip_can_have(tmp_path: Path, name: str) -> None:
    """As columns what `_span` gives row by row, cut by start, end and time_range and brought to another rate."""
    size = {"height": 32, "width": 64}
    rows = [
        {"path": "a.mp4", "text": "x", "num_frames": 40, "fps": 8.0, **size},
        {"path": "b.mp4", "text": "x", "num_frames": 40, "fps": 8.0, "start": 1.0, "end": 3.3, **size},
        {"path": "c.mp4", "text": "x", "num_frames": 40, "fps": 8.0, "start": 4.0, **size},
        {"path": "d.mp4", "text": "x", "num_frames": 40, "start": 4.0, **size},  # at what rate?
        {"path": "e.mp4", "text": "x", "num_frames": 40, **size},
        {"path": "f.mp4", "text": "x", "fps": 8.0, **size},
        {"path": "g.PNG", "text": "x", **size},
        {"path": "h.jpg", "text": "x", "num_frames": 1},
        {"path": "i.mp4", "text": "x", "num_frames": 40, "fps": 8.0, "end": 2.0, **size},
    ]
    write_table(str(tmp_path / name), rows)

    def frames(**arguments: Any) -> list[int]:
        data = VideoTextDataset(str(tmp_path / name), **arguments)
        sizes = data.sizes()
        assert sizes.index.tolist() == list(range(9))
        assert sizes.height.tolist() == [32] * 7 + [0, 32]
        assert sizes.width.tolist() == [64] * 7 + [0, 64]
        for row, num_frames in zip(data._rows, sizes.num_frames.tolist(), strict=True):
            if row.num_frames and row.fps:
                span = data._span(row, row.num_frames, row.fps)
                have = span.stop - span.first
                assert data._last_start(span, num_frames // data.frame_interval) >= span.first
                assert num_frames == (have if data.target_fps is None else (have - 1) * data.target_fps // 8 + 1)
        return sizes.num_frames.tolist()

    assert frames() == [40, 19, 8, 0, 40, 0, 1, 1, 16]
    assert frames(time_range=(0.0, 0.5)) == [20, 9, 4, 0, 20, 0, 1, 1, 8]
    assert frames(fps=4.0) == [20, 10, 4, 0, 0, 0, 1, 1, 8]
    assert frames(fps=16.0, frame_interval=2) == [79, 37, 15, 0, 0, 0, 1, 1, 31]


def test_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    rows = [{"path": write_picture(tmp_path / "a.png", 77), "text": "x"}]
    assert numbers(dataset(tmp_path, rows, num_frames=1).clip(0, Draw(0, 0, 0))) == [77]
    part = dataset(tmp_path, rows, num_frames=1, time_range=(0.0, 0.8))  # cannot be divided
    assert numbers(part.clip(0, Draw(0, 0, 0))) == [77]
    with pytest.raises(BadClip, match=r"train\.csv:2: .*a\.png: .*1 frame.* 4 "):
        dataset(tmp_path, rows).clip(0, Draw(0, 0, 0))


def test_matroska_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header does not say how many frames it has: the file is read through on the first visit only."""
    path = write_video(tmp_path / "a.mkv", 40)
    data = dataset(tmp_path, [{"path": path, "text": "x"}], start="center")
    first = data.clip(0, Draw(0, 0, 0)).video_CTHW
    monkeypatch.setattr("opensora.datasets.video_file.VideoFile._read_to_the_end", None)
    assert torch.equal(data.clip(0, Draw(0, 0, 0)).video_CTHW, first)


def test_report_drops_rows_by_manifest(tmp_path: Path, video: str) -> None:
    rows = [
        {"path": video, "text": "long", "num_frames": 40, "fps": 8},
        {"path": "short.mp4", "text": "short", "num_frames": 3, "fps": 8},
        {"path": "shot.mp4", "text": "shot", "num_frames": 40, "fps": 8, "start": 4.8},
        {"path": video, "text": ""},
    ]
    data = dataset(tmp_path, rows)
    report = data.report()
    assert (len(data), report.rows, report.kept) == (1, 4, 1)
    assert {reason: len(messages) for reason, messages in report.dropped.items()} == {
        "too short": 2,
        "empty caption": 1,
    }
    assert report.buckets == {"4x32x64": 1}
    assert f"{tmp_path}/train.csv:3: {tmp_path}/short.mp4: has 3 frames, 4 are needed" in report.dropped["too short"][0]


def test_inspect_opens_every_video(tmp_path: Path, video: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("a caption, not a video\n")
    bad = [
        "none.mp4",
        "empty.mp4",
        "text.mp4",
        write_audio(tmp_path / "audio.mp4"),
        write_video(tmp_path / "one.mp4", 1),
    ]
    data = dataset(tmp_path, [{"path": video, "text": "x"}] + [{"path": path, "text": "x"} for path in bad])
    assert (data.report().rows, data.report().kept) == (6, 6)
    report = data.inspect()
    assert (report.rows, report.kept, report.buckets) == (6, 1, {"4x32x64": 1})
    messages = report.dropped["cannot be used"]
    for line, says in enumerate(["no such file", "0 bytes", "text file", "audio only", "1 frame, 4"], start=3):
        assert messages[line - 3].startswith(f"{tmp_path}/train.csv:{line}: ")
        assert says in messages[line - 3]


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    data = dataset(tmp_path, [{"path": "a.mp4", "text": ""}])
    with pytest.raises(DataError, match=r"train\.csv: .* 1 \(empty caption: 1, .*train\.csv:2: "):
        data.report().require_rows()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 0},
        {"frame_interval": 0},
        {"fps": 0.0},
        {"image_size": (8,)},
        {"image_size": (0, 8)},
        {"time_range": (0.5, 0.5)},
        {"time_range": (0.5, 1.5)},
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        dataset(tmp_path, [{"path": "a.mp4", "text": "x"}], **arguments)


def test_frames_per_second_are_those_of_videos(tmp_path: Path, video: str) -> None:
    """A picture has no rate; FFmpeg says 25 of it."""
    pictures = [{"path": write_picture(tmp_path / f"{n}.png", n), "text": "x"} for n in range(2)]
    assert dataset(tmp_path, [*pictures, {"path": video, "text": "x"}], num_frames=1).fps == 8.0
    columns = [
        {**pictures[0], "num_frames": 1, "fps": 25.0},
        {"path": "gone", "text": "x", "num_frames": 40, "fps": 12.0},
    ]
    assert dataset(tmp_path, columns, num_frames=1).fps == 12.0


def test_no_frame_left_is_not_unknown(tmp_path: Path) -> None:
    columns = {"text": "x", "num_frames": 40, "fps": 8.0, "height": 32, "width": 64}
    rows = [{"path": "a.mp4", "start": 7.0, **columns}, {"path": "b.mp4", "end": 0.2, **columns}]
    data = dataset(tmp_path, rows, num_frames=None, image_size=None, time_range=(0.0, 0.4))
    assert data.sizes().num_frames.tolist() == [NO_FRAMES, NO_FRAMES]
    assert len(dataset(tmp_path, rows, num_frames=1, time_range=(0.0, 0.4))) == 0


def test_size_is_whole_or_absent(tmp_path: Path) -> None:
    for size in ({"num_frames": None}, {"image_size": None}):
        with pytest.raises(ConfigError, match=r"num_frames=.*, image_size=.*bucket_config"):
            dataset(tmp_path, [{"path": "a.mp4", "text": "x"}], **size)


def test_multi_scale_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    """Sides become multiples of 16, cut at the bottom and the right; what is small already keeps its size."""
    sizes = {"wide": (48, 100), "upright": (100, 48), "small": (20, 40)}
    rows = [{"path": write_picture(tmp_path / f"{name}.png", 5, size), "text": name} for name, size in sizes.items()]
    for megabytes in (0, 1):
        data = dataset(tmp_path, rows, num_frames=1, image_size=(64, 64), multi_scale=True, cache_megabytes=megabytes)
        clips = [data.clip(row, Draw(0, 0, 0)).video_CTHW for row in (0, 1, 2)]
        assert [tuple(clip.shape) for clip in clips] == [(3, 1, 16, 64), (3, 1, 64, 16), (3, 1, 16, 32)]
    cut = torch.from_numpy(frame_picture(5, 20, 40)[:16, :32].copy()).permute(2, 0, 1)[:, None] / 127.5 - 1
    torch.testing.assert_close(clips[2], cut, rtol=0, atol=1e-6)
    flipped = dataset(tmp_path, rows, num_frames=1, image_size=(64, 64), multi_scale=True, flip=True)
    flips = [flipped.clip(2, draw).video_CTHW for draw in draws(8)]
    assert any(torch.equal(clip, clips[2].flip(-1)) for clip in flips)

    narrow = [
        {"path": write_picture(tmp_path / f"{n}.png", 5, size), "text": "x"}
        for n, size in enumerate([(8, 64), (1, 200)])
    ]
    data = dataset(tmp_path, narrow, num_frames=1, image_size=(64, 64), multi_scale=True)
    for row in (0, 1):
        with pytest.raises(BadClip, match=rf"train\.csv:{row + 2}: .*{row}\.png: .* 16 "):
            data.clip(row, Draw(0, 0, 0))
    for wrong in ({"image_size": (32, 64)}, {"crop": "random"}, {"num_frames": None, "image_size": None}):
        with pytest.raises(ConfigError, match=r"multi_scale=True.*image_size=.*square.*crop"):
            dataset(tmp_path, rows, multi_scale=True, **{"image_size": (64, 64), **wrong})
