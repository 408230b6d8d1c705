"""LPIPS or ST-LPIPS of videos to references of the same names."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from opensora.config import check_component
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import Measurement, Needs, mean_figure
from opensora.evaluation.metrics.frame_quality import per_frame_mean
from opensora.registry import METRICS, PERCEPTUAL, build

NAMES = {"LPIPS": "lpips", "STLPIPS": "st_lpips"}


@METRICS.register_module()
class PerceptualDistance:
    """Mean over the frames of a clip, then over the clips; 0 = equal.

    distance: a component of the kind that autoencoders are trained with, `dict(type="LPIPS", weights=[...], net="alex")` or
        `dict(type="STLPIPS", weights="alex_shift_tolerant.pth", net="alex")`; see models/vae/.
    """

    needs: ClassVar[Needs] = "pairs"

    def __init__(self, distance: dict[str, Any]) -> None:
        check_component(PERCEPTUAL, distance, "distance", lambda _: "metric PerceptualDistance")
        self.distance = distance
        self._network = build(PERCEPTUAL, distance)

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        network = self._network.load().to(device)

        @torch.no_grad()
        def compare(a: Tensor, b: Tensor) -> Tensor:
            return network(a * 2 - 1, b * 2 - 1)

        values = [per_frame_mean(*pair, compare, device) for pair in zip(videos, references, strict=True)]
        name = NAMES.get(self.distance["type"], self.distance["type"].lower())
        return Measurement([mean_figure(name, values, "", "lower", _note(self.distance))])


def _note(distance: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key} {value}" for key, value in distance.items() if key != "type")
    return f"{distance['type']}, {arguments}"
