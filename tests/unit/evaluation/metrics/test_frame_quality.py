"""PSNR and SSIM of files are those of their frames, whatever the length of a block."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from opensora.errors import DataError
from opensora.evaluation import metric
from opensora.evaluation.metrics.frame_quality import PSNR, SSIM
from opensora.evaluation.psnr import psnr_frames
from opensora.evaluation.ssim import ssim_frames
from tests.support.evaluated_videos import Frame, evaluated, noise, values

CPU = torch.device("cpu")


def as_tensor(frames: list[Frame]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)[None].float() / 255


def test_the_means_over_frames_and_then_over_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "BLOCK_PIXELS", 2 * 48 * 64)
    clips = [noise(0, frames=5), noise(1, frames=2)]
    worse = [[(frame // 2).astype(np.uint8) for frame in clips[0]], clips[1]]
    videos = [evaluated(tmp_path / f"v{n}", frames) for n, frames in enumerate(worse)]
    references = [evaluated(tmp_path / f"r{n}", frames) for n, frames in enumerate(clips)]
    psnr = PSNR().measure(videos, references, CPU).figures[0]
    expected = psnr_frames(as_tensor(worse[0]), as_tensor(clips[0])).mean().item()
    assert psnr.per_video == pytest.approx([expected, 100])  # equal frames count 100 dB, not infinity
    assert psnr.value == pytest.approx((expected + 100) / 2)
    ssim = SSIM().measure(videos, references, CPU).figures[0]
    assert ssim.per_video == pytest.approx([ssim_frames(as_tensor(worse[0]), as_tensor(clips[0])).mean().item(), 1])
    assert values(PSNR().measure(videos[1:], references[1:], CPU)) == {"psnr": 100}


def test_a_pair_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    video = evaluated(tmp_path / "v", noise(0, frames=3))
    for frames in (noise(0, frames=2), noise(0, frames=3, width=32)):
        reference = evaluated(tmp_path / "r", frames)
        with pytest.raises(
            DataError, match=r"v\.mkv and .*r\.mkv: \(3, 48, 64\) and .*equal size and length is needed"
        ):
            PSNR().measure([video], [reference], CPU)
    small = evaluated(tmp_path / "s", noise(0, height=8))
    with pytest.raises(DataError, match=r"s\.mkv: ssim: frames of \(8, 64\); at least 11 rows"):
        SSIM().measure([small], [small], CPU)
