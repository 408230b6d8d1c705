"""ClipEncoder: the clips of rows as vectors, by CLIP or SigLIP; opensora/evaluation/image_text_encoder.py has the model.

Shapes: T frames, D numbers of a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opensora.datasets.decode import Frames
from opensora.errors import BadClip, ConfigError
from opensora.evaluation.image_text_encoder import DEFAULT_MODEL, ImageTextEncoder
from tools.clip_frames import sample_frames

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEFAULT_MODEL", "PACKAGES", "ClipEncoder", "mean_vector", "require_frames"]

PACKAGES = ("torch", "transformers")
_WIDEST = 1024  # pixels of frames; models take 224 to 512, and the frames of a batch are in memory together


class ClipEncoder(ImageTextEncoder):
    """model: see ImageTextEncoder. device: a platform of opensora, or auto for the fastest.

    Raises ConfigError where the model cannot be read, or the device is missing.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        from opensora.platforms import select

        super().__init__(model, select(None if device == "auto" else device).device())

    def clips(self, rows: Sequence[Mapping[str, Any]], count: int) -> "list[Tensor | BadClip]":
        """For each row [T, D] of at most `count` frames that are spread over the clip, or why it cannot be used."""
        clips: list[list[Frames] | BadClip] = []
        for row in rows:
            try:
                clips.append(list(sample_frames(row, count, _WIDEST)))
            except BadClip as error:
                clips.append(error)
        every = [frame for clip in clips if not isinstance(clip, BadClip) for frame in clip]
        vectors = iter(self.frames(every) if every else ())
        return [clip if isinstance(clip, BadClip) else _take(vectors, len(clip)) for clip in clips]


def _take(vectors: "Iterator[Tensor]", count: int) -> "Tensor":
    import torch

    return torch.stack([next(vectors) for _ in range(count)])


def mean_vector(vectors: "Tensor") -> "Tensor":
    """[D] of length 1: the direction of the mean of [T, D]."""
    from torch.nn.functional import normalize

    return normalize(vectors.mean(0), dim=0)


def require_frames(frames: int, tool: str) -> None:
    """Raise ConfigError for a number of frames that a tool cannot sample."""
    if not 1 <= frames <= 256:
        raise ConfigError(f"{tool}: --frames {frames}; allowed: 1 to 256 frames for each clip; correct it")
