"""I3D: the network of FVD, as a TorchScript file."""

from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from opensora.errors import DataError, WeightsError
from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.frechet_distance import clip_for_features
from opensora.evaluation.metric import frame_blocks
from opensora.registry import EXTRACTORS

FEATURES = 400  # classes of Kinetics-400
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
        """[1, 400]. DataError for a video with fewer frames, WeightsError for a network that is not I3D."""
        if video.num_frames < self.num_frames:
            raise DataError(
                f"{video.path}: has {video.num_frames} frames; FVD was to be measured on {self.num_frames}; make longer videos, "
                "or set num_frames of the extractor for all"
            )
        blocks = frame_blocks(replace(video, num_frames=self.num_frames))
        clip_BCTHW = torch.cat([clip_for_features(each.transpose(0, 1)[None]) for each in blocks], dim=2)
        try:
            features = self._network(clip_BCTHW.to(self._device), rescale=False, resize=False, return_features=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of TorchScript: a network with other arguments, or for clips of another size
            raise self._not_i3d(str(error).strip().splitlines()[-1]) from error
        if not isinstance(features, Tensor) or features.shape != (1, FEATURES):
            answer = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise self._not_i3d(f"its answer is {answer} instead of [1, {FEATURES}]")
        return features.float().cpu()

    def _not_i3d(self, finding: str) -> WeightsError:
        return WeightsError(
            f"I3D: {self.path}: is not the network of FVD ({finding}); allowed: i3d_torchscript.pt of FVD; "
            "give that file"
        )
