"""CLIPFrames: vectors of frames, for the Fréchet distance over CLIP."""

from typing import Self

import torch
from torch import Tensor

from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.image_text_encoder import DEFAULT_MODEL, ImageTextEncoder
from opensora.evaluation.metric import BLOCK
from opensora.registry import EXTRACTORS


@EXTRACTORS.register_module()
class CLIPFrames:
    """One vector of each frame, by CLIP or SigLIP; motion does not count. Source: Kynkäänniemi et al. 2022,
    arXiv:2203.06026.

    model: folder or hub id.
    """

    figure = "frechet_clip"

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self.model = model
        self.note = f"frames by {model}"

    def load(self, device: torch.device) -> Self:
        """Read the model. Raises ConfigError."""
        self._encoder = ImageTextEncoder(self.model, device, option="CLIPFrames model")
        return self

    def features(self, video: EvaluatedVideo) -> Tensor:
        """[T, D]."""
        return torch.cat([self._encoder.frames(list(block)) for block in video.blocks(BLOCK)])
