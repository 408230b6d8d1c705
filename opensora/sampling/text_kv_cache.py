"""What depends on the prompt alone is computed once per prompt, not once per denoising step.

That is the embedded caption and every cross-attention's keys and values. Padding tokens that no sample of the batch
counts are cut off, so that attention needs no mask when all captions have one length. Nothing of a model changes: its
`embed_text` and its modules' `keys_values` remember their answers while the context is open.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def prompt_cache(model: nn.Module) -> Iterator[None]:
    """Remember per call arguments (the same tensor objects, unchanged) until the context closes; no gradients."""
    keepers: list[Any] = [module for module in model.modules() if hasattr(module, "keys_values")]
    embed_text: Callable[..., Any] | None = getattr(model, "embed_text", None)
    if embed_text is not None:
        model.embed_text = _remembered(lambda *args, **kwargs: _trimmed(*embed_text(*args, **kwargs)))  # type: ignore[assignment]
    for module in keepers:
        module.keys_values = _remembered(module.keys_values)
    try:
        yield
    finally:
        if embed_text is not None:
            del model.embed_text
        for module in keepers:
            del module.keys_values


def _remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose answer for the very same objects is given again. The objects are held, so none is mistaken."""
    known: list[tuple[tuple[Any, ...], Any]] = []

    def ask(*args: Any, **kwargs: Any) -> Any:
        asked = (*args, *(part for item in sorted(kwargs.items()) for part in item))
        for held, answer in known:
            if len(held) == len(asked) and all(a is b for a, b in zip(held, asked, strict=True)):
                return answer
        known.append((asked, function(*args, **kwargs)))
        return known[-1][1]

    return ask


def _trimmed(y_BLD: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Without the tokens at the end that no caption counts; without a mask when every token counts."""
    if mask_BL is None or mask_BL.ndim != 2:
        return y_BLD, mask_BL
    length = int(mask_BL.any(dim=0).nonzero().max()) + 1
    mask_BL = mask_BL[:, :length]
    return y_BLD[..., :length, :], None if bool(mask_BL.all()) else mask_BL
