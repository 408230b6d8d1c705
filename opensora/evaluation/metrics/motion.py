"""Motion of videos, next to that of the training clips, and their flicker."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from opensora.datasets.decode import Video
from opensora.errors import ConfigError, DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Figure, Measurement, Needs, mean_figure
from opensora.evaluation.motion_amount import RUNS, MotionAmount, motion_of
from opensora.evaluation.optical_flow import optical_flow, shrink
from opensora.registry import METRICS

FLOW = "% of the shorter side per second"
PAIRS = 32  # frames next to each other that flicker is measured on, spread over the video


@METRICS.register_module()
class Motion:
    """flow: mean length of the optical flow. static: part of the picture that rests. jitter: change of the whole picture's
    movement from one step to the next, of the videos that are long enough for two steps of a fifteenth of a second. With
    references, flow_ratio: of the videos' flow to that of the references.

    runs: places in each video that are looked at; see evaluation/motion_amount.py.
    """

    needs: ClassVar[Needs] = "videos"

    def __init__(self, runs: int = RUNS) -> None:
        if runs < 1:
            raise ConfigError(f"Motion: runs={runs}; at least 1 is needed; correct it")
        self.runs = runs

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        amounts = self._amounts(videos)
        flow = mean_figure("flow", [each.flow for each in amounts], FLOW)
        figures = [
            flow,
            mean_figure("static", [each.static_share for each in amounts], "share"),
        ]
        shaken = [each.jitter for each in amounts if each.changes]
        if len(shaken) == len(amounts):
            figures.append(mean_figure("jitter", shaken, FLOW, "lower"))
        elif shaken:
            note = f"of {len(shaken)} of {len(amounts)} videos; the others are too short"
            figures.append(Figure("jitter", float(np.mean(shaken)), FLOW, "lower", note=note))
        if references:
            trained = float(np.mean([each.flow for each in self._amounts(references)]))
            figures.append(Figure("flow of references", trained, FLOW))
            if trained > 0:
                ratio = flow.value / trained
                figures.append(Figure("flow_ratio", ratio, "", "neither", note="1: as much as the references move"))
        return Measurement(figures)

    def _amounts(self, videos: Sequence[EvaluatedVideo]) -> list[MotionAmount]:
        amounts = []
        for each in videos:
            require_two_frames(each, "motion")
            with Video(str(each.path)) as video:
                amounts.append(motion_of(video, each.first_frame, each.first_frame + each.num_frames, self.runs))
        return amounts


@METRICS.register_module()
class Flicker:
    """Change from frame to frame: as it stands, and where the movement is taken out.

    temporal_flickering: of VBench (Huang et al. 2023, arXiv:2311.17982), (255 - change) / 255; 1 = a still picture. Motion
    lowers it as well, so VBench measures it on prompts of still scenes.
    change: mean absolute difference of all frames next to each other, over all colors and pixels, of 255 levels.
    flicker: the same of gray frames of 128 pixels after the later one was moved back along the optical flow, so that steady
    motion counts little; at up to 32 places of the video.
    """

    needs: ClassVar[Needs] = "videos"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        for video in videos:
            require_two_frames(video, "flicker")
        changes = [change_of(video) for video in videos]
        stable = [(255 - change) / 255 for change in changes]
        return Measurement(
            [
                mean_figure("temporal_flickering", stable, "", "higher", "VBench's definition, which counts motion"),
                mean_figure("change", changes, "of 255 levels"),
                mean_figure("flicker", [flicker_of(video) for video in videos], "of 255 gray levels", "lower"),
            ]
        )


def change_of(video: EvaluatedVideo) -> float:
    """Mean absolute difference of neighboring frames over all colors and pixels, of 255 levels."""
    differences = []
    before = None
    for [frame_HWC] in video.blocks(1):
        if before is not None:
            # bytes wrap around: the smaller one is taken from the larger one
            differences.append(float((np.maximum(frame_HWC, before) - np.minimum(frame_HWC, before)).mean()))
        before = frame_HWC
    return float(np.mean(differences))


def flicker_of(each: EvaluatedVideo) -> float:
    """Mean absolute difference of neighboring gray frames of 128 pixels along the optical flow, of 255 levels."""
    import cv2

    starts = np.unique(np.linspace(0, each.num_frames - 2, PAIRS).round().astype(int))
    wanted = sorted({int(frame) for start in starts for frame in (start, start + 1)})
    with Video(str(each.path)) as video:
        frames = video.frames([each.first_frame + frame for frame in wanted])
        grays = {
            number: shrink(frame[: each.height, : each.width]) for number, frame in zip(wanted, frames, strict=True)
        }
    flickers = []
    for start in starts.tolist():
        before, after = grays[start], grays[start + 1]
        flow = optical_flow(before, after)
        rows, columns = np.indices(before.shape, dtype=np.float32)
        moved = cv2.remap(
            after, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        flickers.append(float(np.abs(moved.astype(np.float32) - before).mean()))
    return float(np.mean(flickers))


def require_two_frames(video: EvaluatedVideo, what: str) -> None:
    """DataError for a video of one frame. what: the metric, in a word."""
    if video.num_frames < 2:
        raise DataError(f"{video.path}: has one frame; {what} needs at least two; remove the metric, or the file")
