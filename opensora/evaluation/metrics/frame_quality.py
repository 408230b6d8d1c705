"""PSNR and SSIM of videos against references of the same names."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Measurement, Needs, frame_blocks, mean_figure
from opensora.evaluation.psnr import psnr_frames
from opensora.evaluation.ssim import ssim_frames
from opensora.registry import METRICS


def require_equal_size(video: EvaluatedVideo, reference: EvaluatedVideo) -> None:
    """DataError for clips of different size or length."""
    sizes = [(each.num_frames, each.height, each.width) for each in (video, reference)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{video.path} and {reference.path}: {sizes[0]} and {sizes[1]} (frames, rows, columns); a reference of equal size "
            "and length is needed; make both alike"
        )


def per_frame_mean(
    video: EvaluatedVideo,
    reference: EvaluatedVideo,
    compare: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> float:
    """The mean over all frames of `compare`, which takes two [n, C, H, W] in [0, 1] and returns [n].

    Raises DataError for clips of different size or length.
    """
    require_equal_size(video, reference)
    pairs = zip(frame_blocks(video), frame_blocks(reference), strict=True)
    try:
        values = [compare(a.to(device), b.to(device)).double().cpu() for a, b in pairs]
    except ValueError as error:
        raise DataError(f"{video.path} and {reference.path}: {error}") from None
    return torch.cat(values).mean().item()


@METRICS.register_module()
class PSNR:
    """Mean over the frames of a clip, then over the clips, in dB; frames that are equal count 100."""

    needs: ClassVar[Needs] = "pairs"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        def compare(a: Tensor, b: Tensor) -> Tensor:
            return psnr_frames(a[None], b[None])[0]

        values = [per_frame_mean(*pair, compare, device) for pair in zip(videos, references, strict=True)]
        return Measurement([mean_figure("psnr", values, "dB", "higher")])


@METRICS.register_module()
class SSIM:
    """Mean over the frames of a clip, then over the clips; 1 = equal. Source: Wang et al. 2004."""

    needs: ClassVar[Needs] = "pairs"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        def compare(a: Tensor, b: Tensor) -> Tensor:
            return ssim_frames(a[None], b[None])[0]

        values = [per_frame_mean(*pair, compare, device) for pair in zip(videos, references, strict=True)]
        return Measurement([mean_figure("ssim", values, "", "higher")])
