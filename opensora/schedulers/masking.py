"""Frame masks: which latent frames are noised and which are given.

A training mask [B, T] is bool: True = noised and trained, False = given as a condition, not part of the loss.
A sampling mask [B, T] is float: 0 = keep as it is, 1 = generate, between = start from the given frame, noised to that
share of the way. Where that share is the same for all frames, a clip is edited as a whole (Meng et al. 2021,
arXiv:2108.01073): sampling begins at the noise of that share, no frame is clean, and the model needs no mask.
"""

import torch
from torch import Tensor


def over_frames(mask_BT: Tensor) -> Tensor:
    """[B, T] to [B, 1, T, 1, 1], to choose between clips."""
    return mask_BT[:, None, :, None, None]


def choose_frames(mask_BT: Tensor | None, where_true_BCTHW: Tensor, where_false_BCTHW: Tensor) -> Tensor:
    """Frame by frame one clip or the other; no mask is all True."""
    if mask_BT is None:
        return where_true_BCTHW
    return torch.where(over_frames(mask_BT.bool()), where_true_BCTHW, where_false_BCTHW)


def edited_share(mask_BT: Tensor | None) -> float | None:
    """The share to which all frames of all clips are noised, between 0 and 1; None unless the clips are edited as a whole."""
    if mask_BT is None:
        return None
    share = float(mask_BT.flatten()[0])
    return share if 0 < share < 1 and bool((mask_BT == mask_BT.flatten()[0]).all()) else None


def mean_over_frames(values_BCTHW: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Mean per sample over everything but the batch, counting only frames that are True; [B].

    A sample without a True frame has nothing to learn from: its mean is 0.
    """
    if mask_BT is None:
        return values_BCTHW.flatten(1).mean(1)
    mask_BT = mask_BT.to(values_BCTHW)
    per_frame_BT = values_BCTHW.mean(dim=(1, 3, 4))
    return (per_frame_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
