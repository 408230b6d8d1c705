"""Adherence of MovingShapes and MovingObjects videos to their prompts."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Measurement, Needs, mean_figure, whole_clip
from opensora.evaluation.object_adherence import detect_object_attributes, object_attributes_in_prompt
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


@METRICS.register_module()
class ObjectAdherence:
    """Share of videos that show the object, the motion, the background and the speed of their prompt, read from the pixels;
    see evaluation/object_adherence.py. pair: object and motion at once. adherence: all four."""

    needs: ClassVar[Needs] = "videos"

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        rows = []
        for video in videos:
            try:
                wanted = object_attributes_in_prompt(video.prompt or "")
            except ValueError as error:
                raise DataError(f"{video.path}: {error}; remove the metric, or the file") from None
            shown = detect_object_attributes(whole_clip(video))
            right = [
                getattr(shown, name) == getattr(wanted, name) for name in ("object", "motion", "background", "speed")
            ]
            rows.append([*map(float, right), float(all(right[:2])), float(all(right))])
        names = ("object", "motion", "background", "speed", "pair", "adherence")
        columns = zip(*rows, strict=True)
        return Measurement(
            [mean_figure(name, column, "share", "higher") for name, column in zip(names, columns, strict=True)]
        )
