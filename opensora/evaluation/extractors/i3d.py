"""I3D: the network of FVD, as a TorchScript file."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from opensora.errors import DataError, WeightsError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.frechet_distance import clip_for_features
from opensora.evaluation.metric import whole_clip
from opensora.registry import EXTRACTORS

SHORTEST = 9  # frames; the network halves time three times and pools what is left


@EXTRACTORS.register_module()
class I3D:
    """400 logits of one clip of each video, by I3D trained on Kinetics-400; the distance over them is FVD.

    path: the TorchScript file `i3d_torchscript.pt` that StyleGAN-V's authors published and others use; it is called as
        `network(clip, rescale=False, resize=False, return_features=True)` on [1, 3, T, 224, 224] in [-1, 1].
    num_frames: the first frames of each video; 16 and 128 are usual, and figures of different lengths do not compare.
    Source: Unterthiner et al. 2018, arXiv:1812.01717. The file does not come with this project.
    """

    figure = "fvd"

    def __init__(self, path: str, num_frames: int = 16) -> None:
        if num_frames < SHORTEST:
            raise ValueError(f"I3D takes at least {SHORTEST} frames")
        self.path = path
        self.num_frames = num_frames
        self.note = f"I3D {Path(path).name}, the first {num_frames} frames of each video"

    def load(self, device: torch.device) -> Self:
        """Read the file. WeightsError for one that is no TorchScript, or missing."""
        if not Path(self.path).is_file():
            raise WeightsError(f"I3D: {self.path}: no such file; allowed: a TorchScript file; correct the path")
        try:
            self._network = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise WeightsError(
                f"I3D: {self.path}: cannot be read as TorchScript ({str(error).strip().splitlines()[0]}); fetch it again"
            ) from error
        self._device = device
        return self

    @torch.no_grad()
    def features(self, video: EvaluatedVideo) -> Tensor:
        """[1, 400]. DataError for a video with fewer frames."""
        if video.num_frames < self.num_frames:
            raise DataError(
                f"{video.path}: has {video.num_frames} frames; FVD was to be measured on {self.num_frames}; make longer videos, "
                "or set num_frames of the extractor for all"
            )
        clip_CTHW = whole_clip(video)[:, : self.num_frames] / 2 + 0.5
        clip_BCTHW = clip_for_features(clip_CTHW[None]).to(self._device)
        return self._network(clip_BCTHW, rescale=False, resize=False, return_features=True).float().cpu()
