"""The clip lengths of an autoencoder run whose optimizer steps take clips of several lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opensora.errors import ConfigError
from opensora.interfaces import Autoencoder
from opensora.rng import generator
from opensora.schema import TrainRun


@dataclass(frozen=True)
class ClipLengths:
    """image_ratio: share of the steps whose clips are cut to their first frame; the others draw from `lengths` evenly."""

    seed: int
    image_ratio: float
    lengths: Sequence[int]

    def frames(self, step: int) -> int:
        """The length in optimizer step `step`, on all ranks."""
        image, place = torch.rand(2, generator=generator(self.seed, "clip length", step)).tolist()
        return 1 if image < self.image_ratio else self.lengths[int(place * len(self.lengths))]


def clip_lengths(run: TrainRun, vae: Autoencoder, num_frames: int, where: str) -> ClipLengths | None:
    """The lengths of `image_ratio` and `min_frames`; None where every step takes whole clips.

    num_frames: of the clips that the data set gives. Raises ConfigError when none of them is as long as `min_frames`.
    """
    if run.bucket_config is not None or (not run.image_ratio and run.min_frames is None):
        return None
    shortest = num_frames if run.min_frames is None else run.min_frames
    lengths = [frames for frames in range(shortest, num_frames + 1) if vae.holds_frames(frames)]
    if not lengths:
        raise ConfigError(
            f"{where}: key 'min_frames': found {shortest}; allowed: up to {num_frames}, the frames of the clips; lower it or "
            "raise dataset.num_frames"
        )
    return ClipLengths(run.seed, run.image_ratio or 0.0, lengths)
