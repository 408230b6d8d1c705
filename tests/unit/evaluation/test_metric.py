"""Blocks of frames: all of them, in order, and few enough for memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.evaluation import metric
from opensora.evaluation.metric import frame_blocks, mean_figure, whole_clip
from tests.support.evaluated_videos import evaluated, noise


def test_blocks_are_all_frames_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(0, frames=7)
    video = evaluated(tmp_path / "a", frames)
    blocks = list(frame_blocks(video, size=3))
    assert [len(block) for block in blocks] == [3, 3, 1]
    expected = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(torch.cat(blocks), expected)
    torch.testing.assert_close(whole_clip(video), expected.transpose(0, 1) * 2 - 1)
    for limit, lengths in ((2 * 48 * 64, [2, 2, 2, 1]), (100, [1] * 7)):  # large frames come one by one
        monkeypatch.setattr(metric, "BLOCK_PIXELS", limit)
        assert [len(block) for block in frame_blocks(video, size=3)] == lengths


def test_a_shot_is_the_part_of_its_file_without_the_rows_of_the_codec(tmp_path: Path) -> None:
    frames = noise(1, frames=6)
    shot = evaluated(tmp_path / "a", frames, first_frame=2, num_frames=3, height=47, width=61)
    assert np.array_equal(shot.whole(), np.stack(frames)[2:5, :47, :61])
    assert np.array_equal(shot.read([0, 2]), np.stack(frames)[[2, 4], :47, :61])
    assert shot.name == "a.mkv [2:5]"


def test_a_figure_is_the_mean_of_its_videos() -> None:
    figure = mean_figure("psnr", [20.0, 30.0], "dB", "higher")
    assert (figure.value, figure.per_video, figure.unit, figure.better) == (25.0, (20.0, 30.0), "dB", "higher")
