"""Embedded text as cross-attention reads it.

Shapes: B captions, L text tokens, D width, h heads, d width of a head.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from opensora.models.layers.clip_cache import ClipCache

EmbeddedText = tuple[Tensor, Tensor | None]  # [B, L, D], and which tokens count, bool [B, L]; None = all


class TextLayer(Protocol):
    """A cross-attention layer."""

    def keys_values(self, y_BLD: Tensor, /) -> tuple[Tensor, Tensor]:
        """Keys and values [B, h, L, d] of embedded text."""


class TextContext:
    """Embedded captions [B, L, D] and a mask of their tokens, bool [B, L], True = counts; None = all count.

    keep: remember each layer's keys and values. Sampling does; training must not, for they carry gradients.
    """

    def __init__(self, y_BLD: Tensor, mask_BL: Tensor | None = None, keep: bool = False):
        self.y_BLD, self.mask_BL = y_BLD, mask_BL
        self._kept: dict[TextLayer, tuple[Tensor, Tensor]] | None = {} if keep else None

    def keys_values(self, layer: TextLayer) -> tuple[Tensor, Tensor]:
        """Keys and values [B, h, L, d] of `layer`."""
        if self._kept is None:
            return layer.keys_values(self.y_BLD)
        if layer not in self._kept:
            self._kept[layer] = layer.keys_values(self.y_BLD)
        return self._kept[layer]


def text_context(embed: Callable[[], EmbeddedText], cache: ClipCache | None, name: str = "caption") -> TextContext:
    """The context of the text that `embed` gives, from the cache if there is one.

    In a cache, trailing tokens that count in no caption are cut off, so that attention needs no mask when all captions
    are equally long.
    """
    if cache is None:
        return TextContext(*embed())
    return cache.keep(name, lambda: TextContext(*_trim(*embed()), keep=True))


def _trim(y_BLD: Tensor, mask_BL: Tensor | None) -> EmbeddedText:
    """Cut the tokens at the end that no caption counts; drop the mask when every token counts."""
    if mask_BL is None:
        return y_BLD, None
    length = int(mask_BL.any(dim=0).nonzero().max()) + 1
    mask_BL = mask_BL[:, :length]
    return y_BLD[:, :length], None if bool(mask_BL.all()) else mask_BL
