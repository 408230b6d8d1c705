"""What a denoiser is bound to while one clip is sampled: text, the clip's description and given frames.

Guidance asks a model for several copies of a batch; the scheduler says in `text_order`, or with given frames in
`image_text_order`, what each copy is given. All of it is made once per clip, so that the same tensors reach the model
in every step and what depends on them alone can be remembered (prompt_cache.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.frame_conditioning import frame_conditioning
from opensora.sampling.conditions import encode_pairs, encode_prompts
from opensora.sampling.prompt_syntax import text_of_loop
from opensora.sampling.reference_frames import GivenFrames, conditions, starts
from opensora.types import EncodedText, SampleRequest


@dataclass(frozen=True)
class ModelInputs:
    """One clip's start and what comes with it. B requests."""

    start_BCTHW: Tensor  # noise, with given frames in their places where the model is told by masks
    text: EncodedText  # of all copies
    told: dict[str, Any]  # what `model.forward` is told besides latents, timestep, text and mask, of all copies
    options: dict[str, Any]  # what the scheduler's `sample` is told of given frames


def make_model_inputs(
    requests: Sequence[SampleRequest],
    model: Any,
    scheduler: Any,
    codec: Any,
    frames: Sequence[GivenFrames],
    noise_BCTHW: Sequence[Tensor],
    loop: int,
    scale: float,
) -> ModelInputs:
    """Bind the requests' texts and frames for one loop at guidance `scale`; everything lies on the codec's device.

    A conditioned model is told of given frames by their latents, and all its frames start from noise; then the frames
    have a guidance scale of their own, the scheduler's `image_cfg_scale`. Without given frames that is left out.
    """
    options: dict[str, Any] = {}
    copies, order = (1, "cond") if scale == 1 else (2, scheduler.text_order)
    if model.conditioned:
        start, (latents, given) = torch.stack(list(noise_BCTHW)), conditions(frames, noise_BCTHW, loop)
        image_scale = float(scheduler.image_cfg_scale) if any(given) else 1.0
        if any(given) and (scale != 1 or image_scale != 1):  # at 1 and 1 two of the three answers cancel out
            options["image_guidance_scale"] = image_scale
            copies, order = 3, scheduler.image_text_order
    else:
        start, mask_BT = starts(frames, noise_BCTHW, loop)
        if mask_BT is not None:
            options["mask_BT"] = mask_BT.to(codec.device)

    prompts = [text_of_loop(request.prompt, loop) for request in requests]
    if copies == 1:
        text = encode_prompts(prompts, codec)
    else:
        text = encode_pairs(prompts, [request.negative_prompt for request in requests], model, codec, order)
    fps_B = torch.tensor([request.fps for request in requests], device=codec.device)
    size = (requests[0].num_frames, requests[0].height, requests[0].width)
    told = clip_conditioning(model, size, fps_B.repeat(copies))
    if model.conditioned:
        y_null = model.null_text(len(text.text_B1LC)).to(text.text_B1LC)
        repeated = latents.to(codec.device).repeat(copies, 1, 1, 1, 1)
        without = len(requests) if copies == 3 else 0
        told |= frame_conditioning(repeated, given * copies, y_null, without)
    return ModelInputs(start.to(codec.device), text, told, options)
