"""CLIP score: how well the frames of a video fit its prompt."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from opensora.errors import DataError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.image_text_encoder import DEFAULT_MODEL, ImageTextEncoder
from opensora.evaluation.metric import BLOCK, Measurement, Needs, mean_figure
from opensora.registry import METRICS


@METRICS.register_module()
class CLIPScore:
    """100 times the cosine of the vectors of a frame and of the prompt, at least 0: mean over frames, then over videos.

    model: folder or hub id of a CLIP or SigLIP model of transformers. Figures of different models do not compare.
    Source: Hessel et al. 2021, arXiv:2104.08718, with weight 100 as in torchmetrics; over frames as CLIPSIM of
    Wu et al. 2021, arXiv:2104.14806.
    """

    needs: ClassVar[Needs] = "videos"

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = model

    def measure(
        self, videos: Sequence[EvaluatedVideo], references: Sequence[EvaluatedVideo], device: torch.device
    ) -> Measurement:
        for video in videos:
            if not (video.prompt or "").strip():
                raise DataError(
                    f"{video.path}: has no prompt for the CLIP score; allowed: videos with the json that `opensora sample` "
                    "writes; remove the metric, or the file"
                )
        encoder = ImageTextEncoder(self.model, device, option="CLIPScore model")
        return Measurement([mean_figure("clip_score", [_score(encoder, v) for v in videos], "", "higher", self.model)])


def _score(encoder: ImageTextEncoder, video: EvaluatedVideo) -> float:
    text_D = encoder.texts([video.prompt or ""])[0]
    scores = [encoder.frames(list(block)) @ text_D for block in video.blocks(BLOCK)]
    return (100 * torch.cat(scores).clamp(min=0)).mean().item()
