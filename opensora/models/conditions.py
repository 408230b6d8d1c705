"""What a denoiser is told besides latents, timestep and text.

A model names in `size_conditions` which of these its forward takes, each float32 [B]:
num_frames of the clip; height, width in pixels; ar = height / width; fps in frames per second.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IMAGE_FPS = 120.0  # an image has no frame rate; released weights were told this


def clip_conditions(model: Any, size: Sequence[int], fps_B: Tensor) -> dict[str, Tensor]:
    """Keyword arguments for `model.forward` that describe clips of (frames, height, width), on the device of fps_B."""
    frames, height, width = size
    fps_B = fps_B.float()
    known = {
        "num_frames": torch.full_like(fps_B, frames),
        "height": torch.full_like(fps_B, height),
        "width": torch.full_like(fps_B, width),
        "ar": torch.full_like(fps_B, height / width),
        "fps": torch.full_like(fps_B, IMAGE_FPS) if frames == 1 else fps_B,
    }
    return {name: known[name] for name in model.size_conditions}
