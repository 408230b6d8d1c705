"""The inputs of a denoiser while one clip is sampled: captions, the clip's size and rate, and reference frames.

B requests, L tokens, C caption channels. Guidance runs the model on several copies of a batch. The scheduler defines in
`text_order`, or with reference frames in `image_text_order`, which caption each copy has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.interfaces import Denoiser, Scheduler
from opensora.models.clip_conditioning import clip_conditioning
from opensora.models.codec import Codec
from opensora.models.frame_conditioning import frame_conditioning
from opensora.sampling.prompt_syntax import text_of_loop
from opensora.sampling.reference_frames import ReferenceFrames, initial_latents, reference_latents
from opensora.schedulers.masking import edited_share
from opensora.types import EncodedText, SampleRequest


class TextModel(Protocol):
    """The part of a denoiser that defines "no caption"."""

    def null_text(self, n: int) -> Tensor | None:
        """The learned null caption [n, 1, L, C], or null labels [n]; None where it is the encoded empty prompt."""


class TextCodec(Protocol):
    """The part of a codec that encodes captions."""

    def encode_text(self, captions: list[str]) -> EncodedText:
        """Encoded captions, padded to one length."""


@dataclass(frozen=True)
class ModelInputs:
    """The initial latents of one clip, and the inputs that every denoising step shares."""

    initial_BCTHW: Tensor  # noise, with reference frames in their places where the model takes frame masks
    text: EncodedText  # of all copies
    model_kwargs: dict[str, Any]  # of `model.forward` besides latents, timestep, text and mask, of all copies
    sampler_kwargs: dict[str, Any]  # of the scheduler's `sample`, about reference frames
    copies: tuple[str, ...] = ("cond",)  # the words of the scheduler's order, each standing for B rows

    def of_copies(self, wanted: Sequence[int]) -> "ModelInputs":
        """The inputs of some copies only, by their places in `copies`."""
        rows = len(self.text.text_B1LC) // len(self.copies)
        spans = [(place * rows, (place + 1) * rows) for place in wanted]

        def part(value: Any) -> Any:
            pieces = [value[start:stop] for start, stop in spans]
            return torch.cat(pieces) if isinstance(value, Tensor) else [row for piece in pieces for row in piece]

        mask_BL = self.text.mask_BL
        text = EncodedText(part(self.text.text_B1LC), None if mask_BL is None else part(mask_BL))
        model_kwargs = {name: part(value) for name, value in self.model_kwargs.items()}
        return replace(self, text=text, model_kwargs=model_kwargs, copies=tuple(self.copies[place] for place in wanted))


def make_model_inputs(
    requests: Sequence[SampleRequest],
    model: Denoiser,
    scheduler: Scheduler,
    codec: Codec,
    references: Sequence[ReferenceFrames],
    noise_BCTHW: Sequence[Tensor],
    loop: int,
    guidance_scale: float,
) -> ModelInputs:
    """Encode the requests' captions and place their reference frames for one loop; all tensors on the codec's device.

    A conditioned model gets reference frames as latents of their own, and all its frames start from noise. Then the
    frames have their own guidance scale, the scheduler's `image_cfg_scale`; without reference frames it is left out. A clip
    that is edited as a whole starts from itself with noise, for this model like for any other.
    """
    sampler_kwargs: dict[str, Any] = {}
    copies, order = (1, "cond") if guidance_scale == 1 else (2, scheduler.text_order)
    initial, mask_BT = initial_latents(references, noise_BCTHW, loop)
    if model.conditioned and edited_share(mask_BT) is None:
        initial = torch.stack(list(noise_BCTHW))
        latents, frame_numbers = reference_latents(references, noise_BCTHW, loop)
        image_scale = float(scheduler.image_cfg_scale) if any(frame_numbers) else 1.0
        if any(frame_numbers) and (guidance_scale != 1 or image_scale != 1):
            # With both scales at 1, two of the three predictions cancel out.
            sampler_kwargs["image_guidance_scale"] = image_scale
            copies, order = 3, scheduler.image_text_order
    else:
        latents, frame_numbers = torch.zeros_like(initial), [[]] * len(requests)  # no separate latents
        if mask_BT is not None:
            sampler_kwargs["mask_BT"] = mask_BT.to(codec.device)

    prompts = [text_of_loop(request.prompt, loop) for request in requests]
    if copies == 1:
        text = codec.encode_text(prompts)
    else:
        text = encode_guided(prompts, [request.negative_prompt for request in requests], model, codec, order)
    fps_B = torch.tensor([request.fps for request in requests], device=codec.device)
    size = (requests[0].num_frames, requests[0].height, requests[0].width)
    model_kwargs: dict[str, Any] = clip_conditioning(model, size, fps_B.repeat(copies))
    if model.conditioned:
        y_null = model.null_text(len(text.text_B1LC))
        assert y_null is not None  # conditioned models have a null caption
        repeated = latents.to(codec.device).repeat(copies, 1, 1, 1, 1)
        uncond = len(requests) if copies == 3 else 0
        model_kwargs |= frame_conditioning(repeated, frame_numbers * copies, y_null.to(text.text_B1LC), uncond)
    return ModelInputs(initial.to(codec.device), text, model_kwargs, sampler_kwargs, tuple(order.split(",")))


def encode_guided(
    prompts: Sequence[str], negative_prompts: Sequence[str], model: TextModel, codec: TextCodec, text_order: str
) -> EncodedText:
    """Text for guided sampling: a batch per word of `text_order`, for example "cond,null".

    An empty negative prompt is the model's null caption under the *prompt's* token mask. Open-Sora cuts null captions to
    the prompt's length, and released weights were sampled that way. Open-Sora-Plan does so for a single prompt and drops
    the mask for batches; we keep it for every batch size. A written negative prompt keeps its own mask: cutting it would
    drop its last words. For a model by class all captions are labels [2B], without masks.

    Raises ConfigError when the encoder's states do not fit the model.
    """
    cond = codec.encode_text(list(prompts))
    text_B1LC = cond.text_B1LC
    learned = model.null_text(len(prompts))
    null_B1LC = codec.encode_text([""] * len(prompts)).text_B1LC if learned is None else learned.to(text_B1LC)
    if null_B1LC.shape != text_B1LC.shape:
        raise ConfigError(
            f"text_encoder: gives captions of {_tokens(text_B1LC)} but the model's null caption has {_tokens(null_B1LC)};"
            " they must match; set model.model_max_length and model.caption_channels to the encoder's"
        )
    null_mask_BL = cond.mask_BL
    written = [row for row, text in enumerate(negative_prompts) if text]
    if written:
        negative = codec.encode_text([negative_prompts[row] for row in written])
        null_B1LC = null_B1LC.clone()
        null_B1LC[written] = negative.text_B1LC
        if null_mask_BL is not None and negative.mask_BL is not None:
            null_mask_BL = null_mask_BL.clone()
            null_mask_BL[written] = negative.mask_BL
    parts = {"cond": cond, "null": EncodedText(null_B1LC, null_mask_BL)}
    ordered = [parts[name] for name in text_order.split(",")]
    masks = [part.mask_BL for part in ordered if part.mask_BL is not None]
    return EncodedText(torch.cat([part.text_B1LC for part in ordered]), torch.cat(masks) if masks else None)


def _tokens(text_B1LC: Tensor) -> str:
    if text_B1LC.ndim == 1:
        return "one class number"
    return f"{text_B1LC.shape[2]} tokens of {text_B1LC.shape[3]} channels"
