"""Decoding: the right frames, the same bits from anywhere, nothing left open, and a sentence for each bad file."""

import os
from pathlib import Path

import numpy as np
import pytest

from opensora.datasets import media_kind
from opensora.datasets.decode import Video, probe, read_frames
from opensora.datasets.video_file import VideoFile
from opensora.errors import BadClip
from tests.support.media_files import frame_number, frame_picture, write_audio, write_picture, write_video

CASES = [
    ("a.mp4", "libx264", 6),
    ("a.mp4", "libx264", 250),
    ("a.mkv", "libx264", 6),
    ("a.avi", "mpeg4", 6),
    ("a.webm", "libvpx-vp9", 6),
    ("a.ts", "libx264", 12),
    ("a.ts", "mpeg2video", 12),
    ("a.h264", "libx264", 6),
]


@pytest.mark.parametrize(("name", "codec", "gop"), CASES)
def test_any_frame_by_seek_equals_decoding_from_the_start(tmp_path: Path, name: str, codec: str, gop: int) -> None:
    path = write_video(tmp_path / name, 60, codec=codec, gop=gop)
    assert probe(path).num_frames == 60
    assert probe(path).fps == (25 if name.endswith(".h264") else 8)  # a raw stream does not say
    everything = read_frames(path, range(60))
    assert [frame_number(frame) for frame in everything] == list(range(60))
    for index in range(60):
        assert np.array_equal(read_frames(path, [index])[0], everything[index]), index
    assert np.array_equal(read_frames(path, [20, 20, 33, 59]), everything[[20, 20, 33, 59]])


def test_seeking_is_what_is_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late frame costs a few decoded frames, not all of them."""
    path = write_video(tmp_path / "a.mp4", 240, gop=6)
    decoded = []
    original = VideoFile.index_at
    monkeypatch.setattr(VideoFile, "index_at", lambda self, pts: decoded.append(pts) or original(self, pts))
    assert frame_number(read_frames(path, [200])[0]) == 200
    assert 0 < len(decoded) < 30


@pytest.mark.parametrize("name", ["open.mp4", "open.mkv", "open.ts"])
def test_open_group_of_pictures(tmp_path: Path, name: str) -> None:
    """Frames shown before a key frame but stored after it are not taken from a seek to that key frame."""
    path = str(tmp_path / name)
    _write_open_gop(path)
    everything = read_frames(path, range(90))
    for index in range(16, 90):
        assert np.array_equal(read_frames(path, [index])[0], everything[index]), index


def _write_open_gop(path: str) -> None:
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream(
            "libx264", rate=8, options={"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
        )
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for number in range(90):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_picture(number)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_varying_rate_shows_the_frame_on_screen(tmp_path: Path) -> None:
    """Frames at 0, 1, 2, 3, then a frame that stays for nine ticks."""
    path = write_video(tmp_path / "vfr.mkv", 6, times=[0, 1, 2, 3, 12, 13])
    info = probe(path)
    numbers = [frame_number(frame) for frame in read_frames(path, range(info.num_frames))]
    assert numbers[0] == 0
    assert numbers[-1] == 5
    assert numbers == sorted(numbers)
    assert numbers.count(3) > 2 * numbers.count(1)  # on screen for longest


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "50%d:x.png"])
def test_picture_is_a_video_of_one_frame(tmp_path: Path, name: str) -> None:
    path = write_picture(tmp_path / name, number=37)
    assert (probe(path).num_frames, probe(path).height, probe(path).width) == (1, 32, 64)
    assert frame_number(read_frames(path, [0])[0]) == 37


def test_rotation_flag_is_applied(tmp_path: Path) -> None:
    """A phone held upright stores a lying picture and the flag to turn it: 90 degrees clockwise here."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :16] = 255  # top left; upright, this corner is top right
    path = write_video(tmp_path / "a.mp4", [picture] * 4)
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"tkhd") + 44
    one, zero, minus = b"\x00\x01\x00\x00", b"\x00" * 4, b"\xff\xff\x00\x00"
    assert data[at : at + 4] == one
    data[at : at + 36] = zero + one + zero + minus + zero + zero + data[at + 24 : at + 36]
    Path(path).write_bytes(data)
    assert (probe(path).height, probe(path).width) == (64, 32)
    upright = read_frames(path, [0])[0]
    assert upright.shape == (64, 32, 3)
    assert upright[:14, -14:].min() > 200
    assert upright[:14, :14].max() < 60


def test_nothing_stays_open(tmp_path: Path) -> None:
    good = write_video(tmp_path / "a.mp4", 40)
    bad = [str(tmp_path), str(tmp_path / "text.mp4"), write_audio(tmp_path / "audio.mp4")]
    (tmp_path / "text.mp4").write_text("not a video")
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(300):
        read_frames(good, [turn % 40])
        with pytest.raises(BadClip):
            probe(bad[turn % len(bad)])
    with Video(good) as video:
        next(video.frames([30]))  # a reader that stops half way
    assert len(os.listdir("/proc/self/fd")) == before


def truncated(path: Path, share: float, **video: object) -> str:
    data = Path(write_video(path, 60, **video)).read_bytes()  # type: ignore[arg-type]
    path.write_bytes(data[: int(len(data) * share)])
    return str(path)


def test_truncated_without_index(tmp_path: Path) -> None:
    path = truncated(tmp_path / "a.mp4", 0.5)
    with pytest.raises(BadClip, match=r"a\.mp4: .*not a readable video.*truncated"):
        probe(path)


def test_truncated_with_index_in_front(tmp_path: Path) -> None:
    """The header promises 60 frames; those that are there can be used, those that are not cannot."""
    path = truncated(tmp_path / "a.mp4", 0.6, options={"movflags": "faststart"})
    assert probe(path).num_frames == 60
    assert frame_number(read_frames(path, [3])[0]) == 3
    with pytest.raises(BadClip, match=r"a\.mp4: .*(truncated|damaged)"):
        read_frames(path, [3, 59])


def test_damaged_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    data = bytearray(Path(write_video(path, 60)).read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = np.random.default_rng(0).bytes(third)
    path.write_bytes(data)
    with pytest.raises(BadClip, match=r"a\.mkv: "):
        read_frames(str(path), range(60))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match=r"none\.mp4: .*no such file"):
        probe(str(tmp_path / "none.mp4"))


def test_zero_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(BadClip, match=r"a\.mp4: .*0 bytes"):
        probe(str(tmp_path / "a.mp4"))


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="folder"):
        probe(str(tmp_path))


def test_audio_only(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match=r"a\.mp4: .*audio"):
        probe(write_audio(tmp_path / "a.mp4"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a caption\nand another\n" * 20, "is a text file"),
        ("version https://git-lfs.github.com/spec/v1\noid 12", "Git LFS"),
    ],
)
def test_text_called_mp4(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(BadClip, match=rf"a\.mp4: .*{says}"):
        probe(str(tmp_path / "a.mp4"))


def test_noise_called_mp4(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(BadClip, match=r"a\.mp4: .*not a readable video"):
        probe(str(tmp_path / "a.mp4"))


def test_one_frame_when_more_are_needed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 1)
    with pytest.raises(BadClip, match=r"a\.mp4: .*1 frame.* 8 "):
        read_frames(path, range(8))


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 1)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(media_kind, "open", refuse, raising=False)
    with pytest.raises(BadClip, match=r"a\.mp4: .*Permission denied"):
        probe(path)
