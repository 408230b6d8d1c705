"""Text for the denoiser: captions and, under guidance, what to steer away from.

B requests, L tokens, C caption channels. Guidance runs the model on 2B samples; the scheduler says in `text_order`
which half is the prompt's.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from opensora.errors import ConfigError
from opensora.types import EncodedText


class TextModel(Protocol):
    """The part of a denoiser that knows what "no caption" is."""

    def null_text(self, n: int) -> Tensor | None:
        """The learned null caption [n, 1, L, C], or null labels [n]; None where it is the encoded empty prompt."""


class TextEncoding(Protocol):
    """The part of a codec that reads captions."""

    def encode_text(self, captions: list[str]) -> EncodedText:
        """Encoded captions, padded to one length."""


def encode_prompts(prompts: Sequence[str], codec: TextEncoding) -> EncodedText:
    """Text for sampling without guidance, one sample per prompt."""
    return codec.encode_text(list(prompts))


def encode_pairs(
    prompts: Sequence[str], negative_prompts: Sequence[str], model: TextModel, codec: TextEncoding, text_order: str
) -> EncodedText:
    """Text for guided sampling, 2B samples in the order the scheduler defines.

    An empty negative prompt means the model's null caption under the *prompt's* token mask: null captions are cut to
    the prompt's length, as Open-Sora does (released weights were sampled that way), and Open-Sora-Plan for a single
    prompt; for several it masks nothing, which here no batch size does. A written negative prompt keeps its own mask,
    for cutting it would drop its last words. For a model by class all of them are labels [2B], without masks.

    text_order: "cond,null" or "null,cond". Raises ConfigError when the encoder's states do not fit the model.
    """
    condition = codec.encode_text(list(prompts))
    text_B1LC = condition.text_B1LC
    learned = model.null_text(len(prompts))
    null_B1LC = codec.encode_text([""] * len(prompts)).text_B1LC if learned is None else learned.to(text_B1LC)
    if null_B1LC.shape != text_B1LC.shape:
        raise ConfigError(
            f"text_encoder: gives captions of {_tokens(text_B1LC)} but the model's null caption has {_tokens(null_B1LC)};"
            " they are equal; set model.model_max_length and model.caption_channels to the encoder's"
        )
    null_mask_BL = condition.mask_BL
    written = [row for row, text in enumerate(negative_prompts) if text]
    if written:
        negative = codec.encode_text([negative_prompts[row] for row in written])
        null_B1LC = null_B1LC.clone()
        null_B1LC[written] = negative.text_B1LC
        if null_mask_BL is not None and negative.mask_BL is not None:
            null_mask_BL = null_mask_BL.clone()
            null_mask_BL[written] = negative.mask_BL
    return _stack(condition, EncodedText(null_B1LC, null_mask_BL), text_order)


def _stack(cond: EncodedText, null: EncodedText, text_order: str) -> EncodedText:
    halves = {"cond": cond, "null": null}
    ordered = [halves[name] for name in text_order.split(",")]
    masks = [half.mask_BL for half in ordered if half.mask_BL is not None]
    return EncodedText(torch.cat([half.text_B1LC for half in ordered]), torch.cat(masks) if masks else None)


def _tokens(text_B1LC: Tensor) -> str:
    if text_B1LC.ndim == 1:
        return "one class number"
    return f"{text_B1LC.shape[2]} tokens of {text_B1LC.shape[3]} channels"
