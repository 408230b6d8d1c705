"""TrunkFeatures: the trunk of ST-LPIPS as a stand-in for the networks of FID and FVD."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from opensora.evaluation.evaluated_video import EvaluatedVideo
from opensora.evaluation.metric import frame_blocks
from opensora.models.vae.st_lpips import SMALLEST, STLPIPS, Net
from opensora.registry import EXTRACTORS


@EXTRACTORS.register_module()
class TrunkFeatures:
    """The last features of ST-LPIPS' trunk, averaged over places; of a video their mean over its frames, then the mean change
    from frame to frame without its sign, so that motion counts. Neither FID nor FVD.

    weights, net: of models/vae/st_lpips.py. size: pixels of the shorter side that frames are scaled to, so that videos and
        references of other sizes compare.
    """

    def __init__(self, weights: str, net: Net = "alex", size: int = 128) -> None:
        if size < SMALLEST:
            raise ValueError(f"size is at least {SMALLEST}")
        self._size = size
        self.figure = f"frechet_st_lpips_{net}"
        self.note = f"trunk of ST-LPIPS ({net}) at {size} pixels, not I3D: no FVD"
        self._distance = STLPIPS(weights, net)

    def load(self, device: torch.device) -> Self:
        """Read the weights. Raises WeightsError."""
        self._distance = self._distance.load().to(device)
        self._device = device
        return self

    @torch.no_grad()
    def features(self, video: EvaluatedVideo) -> Tensor:
        """[1, 2 C]; of a single picture the second half is 0."""
        blocks = [
            self._distance.features(self._scaled(block.to(self._device)) * 2 - 1)[-1].mean((2, 3)).cpu()
            for block in frame_blocks(video)
        ]
        frames_TC = torch.cat(blocks)
        change_C = frames_TC.diff(dim=0).abs().mean(0) if len(frames_TC) > 1 else torch.zeros_like(frames_TC[0])
        return torch.cat([frames_TC.mean(0), change_C])[None]

    def _scaled(self, frames_NCHW: Tensor) -> Tensor:
        short = min(frames_NCHW.shape[2:])
        size = [round(side * self._size / short) for side in frames_NCHW.shape[2:]]
        return functional.interpolate(frames_NCHW, size=size, mode="bilinear", antialias=True)
