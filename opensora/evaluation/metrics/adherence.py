"""Adherence of MovingShapes videos to their prompts."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Measurement, Needs, mean_figure, whole_clip
from opensora.evaluation.psnr import psnr
from opensora.evaluation.shape_adherence import attributes_in_prompt, detect_attributes, ideal_clip
from opensora.registry import METRICS


@METRICS.register_module()
class ShapeAdherence:
    """Share of videos that show the color, the shape and the direction of their prompt, read from the pixels; see
    evaluation/shape_adherence.py. drawing_psnr: to the clip that MovingShapes would draw at the place of the object."""

    needs: ClassVar[Needs] = "videos"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        rows = []
        for video in videos:
            try:
                wanted = attributes_in_prompt(video.prompt or "")
            except ValueError as error:
                raise DataError(f"{video.path}: {error}; remove the metric, or the file") from None
            clip_CTHW = whole_clip(video)
            shown = detect_attributes(clip_CTHW)
            right = [getattr(shown, name) == getattr(wanted, name) for name in ("color", "shape", "direction")]
            drawing = psnr(clip_CTHW[None], ideal_clip(clip_CTHW, wanted)[None]).item()
            rows.append([*map(float, right), float(all(right)), drawing])
        color, shape, direction, every, drawing_psnr = (list(column) for column in zip(*rows, strict=True))
        shares = {"color": color, "shape": shape, "direction": direction, "adherence": every}
        figures = [mean_figure(name, values, "share", "higher") for name, values in shares.items()]
        return Measurement([*figures, mean_figure("drawing_psnr", drawing_psnr, "dB", "higher")])
