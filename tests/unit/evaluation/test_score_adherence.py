"""The command reads back what was written as mp4: lossy coding must not cost the reader its sight."""

import json
from pathlib import Path

import pytest

from opensora.datasets.moving_shapes import HOLDOUT, MovingShapes, combinations
from opensora.evaluation.score_adherence import main
from opensora.rng import Draw
from opensora.sampling.video_writer import write_sample
from opensora.types import SampleRequest
from tests.support.fake_sampler import SETTINGS


def test_held_out_prompts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prompts", str(tmp_path / "new" / "prompts.txt")]) == 0
    lines = (tmp_path / "new" / "prompts.txt").read_text().splitlines()
    assert lines == [attributes.caption() for attributes in HOLDOUT]
    assert not set(lines) & {attributes.caption() for attributes in combinations("train")}
    assert "16 held-out prompts" in capsys.readouterr().out


def test_score_of_perfect_and_of_swapped_videos(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = MovingShapes(clips=16, num_frames=9, image_size=(32, 32), split="holdout")
    clips = [data.clip(row, Draw(3, 0, row)) for row in range(16)]
    for folder, shift in (("right", 0), ("wrong", 1)):
        for index, clip in enumerate(clips):
            prompt = clips[(index + shift) % 16].caption
            request = SampleRequest(prompt, "", index, 0, 9, 32, 32, 8.0, 42)
            (tmp_path / folder).mkdir(exist_ok=True)
            write_sample(clip.video_CTHW, request, SETTINGS, tmp_path / folder)
    assert main(["score", str(tmp_path / "right")]) == 0
    right = json.loads(capsys.readouterr().out)
    assert right == {"colour": 1.0, "shape": 1.0, "direction": 1.0, "all": 1.0, "clips": 16}
    assert main(["score", str(tmp_path / "wrong")]) == 0
    assert json.loads(capsys.readouterr().out)["all"] == 0


def test_empty_folder_is_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["score", str(tmp_path)]) == 1
    assert "no sampled videos" in capsys.readouterr().err
