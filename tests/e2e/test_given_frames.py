"""Animate a picture: `opensora train ... mask_ratios=...`, then `opensora sample ... --reference-path`."""

import json
import shlex
from pathlib import Path

import av
import pytest

from opensora.datasets.decode import Video
from tests.support.command import ROOT, TRAIN
from tests.support.media_files import write_picture

SAMPLING = ("sample", str(ROOT / "configs/stdit/sample/debug.py"), "--prompt", "a red circle", "--steps", "2")


def test_train_with_masks_and_sample_with_reference_frames(
    opensora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    masks = "mask_ratios={'image_head': 0.5, 'random': 0.25}"
    assert opensora("train", str(ROOT / TRAIN), f"run_dir={run_dir}", "steps=2", "plugin=ddp", masks) == 0
    picture = write_picture(tmp_path / "first.png", 1)
    sampling = (
        *SAMPLING,
        "--load",
        str(run_dir),
        "--save-dir",
        str(out),
        f"reference_path={picture}",
        "mask_strategy=0",
    )
    capsys.readouterr()

    assert opensora(*sampling) == 0
    first = Path(capsys.readouterr().out.strip())
    note = json.loads(first.with_suffix(".json").read_text())
    assert (note["references"], note["mask_strategy"], note["prompt"]) == ([picture], "0", "a red circle")
    made = first.stat().st_mtime_ns
    assert opensora(*sampling) == 0
    assert first.stat().st_mtime_ns == made

    write_picture(picture, 2)
    capsys.readouterr()
    assert opensora(*sampling) == 0
    second = Path(capsys.readouterr().out.strip())
    assert second != first
    assert second.read_bytes() != first.read_bytes()

    assert opensora(*sampling, "--loop", "2", "condition_frame_length=1") == 0
    longer = Path(capsys.readouterr().out.strip())
    with av.open(str(longer)) as container:  # 5 frames, then 5 of which 1 repeats
        assert sum(1 for _ in container.decode(video=0)) == 9

    assert opensora(*sampling, "--loop", "2", "condition_frame_length=1", "--save-format", "webm", "--grid") == 0
    film, grid = map(Path, capsys.readouterr().out.split())
    with Video(str(grid)) as video:
        assert (video.info.num_frames, video.info.height, video.info.width) == (9, 16, 16)
    contents = film.read_bytes()
    assert opensora("show", str(film)) == 0
    *_, command = capsys.readouterr().out.splitlines()  # it makes the very same file again
    film.unlink()
    assert opensora(*shlex.split(command)[1:], f"save_dir={out}") == 0
    assert film.read_bytes() == contents
    capsys.readouterr()

    assert opensora(*sampling, "mask_strategy=0,1") == 2
    assert "reference 1" in capsys.readouterr().err
    assert opensora(*sampling, "scheduler={'type': 'dpm-solver'}") == 2
    assert "scheduler dpm-solver" in capsys.readouterr().err


def test_conditions_of_open_sora_1_3(opensora, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pictures and no picture give three different videos."""
    run_dir = tmp_path / "run"
    train = str(ROOT / "configs/stdit3/train/debug_1_3.py")
    assert opensora("train", train, f"run_dir={run_dir}", "steps=2", "plugin=ddp") == 0
    sampling = ("sample", str(ROOT / "configs/stdit3/sample/debug_1_3.py"), "--prompt", "a red circle", "--steps", "2")
    sampling = (*sampling, "--load", str(run_dir), "--save-dir", str(tmp_path / "out"))
    videos = []
    for number in (1, 200):
        picture = write_picture(tmp_path / f"{number}.png", number)
        capsys.readouterr()
        assert opensora(*sampling, "--reference-path", picture) == 0
        videos.append(Path(capsys.readouterr().out.strip()).read_bytes())
    assert opensora(*sampling) == 0
    videos.append(Path(capsys.readouterr().out.strip()).read_bytes())
    assert len(set(videos)) == 3

    reference = ("--reference-path", picture)
    capsys.readouterr()
    assert opensora(*sampling, *reference, "--mask-strategy", "0,0,0,0,1,0.5") == 2
    assert "edit ratio 0.5; allowed: 0 " in capsys.readouterr().err
    assert opensora(*sampling, *reference, "scheduler={'type': 'iddpm'}") == 2
    assert "scheduler iddpm" in capsys.readouterr().err
    assert opensora("train", train, f"run_dir={run_dir}-b", "mask_ratios={'image_head': 1.0}") == 2
    assert "kind 'image_head'; allowed: i2v_head" in capsys.readouterr().err
