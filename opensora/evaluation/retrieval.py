"""Retrieval accuracy: the share of generated clips whose nearest training clip has the same prompt.

A number for a model that has memorised a few clips: it shows that the text steers the video, not that videos are good.
G generated clips, R reference clips; C T H W channels, frames, rows, columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES, SIDE = 8, 32  # every clip is reduced to this many frames of SIDE x SIDE pixels: content, not noise, decides


@dataclass(frozen=True)
class Retrieval:
    """The nearest reference of each generated clip."""

    accuracy: float  # share of generated clips whose nearest reference has their label
    nearest: list[int]  # index of the nearest reference, one per generated clip
    hits: list[bool]  # whether its label is the generated clip's
    distances_GR: Tensor  # root mean square pixel difference, 0 (equal) to 2 (white against black)


def retrieval_accuracy(
    generated: Sequence[Tensor],
    generated_labels: Sequence[str],
    references: Sequence[Tensor],
    reference_labels: Sequence[str],
    *,
    max_shift: int = 1,
) -> Retrieval:
    """Compare every generated clip [C, T, H, W] in [-1, 1] with every reference; sizes and lengths may differ.

    max_shift: see `pixel_distances`. Raises ValueError when there is nothing to compare or labels are missing.
    """
    if len(generated) != len(generated_labels) or len(references) != len(reference_labels):
        raise ValueError("retrieval: every clip needs one label")
    distances_GR = pixel_distances(generated, references, max_shift=max_shift)
    nearest = distances_GR.argmin(dim=1).tolist()
    hits = [label == reference_labels[index] for label, index in zip(generated_labels, nearest, strict=True)]
    return Retrieval(sum(hits) / len(hits), nearest, hits, distances_GR)


def pixel_distances(generated: Sequence[Tensor], references: Sequence[Tensor], *, max_shift: int = 1) -> Tensor:
    """[G, R] root mean square difference of the reduced clips, float32.

    max_shift: the reduced clips may be moved against each other by up to this many of their FRAMES frames, and the best
    fit counts, so that starting a moment earlier is no other clip. 0 compares frame by frame.
    """
    if not generated or not references:
        raise ValueError(
            f"retrieval: {len(generated)} generated and {len(references)} reference clips; both are needed"
        )
    if not 0 <= max_shift < FRAMES:
        raise ValueError(f"retrieval: max_shift {max_shift}; it is 0 to {FRAMES - 1}")
    a_GCTHW = torch.stack([reduce_clip(clip) for clip in generated])
    b_RCTHW = torch.stack([reduce_clip(clip) for clip in references])
    shifts = range(-max_shift, max_shift + 1)
    return torch.stack([_distances_at(a_GCTHW, b_RCTHW, shift) for shift in shifts]).amin(dim=0)


def reduce_clip(clip_CTHW: Tensor) -> Tensor:
    """[C, FRAMES, SIDE, SIDE]: evenly spaced frames, first and last included, averaged down to a small square."""
    frames = torch.linspace(0, clip_CTHW.shape[1] - 1, FRAMES).round().long()
    frames_TCHW = clip_CTHW.detach().float().cpu().clamp(-1, 1)[:, frames].transpose(0, 1)
    small = F.interpolate(frames_TCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return small.transpose(0, 1)


def _distances_at(a_GCTHW: Tensor, b_RCTHW: Tensor, shift: int) -> Tensor:
    a = a_GCTHW[:, :, max(0, shift) : FRAMES + min(0, shift)].flatten(1)
    b = b_RCTHW[:, :, max(0, -shift) : FRAMES + min(0, -shift)].flatten(1)
    # The sum of squares the plain way: cdist's matrix product loses the small distances that decide here.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") / a.shape[1] ** 0.5
