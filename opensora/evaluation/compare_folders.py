"""PSNR and SSIM of videos against reference videos of the same file names, for example of an autoencoder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from opensora.datasets.decode import probe, read_frames
from opensora.errors import DataError
from opensora.evaluation.psnr import psnr_frames
from opensora.evaluation.ssim import ssim_frames


@dataclass(frozen=True)
class VideoQuality:
    """Means over the frames of each clip, then over the clips."""

    psnr: float  # dB
    ssim: float  # up to 1 = equal
    clips: int


def compare_folders(videos: Path, references: Path) -> VideoQuality:
    """Compare each mp4 of `videos` with the file of its name in `references`, frame by frame.

    DataError for a folder without mp4s, a missing reference, or clips of different size or length; BadClip for a file
    that cannot be read.
    """
    paths = sorted(videos.glob("*.mp4"))
    if not paths:
        raise DataError(f"{videos}: found no *.mp4; allowed: a folder of videos; check the path")
    psnr, ssim = [], []
    for path in paths:
        reference = references / path.name
        if not reference.is_file():
            raise DataError(f"{reference}: missing; every video of {videos} needs a reference of its name; add it")
        a_BTCHW, b_BTCHW = _read(path), _read(reference)
        try:
            psnr.append(psnr_frames(a_BTCHW, b_BTCHW).mean().item())
            ssim.append(ssim_frames(a_BTCHW, b_BTCHW).mean().item())
        except ValueError as error:
            raise DataError(f"{path} and {reference}: {error}") from None
    return VideoQuality(sum(psnr) / len(psnr), sum(ssim) / len(ssim), len(paths))


def _read(path: Path) -> Tensor:
    """[1, T, 3, H, W] in [0, 1]."""
    frames_THWC = torch.from_numpy(read_frames(str(path), range(probe(str(path)).num_frames)))
    return frames_THWC.permute(0, 3, 1, 2)[None].float() / 255
