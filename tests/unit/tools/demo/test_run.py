"""The demo's own parts; its stages are commands with tests of their own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from opensora.datasets.table import write_table
from tests.support.media_files import write_video
from tests.unit.evaluation.test_motion_ratio import panned
from tools.demo import run
from tools.demo.report import Stages, clips, motion_of, motion_sentence


def test_seconds_add_up_over_interruptions(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    with pytest.raises(KeyboardInterrupt), Stages(path).time("diffusion"):
        raise KeyboardInterrupt
    first = json.loads(path.read_text())["diffusion"]
    path.write_text(json.dumps({"diffusion": first + 100, "footage": 3}))
    again = Stages(path)
    with again.time("diffusion"):
        pass
    assert json.loads(path.read_text()) == again.seconds
    assert again.seconds["diffusion"] >= first + 100
    assert again.seconds["footage"] == 3


def test_a_failing_stage_ends_the_demo_with_its_reason(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "footage", lambda *_: run.call([sys.executable, "-c", "raise SystemExit(3)"]))
    assert run.main(["--out", str(tmp_path)]) == 1
    assert "exit code 3" in capsys.readouterr().out


def test_a_missing_package_is_named_before_the_first_stage(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "TRAINING_PACKAGES", ("no_such_package",))
    monkeypatch.setattr(run, "footage", lambda *_: pytest.fail("a stage began"))
    assert run.main(["--out", str(tmp_path)]) == 2
    assert "no_such_package is not installed; this command needs it; run pip install" in capsys.readouterr().err


def test_an_interrupt_waits_for_the_stage_to_save(tmp_path: Path) -> None:
    """The stage below needs a moment after the interrupt; the demo must not leave before it is done."""
    stage = (
        "import signal, sys, pathlib\n"
        "signal.signal(signal.SIGINT, lambda *_: (sum(range(10**7)), pathlib.Path(sys.argv[1]).touch(), sys.exit(0)))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    caller = "import sys; from tools.demo.run import call; call([sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    command = [sys.executable, "-c", caller, stage, str(tmp_path / "saved")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run.ROOT,
                          start_new_session=True) as process:  # fmt: skip
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            pass
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
    assert (tmp_path / "saved").exists()


def test_prompts_are_the_captions_in_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", 12)
    rows = [{"path": str(tmp_path / f"{name}.mp4"), "text": f"clip {name}", "fps": 8} for name in ("a", "b")]
    write_table(str(tmp_path / "manifest.csv"), rows)
    assert run.prompts(tmp_path, tmp_path / "manifest.csv").read_text() == "clip a\nclip b\n"
    pairs = clips(tmp_path / "manifest.csv", num_frames=5, image_size=(16, 32), fps=8.0)
    assert [caption for _, caption in pairs] == ["clip a", "clip b"]
    assert pairs[0][0].shape == (3, 5, 16, 32)


def test_motion_compares_each_clip_with_the_shot_of_its_prompt() -> None:
    shots = [(panned(2), "fast"), (panned(1), "slow"), (panned(0), "still")]
    generated = {"slow": panned(1.5), "fast": panned(0.5), "still": panned(1), "of no shot": panned(1)}
    motion = motion_of(list(generated.values()), list(generated), shots)
    assert [each["prompt"] for each in motion["clips"]] == list(generated)
    assert [each["flow"] for each in motion["clips"]] == pytest.approx([1.5, 0.5, 1, 1], rel=0.05)
    assert [each["ratio"] for each in motion["clips"][:2]] == pytest.approx([1.5, 0.25], rel=0.05)
    assert [each["ratio"] for each in motion["clips"][2:]] == [None, None]
    assert [each["shot_flow"] for each in motion["clips"][2:]] == [0, None]
    assert (motion["within"], motion["range"], motion["unit"]) == (1, [0.5, 2.0], "pixels per frame")


def test_motion_is_one_sentence() -> None:
    clip = {"prompt": "a", "flow": 1.0, "shot_flow": 2.0}
    motion = {"within": 1, "range": [0.5, 2.0], "clips": [{**clip, "ratio": ratio} for ratio in (0.5, 0.123, None)]}
    start = "motion: 1 of 3 generated clips move 0.5 to 2 times as much as the shot of their prompt"
    assert motion_sentence(motion) == f"{start} (optical flow: 0.12 to 0.50 times)"
    motion["clips"] = [{**clip, "ratio": None}] * 3
    assert motion_sentence(motion) == start
