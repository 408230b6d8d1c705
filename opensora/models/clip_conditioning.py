"""Size and frame rate of a clip as inputs of a denoiser, which names those it takes in `size_conditions`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from opensora.interfaces import Denoiser

IMAGE_FPS = 120.0  # stands for the frame rate of an image; released weights were trained with it


def clip_conditioning(model: Denoiser, size: Sequence[int], fps_B: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of `model`, each float32 [B] on the device of fps_B, for clips of (frames, height, width) pixels.

    num_frames of the clip; height, width in pixels; ar = height / width; fps in frames per second.
    """
    frames, height, width = size
    fps_B = fps_B.float()
    values = {
        "num_frames": torch.full_like(fps_B, frames),
        "height": torch.full_like(fps_B, height),
        "width": torch.full_like(fps_B, width),
        "ar": torch.full_like(fps_B, height / width),
        "fps": torch.full_like(fps_B, IMAGE_FPS) if frames == 1 else fps_B,
    }
    return {name: values[name] for name in model.size_conditions}
