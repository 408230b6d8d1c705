"""Attention within frames, along time, and to the text. Tokens are [B, T, S, D]: B batch, T frames, S patches, D width."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensora.models.layers.attention import CrossAttention, SelfAttention
from opensora.models.layers.seam import Seam
from opensora.models.layers.text_context import TextContext
from opensora.models.shape_checks import ShapeError

Rotate = Callable[[Tensor], Tensor]
FrameIndices = Sequence[int] | Sequence[Sequence[int]]  # latent frames, one list for all samples or one per sample


class SpatialAttention(SelfAttention):
    """Self-attention within each frame."""

    def __init__(self, dim: int, num_heads: int, **options: bool):
        super().__init__(dim, num_heads, crosses_split=True, **options)
        # Between blocks parallel/ keeps patches split; here each rank gets whole frames, or else some of the heads.
        self.a2a_to_frames = Seam("switch", dim=2, swap_dim=1)
        self.a2a_to_patches = Seam("switch", dim=1, swap_dim=2)

    def forward(self, x_BTSD: Tensor, rotate: Rotate | None = None, mask: Tensor | None = None) -> Tensor:
        """rotate: position embedding of a frame's patches; mask: as in SelfAttention, split as the frames are."""
        return self.a2a_to_patches(super().forward(self.a2a_to_frames(x_BTSD), rotate, mask))


def temporal_attention(attention: SelfAttention, x_BTSD: Tensor, rotate: Rotate | None = None) -> Tensor:
    """Self-attention along time at each patch position; rotate: position embedding of the frames."""
    return attention(x_BTSD.transpose(1, 2), rotate).transpose(1, 2)


@dataclass(frozen=True)
class FrameText:
    """The text of each frame: the caption, and for conditioning frames the null caption."""

    caption: TextContext
    null: TextContext | None = None
    caption_frames: Tensor | None = None  # indices of the frames that attend to the caption
    null_frames: Tensor | None = None  # indices of the frames that attend to the null caption
    order: Tensor | None = None  # position of each frame in caption_frames + null_frames
    null_BT: Tensor | None = None  # bool; set instead of the indices where samples differ in their frames

    def with_null(self, null: TextContext, frames: int, conditioning: FrameIndices) -> "FrameText":
        """The `conditioning` frames, of `frames` in all, attend to the null caption. Raises ShapeError."""
        rows = per_sample_frames(conditioning)
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
            null_BT = torch.tensor([[number in row for number in range(frames)] for row in rows], device=device)
            return FrameText(self.caption, null, null_BT=null_BT)
        captioned = [number for number in range(frames) if number not in rows[0]]
        order = torch.tensor([*captioned, *rows[0]], device=device).argsort()
        caption_N, null_N = (torch.tensor(part, dtype=torch.long, device=device) for part in (captioned, rows[0]))
        return FrameText(self.caption, null, caption_N, null_N, order)

    def cross_attend(self, attention: CrossAttention, x_BTSD: Tensor) -> Tensor:
        """Every token attends to the text of its frame."""
        if self.null_BT is not None and self.null is not None:
            # Samples differ in their conditioning frames, so these make no tensor: attend to both texts and select.
            return torch.where(
                self.null_BT[:, :, None, None],
                _cross_attend(attention, x_BTSD, self.null),
                _cross_attend(attention, x_BTSD, self.caption),
            )
        if self.null is None or self.caption_frames is None or self.null_frames is None or self.order is None:
            return _cross_attend(attention, x_BTSD, self.caption)
        parts = [
            _cross_attend(attention, x_BTSD[:, self.caption_frames], self.caption),
            _cross_attend(attention, x_BTSD[:, self.null_frames], self.null),
        ]
        return torch.cat(parts, dim=1)[:, self.order]


def per_sample_frames(frames: FrameIndices) -> list[list[int]]:
    """Ascending frame indices: one list for all samples, or one per sample."""
    flat = [number for number in frames if isinstance(number, int)]
    rows = [flat] if len(flat) == len(frames) else [list(row) for row in frames if not isinstance(row, int)]
    return [sorted(set(row)) for row in rows]


def _cross_attend(attention: CrossAttention, x_BTSD: Tensor, text: TextContext) -> Tensor:
    if not x_BTSD.shape[1]:
        return x_BTSD
    return attention(x_BTSD.flatten(1, 2), text).view(x_BTSD.shape)
