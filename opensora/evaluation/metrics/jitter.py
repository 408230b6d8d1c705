"""Jitter of reconstructed detail: what shimmers in a reconstruction that does not in its original.

Layout: H W rows and columns, C colors. Units: gray levels of 255; flow in pixels of the video per frame.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from opensora.datasets.decode import Frames
from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Better, Figure, Measurement, Needs, mean_figure
from opensora.evaluation.metrics.frame_quality import require_equal_size
from opensora.evaluation.metrics.motion import require_two_frames
from opensora.evaluation.optical_flow import optical_flow
from opensora.registry import METRICS

SIGMA = 2.0  # pixels, of the blur that takes detail away: half of what is 11 pixels long is detail
MOVES = 0.25  # pixels per frame from which on a place of the original counts as moving
LEAST = 0.005  # share of all places and pairs of frames; a part with less of them says nothing
SMALLEST = 16  # rows and columns: optical flow works on blocks of 8
UNIT = "gray levels of 255"

Plane = NDArray[np.float32]  # [H, W]
Mask = NDArray[np.bool_]  # [H, W]


class Variances(NamedTuple):
    """Of one part of a clip, in squared gray levels."""

    video: float
    reference: float


@dataclass(frozen=True)
class DetailJitter:
    """Temporal variance of detail in the static and in the moving part of the original, spatial variance in the whole clip.

    None for a part that the original does not have.
    """

    static: Variances | None
    moving: Variances | None
    detail: Variances


@METRICS.register_module()
class Jitter:
    """Change of reconstructed detail from frame to frame, apart for static and moving parts of the original.

    Detail is a gray frame less its Gaussian blur; its temporal variance is half the mean square of its change to the next
    frame, which is s**2 for noise of variance s**2 that is new in each frame.
    jitter_static: the root of it where the original rests, in gray levels; `jitter_static of references`: of the original.
    jitter_moving: of the reconstruction over that of the original where the original moves; 1 = as much as the original.
    detail: the variance of detail within frames, over that of the original; below 1 detail was lost, and with it jitter.
    """

    needs: ClassVar[Needs] = "pairs"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        measured = [self._jitter(*pair) for pair in zip(videos, references, strict=True)]
        static = [each.static for each in measured]
        no_rest = "the others have no part at rest"
        figures = [
            _figure("jitter_static", [part and math.sqrt(part.video) for part in static], UNIT, "lower", no_rest),
            _figure("jitter_static of references", [part and math.sqrt(part.reference) for part in static], UNIT, "neither",
                    no_rest),
            _figure("jitter_moving", [_ratio(each.moving) for each in measured], "", "neither", "the others do not move",
                    note="1: as much as the original"),
            _figure("detail", [_ratio(each.detail) for each in measured], "", "neither", "the others have no detail",
                    note="1: as much as the original"),
        ]  # fmt: skip
        return Measurement([figure for figure in figures if figure is not None])

    def _jitter(self, video: EvaluatedVideo, reference: EvaluatedVideo) -> DetailJitter:
        require_equal_size(video, reference)
        require_two_frames(video, "jitter")
        if min(video.height, video.width) < SMALLEST:
            raise DataError(
                f"{video.path}: frames of {video.height} rows and {video.width} columns; jitter needs {SMALLEST} of both; "
                "remove the metric, or the file"
            )
        pairs = ((a[0], b[0]) for a, b in zip(video.blocks(1), reference.blocks(1), strict=True))
        return detail_jitter(pairs)


def detail_jitter(pairs: Iterable[tuple[Frames, Frames]]) -> DetailJitter:
    """The jitter of a clip. pairs: a frame of the reconstruction and the same frame of the original, RGB bytes [H, W, C].

    At least two pairs; frames of SMALLEST rows and columns or more.
    """
    parts = {"static": _Sums(), "moving": _Sums()}
    detail, before, changes, size = _Sums(), None, 0, 0
    for video_HWC, reference_HWC in pairs:
        now = _Frame(video_HWC, reference_HWC)
        everywhere = np.ones(now.reference_bytes.shape, bool)
        detail.add(now.video - now.video.mean(), now.reference - now.reference.mean(), everywhere)
        if before is not None:
            moving = moving_part(before.reference_bytes, now.reference_bytes)
            masks = {"moving": moving, "static": ~_grown(moving, math.ceil(3 * SIGMA))}  # detail reaches this far
            for name, mask in masks.items():
                # Half: the variances of two frames add up in their difference.
                video, reference = now.video - before.video, now.reference - before.reference
                parts[name].add(video * math.sqrt(0.5), reference * math.sqrt(0.5), mask)
            changes, size = changes + 1, moving.size
        before = now
    least = LEAST * changes * size
    return DetailJitter(parts["static"].mean(least), parts["moving"].mean(least), detail.mean() or Variances(0, 0))


def moving_part(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Mask:
    """The places of two gray frames that move by MOVES or more, or that are covered or uncovered by what does."""
    if np.array_equal(before, after):
        return np.zeros(before.shape, bool)
    flows = (optical_flow(before, after), optical_flow(after, before))  # only the second knows what was uncovered
    return np.logical_or.reduce([np.linalg.norm(flow, axis=2) >= MOVES for flow in flows])


class _Frame:
    """Both frames of a pair as detail, the original also as gray bytes."""

    def __init__(self, video_HWC: Frames, reference_HWC: Frames) -> None:
        import cv2

        self.video, self.reference = (high_pass(frame) for frame in (video_HWC, reference_HWC))
        self.reference_bytes = np.asarray(cv2.cvtColor(reference_HWC, cv2.COLOR_RGB2GRAY), np.uint8)


def high_pass(frame_HWC: Frames) -> Plane:
    """The gray frame less its Gaussian blur, in gray levels."""
    import cv2

    gray: Any = cv2.cvtColor(frame_HWC.astype(np.float32), cv2.COLOR_RGB2GRAY)
    return np.asarray(gray - cv2.GaussianBlur(gray, (0, 0), SIGMA), np.float32)


def _grown(mask: Mask, reach: int) -> Mask:
    """The mask and all that is at most `reach` pixels away from it, rows and columns counted alone."""
    import cv2

    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), square), bool)


class _Sums:
    """Sums of squares of both clips over the places of a mask, frame after frame."""

    def __init__(self) -> None:
        self.squares = np.zeros(2)
        self.places = 0

    def add(self, video: Plane, reference: Plane, mask: Mask) -> None:
        self.squares += [np.square(plane[mask], dtype=np.float64).sum() for plane in (video, reference)]
        self.places += int(mask.sum())

    def mean(self, least: float = 0) -> Variances | None:
        """None below `least` places."""
        if self.places == 0 or self.places < least:
            return None
        return Variances(*(self.squares / self.places).tolist())


def _ratio(part: Variances | None) -> float | None:
    return part.video / part.reference if part is not None and part.reference > 0 else None


def _figure(
    name: str, per_video: Sequence[float | None], unit: str, better: Better, without: str, note: str = ""
) -> Figure | None:
    """The mean over the videos that have a number; None where none has. without: the reason why others have none."""
    known = [value for value in per_video if value is not None]
    if len(known) == len(per_video):
        return mean_figure(name, known, unit, better, note)
    if not known:
        return None
    some = f"of {len(known)} of {len(per_video)} videos; {without}"
    return Figure(name, float(np.mean(known)), unit, better, note="; ".join(filter(None, (note, some))))
