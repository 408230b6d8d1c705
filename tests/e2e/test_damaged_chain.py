"""500 videos with random byte flips through probe, detect and cut: rows or a sentence, in little memory."""

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from opensora.datasets.decode import Video
from tests.support.damage import flip_bytes
from tests.support.media_files import write_video
from tools.datasets.probe import probe
from tools.scene_cut.cut import cut
from tools.scene_cut.detect import detect
from tools.work import Function, Job, Outcome, Tool

KINDS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "ts": "mpeg2video", "avi": "mpeg4"}
FRAMES = 12
CLIPS = 500
WARM = 150  # clips after which nothing should be allocated for the first time
MOST_GROWTH = 24 << 20  # bytes


def work(fn: Function, flags: dict[str, Any], row: dict[str, Any]) -> Outcome:
    [outcome] = Tool(fn, flags).work([Job("row", row, "key")])
    return outcome


def bad(outcome: Outcome, path: Path) -> bool:
    """True if the file was refused by name; an error that is not about the file fails the test."""
    assert not outcome.crash, outcome.crash
    assert str(path) in outcome.bad or not outcome.bad
    return bool(outcome.bad)


def test_random_byte_flips(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(0), {}
    for kind, codec in KINDS.items():
        frames = [np.full((32, 32, 3), color, np.uint8) for color in ([220, 40, 30], [40, 60, 220])]
        film = [frames[number // 6] + np.uint8(number) for number in range(FRAMES)]
        whole[kind] = Path(write_video(tmp_path / f"whole.{kind}", film, codec=codec, gop=6)).read_bytes()
    counts: Counter[str] = Counter()
    process, before = psutil.Process(), 0
    for number in range(CLIPS):
        kind = [*KINDS][number % len(KINDS)]
        path = tmp_path / f"damaged.{kind}"
        path.write_bytes(flip_bytes(whole[kind], rng))
        row: dict[str, Any] = {"path": str(path)}
        facts = work(probe, {"decode": number % 4 == 0}, row)
        counts["probe refuses"] += bad(facts, path)
        scenes = work(detect, {}, row)
        counts["detect refuses"] += bad(scenes, path)
        for scene in scenes.rows[:1]:
            assert scenes.rows[-1]["end_frame"] == scene["num_frames"]
            clips = work(cut, {"folder": str(tmp_path / "clips")}, scene)
            counts["cut refuses"] += bad(clips, path)
            for clip in clips.rows:
                counts["clips"] += 1
                assert clip["num_frames"] == scene["end_frame"] - scene["start_frame"]
                with Video(clip["path"]) as video:
                    assert sum(1 for _ in video.frames(range(clip["num_frames"]))) == clip["num_frames"]
                Path(clip["path"]).unlink()
        if number == WARM:
            gc.collect()
            before = process.memory_info().rss
    gc.collect()
    assert process.memory_info().rss - before < MOST_GROWTH
    assert counts["clips"] > 100
    assert counts["detect refuses"] > 100
    assert counts["cut refuses"] < 5
    assert not list((tmp_path / "clips").iterdir())


def test_the_same_files_whole(tmp_path: Path) -> None:
    """The damage alone is refused."""
    for kind, codec in KINDS.items():
        path = write_video(tmp_path / f"a.{kind}", FRAMES, codec=codec)
        assert not bad(work(probe, {"decode": True}, {"path": path}), Path(path))
