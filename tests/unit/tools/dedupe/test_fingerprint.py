"""Fingerprints of real footage: copies are near, other clips and empty frames are not."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from opensora.datasets.decode import Frames, Video
from opensora.datasets.table import read_table, write_table
from opensora.errors import BadClip, ConfigError
from tests.support.media_files import write_video
from tools.datasets.probe import demo_videos
from tools.dedupe.find import main
from tools.dedupe.fingerprint import NOTHING, fingerprint, perceptual_hash, reduced
from tools.dedupe.near import mean_distance
from tools.score.technical import technical

pytest.importorskip("imagehash", reason="ImageHash is not installed; run pip install -e '.[tools]'")

FOOTAGE = Path(demo_videos()[0]).parent
SHOT = {"path": str(FOOTAGE / "bikes.mp4"), "start_frame": 76, "end_frame": 137}
COPIES = {
    "webm": ("libvpx", 12, 136),
    "avi": ("mpeg4", 15, 136),
    "mkv": ("libx264", 30, 204),
    "mov": ("libx264", 10, 68),
}


def distance(one: str, other: str) -> float:
    codes = [np.frombuffer(bytes.fromhex(each), ">u8").astype(np.uint64)[None] for each in (one, other)]
    return float(mean_distance(*codes)[0])


def resized(frames: list[Frames], height: int, width: int) -> list[Frames]:
    import cv2

    return [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames]  # type: ignore[misc]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Container -> a copy of SHOT at another rate, size and quality."""
    folder = tmp_path_factory.mktemp("copies")
    with Video(SHOT["path"]) as video:
        frames = resized(list(video.frames(range(76, 137))), 136, 320)
    paths = {}
    for name, (codec, rate, height) in COPIES.items():
        chosen = [frames[min(60, round(number * 25 / rate))] for number in range(61 * rate // 25)]
        small = resized(chosen, height, round(height * 40 / 17) // 2 * 2)
        options = {"b": "150k", "deadline": "realtime", "cpu-used": "8"} if name == "webm" else {"b": "150k"}
        paths[name] = write_video(folder / f"shot.{name}", small, fps=rate, codec=codec, codec_options=options)
    return paths


def test_copies_of_real_footage_are_groups_and_other_shots_alone(copies: dict[str, str], tmp_path: Path) -> None:
    """One shot in five containers at five rates and sizes, and one film in two qualities, among other shots."""
    cuts = [0, 30, 76, 137, 187, 242, 250]
    rows = [{**SHOT, "start_frame": start, "end_frame": end} for start, end in pairwise(cuts)]
    rows += [{"path": path} for path in copies.values()]
    clean, distorted, other = (
        str(FOOTAGE / f"{name}.mp4") for name in ("carphone_pristine", "carphone_distorted", "bigbuckbunny")
    )
    rows += [technical({"path": distorted}), technical({"path": clean}), {"path": other}]
    table, out = str(tmp_path / "in.csv"), str(tmp_path / "out.csv")
    write_table(table, [fingerprint(row, exact=False) for row in rows])
    assert main([table, out]) == 0
    made = read_table(out).rows
    ranks = {row["path"]: row["quality_rank"] for row in made}
    assert (ranks[clean], ranks[distorted]) == ("1", "2")
    marked = [(row["path"], row["duplicate_of"], row["duplicate_kind"]) for row in made]
    assert [row for row in marked if row[1]] == [
        *((path, SHOT["path"], "near") for path in copies.values()),
        (distorted, clean, "near"),
    ]
    codes = [fingerprint(row, exact=False)["perceptual_hash"] for row in [*rows[:6], *rows[-2:]]]
    pairs = [(one, other) for one in range(len(codes)) for other in range(one)]
    assert [(one, other) for one, other in pairs if distance(codes[one], codes[other]) < 20] == []


def test_equal_frames_in_two_containers_have_one_frame_hash(tmp_path: Path) -> None:
    lossless = {"codec": "libx264rgb", "pix_fmt": "rgb24", "codec_options": {"qp": "0"}}
    one, other = (fingerprint({"path": write_video(tmp_path / f"a.{name}", 12, **lossless)}) for name in ("mp4", "mkv"))
    assert one["frame_hash"] == other["frame_hash"]
    assert len(one["frame_hash"]) == 32
    shorter = fingerprint({"path": write_video(tmp_path / "b.mp4", 11, **lossless)})
    wider = fingerprint({"path": write_video(tmp_path / "c.mp4", 12, size=(32, 72), **lossless)})
    part = fingerprint({"path": str(tmp_path / "a.mkv"), "start_frame": 0, "end_frame": 11})
    assert len({one["frame_hash"], shorter["frame_hash"], wider["frame_hash"]}) == 3
    assert part["frame_hash"] == shorter["frame_hash"]
    assert part["num_frames"] == 11


def test_a_row_keeps_its_columns_and_gets_those_it_lacks(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12)
    row = fingerprint({"path": path, "text": "kept", "bitrate": 5}, exact=False)
    measured = {"num_frames": 12, "fps": 8.0, "height": 32, "width": 64}
    hashes = {"frame_hash": None, "perceptual_hash": row["perceptual_hash"]}
    assert row == {"path": path, "text": "kept", "bitrate": 5, **measured, **hashes}
    with Video(path) as video:
        assert fingerprint({"path": path}, exact=False)["bitrate"] == video.details().bitrate
    assert len(fingerprint({"path": path}, frames=3)["perceptual_hash"]) == 48


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 12)
    with pytest.raises(ConfigError, match="--frames 0; allowed: 1 to 64"):
        fingerprint({"path": path}, frames=0)
    with pytest.raises(BadClip, match="start_frame is 4 and end_frame 13; the file has 12 frames"):
        fingerprint({"path": path, "start_frame": "4", "end_frame": "13"})
    with pytest.raises(BadClip, match="start_frame and end_frame are 'x' and 2; whole numbers are needed"):
        fingerprint({"path": path, "start_frame": "x", "end_frame": 2})


def picture(seed: int) -> Frames:
    """Gray [72, 128]: blurred noise, unlike that of any other seed."""
    import cv2

    noise = np.random.default_rng(seed).uniform(0, 255, (9, 16)).astype(np.float32)
    return np.clip(cv2.resize(noise, (128, 72), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def test_frames_that_show_nothing_have_no_hash() -> None:
    rng = np.random.default_rng(0)
    black, white = np.full((72, 128), 16, np.uint8), np.full((72, 128), 255, np.uint8)
    noisy = (120 + rng.normal(0, 2, (72, 128))).astype(np.uint8)
    assert perceptual_hash([black, white, noisy]) == NOTHING * 3
    shown = perceptual_hash([black, picture(0)])
    assert (shown[:16], shown[16:] == NOTHING) == (NOTHING, False)


@pytest.mark.parametrize("pad", [((20, 20), (0, 0)), ((0, 0), (36, 30)), ((12, 12), (20, 20))])
@pytest.mark.parametrize("value", [16, 255])
def test_bars_neither_hide_a_copy_nor_make_one(pad: tuple[tuple[int, int], tuple[int, int]], value: int) -> None:
    plain = [perceptual_hash([picture(seed)] * 2) for seed in (1, 2)]
    padded = [perceptual_hash([np.pad(picture(seed), pad, constant_values=value)] * 2) for seed in (1, 2)]
    assert max(distance(one, other) for one, other in zip(plain, padded)) <= 6
    assert distance(*padded) > 20


def test_frames_are_reduced_by_their_longer_side() -> None:
    assert reduced(np.zeros((300, 1000, 3), np.uint8)).shape == (77, 256)
    assert reduced(np.zeros((30, 100, 3), np.uint8)).shape == (30, 100)
    assert reduced(np.zeros((1, 1000, 3), np.uint8)).shape == (1, 256)
