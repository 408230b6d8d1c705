"""Fréchet distance of videos to references, by the features of any network."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from opensora.config import check_component
from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.frechet_distance import frechet_distance
from opensora.evaluation.metric import Figure, Measurement, Needs
from opensora.registry import EXTRACTORS, METRICS, build


class Extractor(Protocol):
    """A component of EXTRACTORS.

    figure: the name of the distance over its features; FVD and FID are names of single networks. note: for the report.
    """

    figure: str
    note: str

    def load(self, device: torch.device) -> "Extractor":
        """Read the weights. Raises OpenSoraError."""
        ...

    def features(self, video: EvaluatedVideo) -> Tensor:
        """The features [n, F] of a video, float32 on the CPU: n = 1, or one row for each of several frames or clips."""
        ...


@METRICS.register_module()
class FrechetDistance:
    """Distance of two normal distributions that are fitted to the features of the videos and of the references; 0 = equal.

    extractor: a component, `dict(type="I3D", path="i3d_torchscript.pt")` for FVD, or a network that comes along; see
        evaluation/extractors/.
    """

    needs: ClassVar[Needs] = "references"

    def __init__(self, extractor: dict[str, Any]) -> None:
        check_component(EXTRACTORS, extractor, "extractor", lambda _: "metric FrechetDistance")
        self._extractor: Extractor = build(EXTRACTORS, extractor)

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        extractor = self._extractor.load(device)
        made, real = (torch.cat(list(_features(extractor, each))) for each in (videos, references))
        try:
            distance = frechet_distance(made, real)
        except ValueError as error:
            raise DataError(f"metric FrechetDistance: {error}") from None
        return Measurement([Figure(extractor.figure, distance, "", "lower", note=_note(extractor.note, made, real))])


def _features(extractor: Extractor, videos: Sequence[EvaluatedVideo]) -> Iterator[Tensor]:
    for video in videos:
        yield extractor.features(video)


def _note(network: str, made: Tensor, real: Tensor) -> str:
    fewest, features = min(len(made), len(real)), made.shape[1]
    few = f"; too few for {features} features: the distance is biased upward, compare equal counts alone"
    return f"{network}; {len(made)} against {len(real)} samples{few if fewest <= features else ''}"
