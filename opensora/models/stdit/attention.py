"""Attention within frames and along time, on tokens [B, T, S, D]: B batch, T frames, S patches of a frame, D width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import ShapeError

Rotate = Callable[[Tensor], Tensor]
Given = Sequence[int] | Sequence[Sequence[int]]  # numbers of given frames, of all samples or of each


class SpatialAttention(SelfAttention):
    """Each frame by itself."""

    def __init__(self, dim: int, num_heads: int, **options: Any):
        super().__init__(dim, num_heads, crosses_split=True, **options)
        # Between blocks parallel/ keeps the patches cut; here it gives each rank whole frames, or else some of the heads.
        self.a2a_to_frames = Seam("switch", dim=2, swap_dim=1)
        self.a2a_to_patches = Seam("switch", dim=1, swap_dim=2)

    def forward(self, x_BTSD: Tensor, rotate: Rotate | None = None, mask: Tensor | None = None) -> Tensor:
        """rotate: position embedding of a frame's patches; mask: as in SelfAttention, cut as the frames are."""
        return self.a2a_to_patches(super().forward(self.a2a_to_frames(x_BTSD), rotate, mask))


def along_time(attention: SelfAttention, x_BTSD: Tensor, rotate: Rotate | None = None) -> Tensor:
    """Each place of the frame by itself, along time; rotate: position embedding of the frames."""
    return attention(x_BTSD.transpose(1, 2), rotate).transpose(1, 2)


@dataclass(frozen=True)
class Text:
    """What the frames of a clip attend to: the caption, and the null caption in the frames that are given."""

    caption: TextContext
    null: TextContext | None = None
    free: Tensor | None = None  # numbers of the frames that attend to the caption
    given: Tensor | None = None  # numbers of the others
    order: Tensor | None = None  # where each frame is in free + given
    given_BT: Tensor | None = None  # which frames are given, where samples differ in them

    def with_null(self, null: TextContext, frames: int, given: Given) -> "Text":
        """The frames numbered in `given` attend to the null caption; ShapeError when there is no such frame."""
        rows = given_rows(given)
        if len(rows) not in (1, len(self.caption.y_BLD)):
            raise ShapeError(
                f"mask_index: frames of {len(rows)} samples for a batch of {len(self.caption.y_BLD)}; give one list, or one "
                "per sample"
            )
        wrong = sorted({number for row in rows for number in row if not 0 <= number < frames})
        if wrong:
            raise ShapeError(f"mask_index: frames {wrong} of a clip of {frames}; name frames from 0 to {frames - 1}")
        device = self.caption.y_BLD.device
        if any(row != rows[0] for row in rows):
            given_BT = torch.tensor([[number in row for number in range(frames)] for row in rows], device=device)
            return Text(self.caption, null, given_BT=given_BT)
        chosen = rows[0]
        free = [number for number in range(frames) if number not in chosen]
        order = torch.tensor([*free, *chosen], device=device).argsort()
        free_N, given_N = (torch.tensor(part, dtype=torch.long, device=device) for part in (free, chosen))
        return Text(self.caption, null, free_N, given_N, order)

    def read(self, attention: CrossAttention, x_BTSD: Tensor) -> Tensor:
        """Every token attends to its frame's text."""
        if self.given_BT is not None and self.null is not None:
            # Samples differ in which frames are given, so frames cannot be grouped: attend to both texts, select per frame.
            return torch.where(
                self.given_BT[:, :, None, None],
                _read(attention, x_BTSD, self.null),
                _read(attention, x_BTSD, self.caption),
            )
        if self.null is None or self.free is None or self.given is None or self.order is None:
            return _read(attention, x_BTSD, self.caption)
        parts = [
            _read(attention, x_BTSD[:, self.free], self.caption),
            _read(attention, x_BTSD[:, self.given], self.null),
        ]
        return torch.cat(parts, dim=1)[:, self.order]


def given_rows(given: Given) -> list[list[int]]:
    """Ascending frame numbers, a list for all samples or one for each."""
    flat = [number for number in given if isinstance(number, int)]
    rows = [flat] if len(flat) == len(given) else [list(row) for row in given if not isinstance(row, int)]
    return [sorted(set(row)) for row in rows]


def _read(attention: CrossAttention, x_BTSD: Tensor, text: TextContext) -> Tensor:
    if not x_BTSD.shape[1]:
        return x_BTSD
    return attention(x_BTSD.flatten(1, 2), text).view(x_BTSD.shape)
